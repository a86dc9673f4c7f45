r"""
Hypergradients, exact and not
=============================

How does a validation loss change with the penalties of a regression? :math:`J(\theta, y(\theta))` depends on them only
through the weights :math:`y`, the solution of the lower problem, and there is more than one way through it:

* *implicit*: one linear system with the Hessian of the lower objective, exact;
* *cg*: the same by Hessian-vector products, as exact as one asks for;
* *unrolled*: through the last steps of a first-order solver, as automatic differentiation sees them;
* *one step*: through a single one.

Here they are measured against each other, and the estimate of what an inexact lower solution costs against the truth.
"""

import matplotlib.pyplot as plt
import torch

import torchddn as ddn
from torchddn.bilevel import Bilevel, hypergradient
from torchddn.solvers import LBFGS, GradientDescent, WarmStart

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %%
# Logistic regression with 400 features in four groups, and one penalty for each group, in log scale. That is too large
# for a solution to be polished to rounding, so that it is as exact as its solver leaves it.

X, X_val = (torch.randn(n, 400) / 10 for n in (120, 200))
w = torch.randn(400) * torch.tensor([2.0, 1.0, 0.5, 0.0]).repeat_interleave(100)
t, t_val = (torch.sign(A @ w + 0.3 * torch.randn(len(A))) for A in (X, X_val))


def losses(y, A, labels):
    return torch.nn.functional.softplus(-labels * (A @ y))


class Regression(ddn.Problem):
    def objective(self, y, theta):
        return losses(y, X, t).sum() + 0.5 * (theta.exp()[:, None] * y.square().view(4, 100)).sum()

    def initial(self, theta):
        return torch.zeros(400)


def validation(theta, y):
    return losses(y[0], X_val, t_val).mean()


theta = torch.zeros(4)


def pair(solver):
    return Bilevel(validation, ddn.DeclarativeNode(Regression(), solver=solver))


def error(found):
    return float((found.gradient - truth).norm() / truth.norm())


exact = hypergradient(pair(LBFGS()), None, theta)
truth = exact.gradient
print("gradient", truth.numpy().round(5), f"certificate {exact.certificate:.0e}")

# %%
# The truth is a central difference's too:

with torch.no_grad():
    step, direction = 1e-4, torch.tensor([1.0, -1.0, 2.0, 0.5])
    values = [pair(LBFGS()).value(theta + sign * step * direction) for sign in (1, -1)]
assert abs(float((values[0] - values[1]) / (2 * step) - truth @ direction)) < 1e-6 * float(truth.norm())

# %%
# Unrolled steps are gradient descent with a step of 1/L, from the solution on. Each brings the derivative closer by the
# factor by which a step contracts, here up to 1 - 1/L with L a little above one quarter of the largest eigenvalue of
# X'X.

L = 0.25 * float(torch.linalg.matrix_norm(X, 2)) ** 2 + 1
descent = pair(WarmStart(GradientDescent(step_size=1 / L, rtol=0.0, atol=1e-11)))
nums = [1, 2, 5, 10, 20, 50]
unrolled = [error(hypergradient(descent, None, theta, method="unrolled", num_steps=k)) for k in nums]
one_step = error(hypergradient(descent, None, theta, method="one_step"))
assert abs(one_step - unrolled[0]) < 1e-9
assert unrolled == sorted(unrolled, reverse=True)
assert unrolled[-1] < 1e-6

# %%
# Conjugate gradients stop at the certificate that was asked for, and the error of the gradient is about as small.

rtols = [10.0**-k for k in range(1, 11)]
matrix_free = [hypergradient(pair(LBFGS()), None, theta, method="cg", rtol=rtol) for rtol in rtols]
assert all(found.certificate <= rtol for found, rtol in zip(matrix_free, rtols, strict=True))
assert all(error(found) < 3 * rtol + 1e-9 for found, rtol in zip(matrix_free, rtols, strict=True))

# %%
# A lower solve that stops early leaves an error that no certificate of the linear system sees. ``estimate_error`` does:
# to first order it is one more derivative through the same node.

stops = [10.0**-k for k in range(1, 8)]
inexact = [
    hypergradient(pair(LBFGS(rtol=stop)), None, theta, estimate_error=True, on_failure="ignore") for stop in stops
]
true_errors = [float((found.gradient - truth).abs().max()) for found in inexact]
assert all(0.5 < found.error / true < 2 for found, true in zip(inexact, true_errors, strict=True))

# %%
# Left, what more steps buy; in the middle, what a smaller certificate buys; right, the estimated and the true error of
# the gradient for lower solves that stop earlier and earlier.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
axes[0].loglog(nums, unrolled, "o-", color="#D55E00", label="unrolled")
axes[0].loglog(1, one_step, "ks", markerfacecolor="none", markersize=10, label="one step")
axes[0].set(xlabel="steps of gradient descent differentiated", ylabel="relative error of the gradient")
axes[1].loglog(
    [found.certificate for found in matrix_free], [error(found) for found in matrix_free], "o", color="#0072B2"
)
axes[1].loglog(rtols, rtols, color="gray", linewidth=1, label="error = certificate")
axes[1].set(xlabel="certificate of conjugate gradients", ylabel="relative error of the gradient")
axes[2].loglog(stops, true_errors, "o", color="#000000", label="true error")
axes[2].loglog(stops, [found.error for found in inexact], "+", color="#009E73", markersize=12, label="estimate")
axes[2].set(xlabel="where the lower solver stopped", ylabel="largest error of an entry")
for axis in axes:
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
plt.show()
