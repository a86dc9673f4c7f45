r"""
A projection as a layer
=======================

The point of the unit circle nearest to :math:`x` is the solution of

.. math:: y(x) = \arg\min_y \tfrac12 |y - x|^2 \quad\text{subject to}\quad |y|^2 = 1.

We state exactly that, and train an input through it.
"""

import matplotlib.pyplot as plt
import torch

import torchddn as ddn


class SphereProjection(ddn.Problem):
    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def equality(self, y, x):
        return y.square().sum() - 1.0

    def initial(self, x):
        return x


node = ddn.DeclarativeNode(SphereProjection())

# %%
# The Jacobian is known in closed form, :math:`(I - y y^\top) / |x|`. The node agrees with it.

x = torch.tensor([[1.5, 0.5]], dtype=torch.float64)
jacobian = torch.autograd.functional.jacobian(node, x)[0, :, 0]
y = node(x)[0]
print(jacobian - (torch.eye(2) - y.outer(y)) / x.norm())

# %%
# Gradient descent on the input turns the projection towards a target. The gradient is tangent to the circle, so
# the input never shrinks; each step is orthogonal to the ray through it.

target = torch.tensor([[-0.6, 0.8]], dtype=torch.float64)
x = torch.tensor([[1.5, 0.5]], dtype=torch.float64, requires_grad=True)
path = [x.detach().clone()]
for _ in range(15):
    (gradient,) = torch.autograd.grad((node(x) - target).square().sum(), x)
    x = (x - 0.5 * gradient).detach().requires_grad_()
    path.append(x.detach().clone())
inputs = torch.cat(path)
outputs = node(inputs)

fig, ax = plt.subplots(figsize=(5, 4.4), layout="constrained")
ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.7"))
for start, end in zip(inputs, outputs, strict=True):
    ax.plot([start[0], end[0]], [start[1], end[1]], color="0.85", linewidth=1, zorder=0)
ax.plot(*inputs.T, "o-", color="#0072B2", markersize=4, label="input $x$")
ax.plot(*outputs.T, "s", color="#E69F00", markersize=4, label="projection $y(x)$")
ax.plot(*target[0], "*", color="black", markersize=14, label="target")
ax.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
ax.legend(loc="lower left")
plt.show()
