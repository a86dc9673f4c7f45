r"""
The geometry of a gradient
==========================

A solution that must stay feasible moves along its constraints. This page draws how, for problems with two unknowns.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import torchddn as ddn
from torchddn.plotting import plot_path, plot_problem

# %%
# Three ways to meet an inequality
# --------------------------------
#
# The point of a disc nearest to :math:`x`,
#
# .. math:: y(x) = \arg\min_y \tfrac12 |y - x|^2 \quad\text{subject to}\quad |y|^2 \le 1.


class DiscProjection(ddn.Problem):
    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def inequality(self, y, x):
        return y.square().sum() - 1.0

    def initial(self, x):
        return 0.5 * x


# %%
# If :math:`x` lies inside, the constraint is *inactive*: the solution is the minimum of :math:`f`, and follows
# :math:`x` wherever it goes. If it lies outside, the constraint is *active*: :math:`-f_y` points out of the disc, the
# normal holds it, and only movements along the circle come through. If it lies exactly on the circle, the constraint is
# *weakly active*: it touches the solution and does not hold it. Then there is one derivative for movements to the
# inside and another for movements to the outside, and ``Implicit(weakly_active=...)`` says which one is meant.

x = torch.tensor([[0.35, 0.3], [1.2, 0.9], [0.8, 0.6]], dtype=torch.float64)
dx = torch.tensor([-0.2, 0.7], dtype=torch.float64)  # how x is about to move
sides = {"inactive": "#009E73", "active": "#CC79A7"}  # where both agree, the second hides the first

fig, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained")
titles = ("inactive", "active", "weakly active")
for ax, title, item in zip(axes, titles, x, strict=True):
    plot_problem(DiscProjection(), item[None], ax=ax, limits=(-1.3, 1.9, -1.3, 1.9))
    ax.plot(*item, "x", color="black", markersize=8)
    ax.annotate("$x$", item, xytext=(6, -12), textcoords="offset points")
    ax.quiver(*item, *dx, color="0.4", angles="xy", scale_units="xy", scale=1, label="$dx$")
    for side, color in sides.items():
        adjoint = ddn.Implicit(weakly_active=side)
        node = ddn.DeclarativeNode(DiscProjection(), adjoint=adjoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ddn.DegenerateGradientWarning)  # that the third gradient is one-sided
            y, dy = torch.func.jvp(node, (item[None],), (dx[None],))
        print(f"{title:14} {side:10} dy = ({dy[0, 0]:+.3f}, {dy[0, 1]:+.3f})")
        label = f'$dy$, weakly_active="{side}"'
        ax.quiver(*y[0], *dy[0], color=color, angles="xy", scale_units="xy", scale=1, zorder=5, label=label)
    ax.set_title(title)
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
plt.show()

# %%
# Along a path through the disc and out of it the solution follows :math:`x` first, and slides along the circle then.

t = torch.linspace(0, 1, 60, dtype=torch.float64)
path = torch.stack([0.2 + 1.3 * t, -0.7 + 2.0 * t], dim=1)
fig, ax = plt.subplots(figsize=(7.4, 4.6), layout="constrained")
plot_problem(DiscProjection(), path, item=59, ax=ax, limits=(-1.3, 1.9, -1.3, 1.9))
plot_path(DiscProjection(), path, ax=ax)
ax.plot(*path.T, ":", color="black", linewidth=1, label="$x$")
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
plt.show()

# %%
# The correction that a constraint makes
# --------------------------------------
#
# With one input :math:`x` and one equality :math:`h(y, x) = 0`, write :math:`H = L_{yy}`, :math:`b = L_{xy}`,
# :math:`a = h_y` and :math:`c = h_x`. Without the constraint the solution would move by
# :math:`y'_\text{unc} = -H^{-1} b`. In the coordinates in which :math:`H` is the identity, with
# :math:`\tilde a = H^{-1/2} a`, its direction :math:`\hat a`, and :math:`\tilde b = H^{1/2} y'_\text{unc}`,
#
# .. math:: H^{1/2} y' = \tilde b - (\hat a \cdot \tilde b)\, \hat a - \frac{c}{|\tilde a|}\, \hat a :
#
# the part of the movement that would leave the constraint is taken out, and, if the constraint itself moves with
# :math:`x`, what is needed to follow it is added.
#
# Here the constraint is an ellipse that grows with :math:`x`.


def f(y, x):
    return (y[0] - 1.4 - 1.5 * x).square() + 1.5 * (y[1] - 0.6 - 1.5 * x).square() + 0.9 * y[0] * y[1]


def h(y, x):
    return y[0].square() + 1.6 * y[1].square() - 1.2 - 1.2 * x


problem = ddn.Problem.from_functions(f, equality=h, initial=torch.tensor([1.0, 0.2], dtype=torch.float64))
x = torch.tensor([0.25], dtype=torch.float64)
node = ddn.DeclarativeNode(problem)
solution = node.solve(x)
y, nu = solution.y[0], solution.equality_multipliers[0, 0]


def L_y(y, x):
    return torch.func.grad(lambda y: f(y, x) + nu * h(y, x))(y)


H, b = torch.func.jacrev(L_y, (0, 1))(y, x[0])
a, c = torch.func.jacrev(h, (0, 1))(y, x[0])
values, vectors = torch.linalg.eigh(H)
root_H = vectors @ values.sqrt().diag() @ vectors.T

unconstrained = -torch.linalg.solve(H, b)
a_tilde = torch.linalg.solve(root_H, a)
a_hat, b_tilde = a_tilde / a_tilde.norm(), root_H @ unconstrained
normal_part = (a_hat @ b_tilde) * a_hat
following = -c / a_tilde.norm() * a_hat
corrected = torch.linalg.solve(root_H, b_tilde - normal_part + following)

# %%
# That is the derivative which the node computes.

_, dy = torch.func.jvp(node, (x,), (torch.ones_like(x),))
print("by the picture:", corrected.tolist())
print("by the node:   ", dy[0].tolist())

# %%
# Left, the problem itself, with the ellipse to which the solution has to come as :math:`x` grows by 0.3. Right, the
# construction in the coordinates in which :math:`H` is the identity.


def arrow(ax, start, step, color, label, style="-"):
    line = {"color": color, "linewidth": 2, "linestyle": style}
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **line}
    ax.annotate("", xy=(start + step).tolist(), xytext=start.tolist(), arrowprops=arrow, zorder=5)
    ax.plot([], [], label=label, **line)


fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
limits = (0.3, 2.0, -0.3, 1.4)
plot_problem(node, x, ax=left, limits=limits)
grid = torch.stack(torch.meshgrid(*(torch.linspace(*ends, 201) for ends in (limits[:2], limits[2:])), indexing="xy"))
left.contour(*grid, h(grid, x + 0.3), levels=[0.0], colors="#0072B2", linestyles="dashed", linewidths=1.2)
arrow(left, y, 0.3 * unconstrained, "#E69F00", r"$y'_\mathrm{unc}$", "--")
arrow(left, y, 0.3 * corrected, "#009E73", "$y'$")
left.legend(loc="lower left", fontsize="small")

origin = torch.zeros_like(y)
tangent = torch.stack([-a_hat[1], a_hat[0]])
for offset, style in ((origin, "-"), (following, "--")):
    right.axline(offset.tolist(), (offset + tangent).tolist(), color="#0072B2", linestyle=style, linewidth=1)
arrow(right, origin, b_tilde, "#E69F00", r"$\tilde b = H^{1/2} y'_\mathrm{unc}$", "--")
arrow(right, origin, a_hat, "#0072B2", r"$\hat a$")
arrow(right, origin, b_tilde - normal_part, "0.5", r"$\tilde b - (\hat a \cdot \tilde b) \hat a$")
arrow(right, b_tilde - normal_part, following, "#D55E00", r"$-c\,|\tilde a|^{-1} \hat a$")
arrow(right, origin, root_H @ corrected, "#009E73", r"$H^{1/2} y'$")
taken_out = torch.stack([b_tilde, b_tilde - normal_part])
right.plot(*taken_out.T, ":", color="0.5", linewidth=1.5, label=r"$(\hat a \cdot \tilde b) \hat a$")
right.plot(0, 0, "o", color="black", markersize=6, zorder=6)
right.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate", xlim=(-1.2, 2.2), ylim=(-0.6, 2.8))
right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
plt.show()
