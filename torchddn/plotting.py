"""Pictures of problems with two unknowns: level sets, the feasible set, the solution, and how it moves with ``x``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchddn._shapes import flatten_tree
from torchddn.active_set import INACTIVE, identify
from torchddn.derivatives import gradient, jacobian
from torchddn.door import prepare
from torchddn.errors import InvalidInputError
from torchddn.inspection import flat_solution, one_item
from torchddn.node import DeclarativeNode
from torchddn.optimality import Scales, scales
from torchddn.problem import BatchedProblem, Problem

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
except ImportError as error:
    raise ImportError(
        "`torchddn.plotting` needs matplotlib. Install it with `pip install 'torchddn[experiments]'`."
    ) from error

__all__ = ["plot_path", "plot_problem"]

# Okabe and Ito's palette, told apart by the color-blind too.
_LEVELS, _FEASIBLE, _BOUNDARY = "0.75", "#56B4E9", "#0072B2"
_DESCENT, _NORMAL, _PATH, _TANGENT = "#D55E00", "#0072B2", "#009E73", "#CC79A7"

# Arrows at a solution, as a part of the picture's width.
_ARROW = 0.16

Limits = tuple[float, float, float, float]


def plot_problem(
    problem: Problem | DeclarativeNode,
    *x: Any,
    item: int = 0,
    ax: Axes | None = None,
    limits: Limits | None = None,
    num_levels: int = 14,
    resolution: int = 201,
) -> Axes:
    r"""Draws a problem with two unknowns and its solution, and returns the axes.

    Gray are the level sets of ``f``. Blue is the feasible set: where there are inequalities or bounds it is shaded, an
    equality is a line. At the solution two kinds of arrows start, all of one length: ``-f_y``, where ``f`` falls most
    steeply, and the normals of the active constraints, which must balance it.

    Args:
        problem: The problem, or a node made of it, whose solver is used then.
        *x: Inputs as the node takes them, each tensor ``(B, ...)``.
        item: Which of the B items to draw.
        ax: Where to draw; a new figure unless given.
        limits: ``(left, right, bottom, top)``; chosen around start and solution unless given.
        num_levels: How many level sets.
        resolution: Points of the grid in each direction.

    Raises:
        ImportError: When this module is imported without matplotlib: ``pip install 'torchddn[experiments]'``.
        InvalidInputError: If ``y`` has not two entries, or an argument is wrong.

    Example:
        >>> import torchddn as ddn
        >>> problem = ddn.Problem.from_functions(lambda y, x: (y - x).square().sum(),
        ...                                      inequality=lambda y, x: y @ y - 1.0, initial=lambda x: x)
        >>> ax = plot_problem(problem, torch.tensor([[1.5, 0.5]]))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('y[0]', 'y[1]')
    """
    call = "plot_problem"
    node = _node_of(call, problem)
    _check_count(call, "num_levels", num_levels, 1)
    _check_count(call, "resolution", resolution, 2)
    scene = _Scene.of(call, node, x, item)
    box = _around(scene) if limits is None else _check_limits(call, limits)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
    _draw_level_sets(ax, scene, box, num_levels, resolution)
    _draw_feasible_set(ax, scene, box, resolution)
    _draw_solution(ax, scene, box)
    ax.set(xlim=box[:2], ylim=box[2:], xlabel="y[0]", ylabel="y[1]", aspect="equal")
    return ax


def plot_path(
    problem: Problem | nn.Module,
    *x: Any,
    ax: Axes | None = None,
    num_arrows: int = 6,
    label: str = "$y(x)$ along the path",
) -> Axes:
    r"""Draws how the solution moves while ``x`` moves along a path, and returns the axes.

    The items of the batch are points on the path, in their order. Arrows are tangents: the node's derivative along the
    path, ``y_x dx``, by forward mode, as long as the way to the next arrow if the solution went straight on.

    Args:
        problem: The problem, or a node (any module from these inputs to ``(B, 2)``).
        *x: Inputs along the path, each tensor ``(B, ...)`` with at least two items.
        ax: Where to draw, such as the axes of :func:`plot_problem`; new ones unless given.
        num_arrows: About how many tangents to draw, spread over the path; 0 for none.
        label: Name of the path in a legend.

    Raises:
        InvalidInputError: If ``y`` has not two entries, or an argument is wrong.

    Example:
        >>> import torchddn as ddn
        >>> t = torch.linspace(0.0, 1.5, 20)
        >>> ax = plot_path(lambda x: ddn.functional.project_sphere(x), torch.stack([1 + t, 2 * t], dim=1))
        >>> len(ax.lines[0].get_xdata())
        20
    """
    call = "plot_path"
    node = _node_of(call, problem) if isinstance(problem, Problem) else problem
    if not callable(node):
        raise InvalidInputError(f"`{call}(problem=...)` must be a problem or a node, got {problem!r}.")
    _check_count(call, "num_arrows", num_arrows, 0)
    leaves, spec = flatten_tree(call, "x", x)
    if not leaves or any(leaf.dim() == 0 or len(leaf) < 2 for leaf in leaves):
        raise InvalidInputError(f"`{call}(x=...)` must be tensors with a batch axis of at least two points of a path.")
    moving = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def solve(*moved: Tensor) -> Tensor:
        given = list(leaves)
        for i, tensor in zip(moving, moved, strict=True):
            given[i] = tensor
        return _flat(call, node(*pytree.tree_unflatten(given, spec)))

    path = tuple(leaves[i].detach() for i in moving)
    # Per step of the path: differences of neighbors, central inside.
    steps = tuple(torch.gradient(leaf, dim=0)[0] for leaf in path)
    y, dy = (part.detach().cpu() for part in torch.func.jvp(solve, path, steps)[:2])
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
        ax.set(xlabel="y[0]", ylabel="y[1]", aspect="equal")
    ax.plot(y[:, 0], y[:, 1], "-", color=_PATH, linewidth=4, label=label, zorder=4)
    if num_arrows:
        every = max(1, round((len(y) - 1) / num_arrows))
        chosen = range(0, len(y), every)
        for k in chosen:
            _draw_arrow(ax, y[k], every * dy[k], _TANGENT, "tangent $y_x\\,dx$" if k == 0 else None)
    return ax


class _Scene(NamedTuple):
    """One item, solved."""

    problem: BatchedProblem
    x: tuple[Tensor, ...]
    y: Tensor  # (1, 2)
    dual: Tensor  # (1, p + q)

    @staticmethod
    def of(call: str, node: DeclarativeNode, x: tuple[Any, ...], item: int) -> "_Scene":
        alone, one = one_item(call, node, x, item)
        with torch.no_grad():
            prepared = prepare(call, alone.problem, one, "auto")
            if prepared.problem.kind != "minimize" or prepared.problem.m != 2:
                raise InvalidInputError(
                    f"`{call}` draws minimizations with two unknowns, this is a {prepared.problem.kind} problem with "
                    f"m = {prepared.problem.m}."
                )
            solution = alone.solve(*one)
        problem, x = prepared.problem, tuple(tensor.detach() for tensor in prepared.x)
        return _Scene(problem, x, *flat_solution(problem, solution, x[-1]))

    def on_grid(self, box: Limits, resolution: int) -> tuple[Tensor, Tensor, BatchedProblem, Sequence[Tensor], Tensor]:
        """Coordinates of a grid, the problem with a copy of the item for every point, and the points."""
        left, right, bottom, top = box
        u, v = (torch.linspace(*ends, resolution).to(self.y) for ends in ((left, right), (bottom, top)))
        points = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).reshape(-1, 2)
        problem, x = self.problem.repeat(self.x, len(points))
        return u.cpu(), v.cpu(), problem, x, points


def _draw_level_sets(ax: Axes, scene: _Scene, box: Limits, num_levels: int, resolution: int) -> None:
    u, v, problem, x, points = scene.on_grid(box, resolution)
    with torch.no_grad():
        f = problem.objective(points, x)
    finite = f[f.isfinite()]
    if not len(finite) or float(finite.max()) == float(finite.min()):
        return
    # Denser where f is small: at its bottom a smooth function rises quadratically.
    spacing = torch.linspace(0, 1, num_levels + 2)[1:-1].square()
    levels = float(finite.min()) + spacing * float(finite.max() - finite.min())
    values = f.reshape(resolution, resolution).cpu().numpy()
    ax.contour(u, v, values, levels=levels.numpy(), colors=_LEVELS, linestyles="solid", linewidths=0.8, zorder=1)


def _draw_feasible_set(ax: Axes, scene: _Scene, box: Limits, resolution: int) -> None:
    u, v, problem, x, points = scene.on_grid(box, resolution)
    shape = (resolution, resolution)
    with torch.no_grad():
        h, g = problem.equality(points, x), problem.inequality(points, x)
    lower, upper = problem.bounds(x)
    limits = [lower - points, points - upper] if problem.has_bounds else []
    rows = torch.cat([g, *limits], dim=1)
    rows = rows[:, (~rows.isneginf()).any(0)]
    if rows.shape[1]:
        worst = rows.amax(1).reshape(shape).cpu().numpy()
        ax.contourf(u, v, worst, levels=[-torch.inf, 0.0], colors=[_FEASIBLE], alpha=0.2, zorder=0)
    for row in rows.mT:
        values = row.reshape(shape).cpu().numpy()
        if values.min() < 0 < values.max():
            ax.contour(u, v, values, levels=[0.0], colors=_BOUNDARY, linewidths=1.0, zorder=2)
    for row in h.mT:
        values = row.reshape(shape).cpu().numpy()
        if values.min() < 0 < values.max():
            ax.contour(u, v, values, levels=[0.0], colors=_BOUNDARY, linewidths=2.0, zorder=2)


@torch.no_grad()
def _draw_solution(ax: Axes, scene: _Scene, box: Limits) -> None:
    problem, x, y, dual = scene
    length = _ARROW * (box[1] - box[0])
    units = scales(problem, y, dual, x)
    for i, normal in enumerate(_normals(scene, units)):
        # Wide, so that it is seen behind the gradient that it balances.
        label = None if i else "normals of active constraints"
        _draw_arrow(ax, y[0], length * normal / normal.norm(), _NORMAL, label, width=4.0)
    f_y = gradient(lambda y: problem.objective(y, x), y)[0]
    if float(f_y.norm()) > torch.finfo(y.dtype).eps ** 0.5 * float(units.force):
        _draw_arrow(ax, y[0], -length * f_y / f_y.norm(), _DESCENT, "$-f_y$")
    ax.plot(*y[0].cpu(), "o", color="black", markersize=6, label="$y(x)$", zorder=6)


def _normals(scene: _Scene, units: Scales) -> list[Tensor]:
    """Gradients of the active constraints, those of inequalities and bounds pointing out of the feasible set."""
    problem, x, y, dual = scene
    active = identify(problem, y, dual, x, units, torch.finfo(y.dtype).eps ** 0.5)
    rows = jacobian(lambda y: problem.constraints(y, x), y, problem.work(x))[0]
    kept = torch.cat([torch.ones(problem.p, dtype=torch.bool, device=y.device), active.rows[0] != INACTIVE])
    axes = torch.eye(2, dtype=y.dtype, device=y.device)
    candidates = [*rows[kept], *-axes[active.lower[0] != INACTIVE], *axes[active.upper[0] != INACTIVE]]
    return [normal for normal in candidates if float(normal.norm()) > 0]


def _draw_arrow(ax: Axes, start: Tensor, step: Tensor, color: str, label: str | None, width: float = 1.8) -> None:
    # Whatever the limits of the axes: in units of the data, with a head in units of the page.
    (u, v), (du, dv) = start.tolist(), step.tolist()
    ax.annotate(
        "",
        xy=(u + du, v + dv),
        xytext=(u, v),
        arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0},
        zorder=5,
    )
    if label:
        ax.plot([], [], "-", color=color, linewidth=width, label=label)


def _around(scene: _Scene) -> Limits:
    """A square that shows the solution, the start, and the origin of small problems."""
    y, start = scene.y[0], scene.x[-1][0]
    reach = 1.4 * max(float((y - start).abs().max()), float(y.abs().max()), 1.0)
    (u, v) = y.tolist()
    return u - reach, u + reach, v - reach, v + reach


def _flat(call: str, tree: Any) -> Tensor:
    y = torch.cat([leaf.reshape(leaf.shape[0], -1) for leaf in pytree.tree_leaves(tree)], dim=1)
    if y.shape[1] != 2:
        raise InvalidInputError(f"`{call}` draws solutions with two entries, this one has {y.shape[1]}.")
    return y


def _node_of(call: str, problem: object) -> DeclarativeNode:
    if isinstance(problem, DeclarativeNode):
        return problem
    if not isinstance(problem, Problem):
        raise InvalidInputError(f"`{call}(problem=...)` must be a Problem or a DeclarativeNode, got {problem!r}.")
    return DeclarativeNode(problem)


def _check_limits(call: str, limits: Any) -> Limits:
    numbers = isinstance(limits, (tuple, list)) and all(isinstance(t, (int, float)) for t in limits)
    if not numbers or len(limits) != 4 or not (limits[0] < limits[1] and limits[2] < limits[3]):
        raise InvalidInputError(f"`{call}(limits=...)` must be (left, right, bottom, top), got {limits!r}.")
    return limits[0], limits[1], limits[2], limits[3]


def _check_count(call: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"`{call}({name}=...)` must be an integer of at least {least}, got {value!r}.")
