"""Pictures show what they say: the points, arrows and limits that are drawn are those of the problem."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Annotation
from problems import randn

import torchddn as ddn
from torchddn.plotting import plot_path, plot_problem

X = torch.tensor([[3.0, 4.0], [0.6, -0.8]], dtype=torch.float64)


class Ellipse(ddn.Problem):
    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def equality(self, y, x):
        return y[0].square() + 4 * y[1].square() - 4.0

    def initial(self, x):
        return x


class Box(ddn.Problem):
    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def bounds(self, x):
        return 0.0, 1.0

    def initial(self, x):
        return torch.full_like(x, 0.5)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def arrows(ax) -> list[np.ndarray]:
    """What every arrow adds to its start."""
    drawn = [child for child in ax.get_children() if isinstance(child, Annotation) and not child.get_text()]
    return [np.subtract(arrow.xy, arrow.xyann) for arrow in drawn]


def labels(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def marker(ax) -> np.ndarray:
    (line,) = [line for line in ax.lines if line.get_label() == "$y(x)$"]
    return line.get_xydata()[0]


def test_the_solution_of_the_item_is_marked():
    node = ddn.DeclarativeNode(Ellipse())
    ax = plot_problem(node, X, item=1)
    np.testing.assert_allclose(marker(ax), node(X)[1])


def test_gradient_and_normal_of_an_equality_are_parallel_at_the_solution():
    normal, descent = arrows(plot_problem(Ellipse(), X))
    assert abs(normal[0] * descent[1] - normal[1] * descent[0]) < 1e-9
    np.testing.assert_allclose(np.linalg.norm(normal), np.linalg.norm(descent))


def test_arrows_point_where_the_objective_falls():
    disc = ddn.Problem.from_functions(
        lambda y, x: y @ x, inequality=lambda y, x: y @ y - 1.0, initial=lambda x: 0.1 * x
    )
    _, descent = arrows(plot_problem(disc, X))
    np.testing.assert_allclose(descent / np.linalg.norm(descent), -X[0] / 5, atol=1e-9)


def test_only_active_bounds_have_normals_and_they_point_out():
    inside = plot_problem(Box(), torch.tensor([[0.3, 0.4]], dtype=torch.float64))
    assert arrows(inside) == [] and labels(inside) == ["$y(x)$"]
    corner = arrows(plot_problem(Box(), torch.tensor([[-1.0, 2.0]], dtype=torch.float64)))
    np.testing.assert_allclose([a / np.linalg.norm(a) for a in corner[:2]], [[-1, 0], [0, 1]])


def test_the_picture_has_the_limits_that_were_asked_for():
    ax = plot_problem(Ellipse(), X, limits=(-3.0, 5.0, -2.0, 6.0))
    assert (*ax.get_xlim(), *ax.get_ylim()) == (-3.0, 5.0, -2.0, 6.0)


def test_the_picture_shows_start_and_solution_by_itself():
    ax = plot_problem(Ellipse(), X)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for u, v in (marker(ax), X[0].numpy()):
        assert left < u < right and bottom < v < top


def test_level_sets_and_grid_follow_their_numbers():
    def num_lines(**options) -> int:
        return len(plot_problem(Ellipse(), X, **options).collections[0].levels)

    assert num_lines(num_levels=5, resolution=11) == 5
    assert num_lines(num_levels=9) == 9


def test_an_objective_that_is_constant_has_no_level_sets():
    problem = ddn.Problem.from_functions(None, equality=Ellipse().equality, initial=lambda x: x)
    assert [c.levels.tolist() for c in plot_problem(problem, X).collections] == [[0.0]]


def test_the_feasible_set_is_shaded_where_it_is():
    ax = plot_problem(Box(), X, limits=(-1.0, 3.0, -1.0, 3.0))
    (shade,) = [c for c in ax.collections if c.get_alpha() == 0.2]
    (path,) = shade.get_paths()
    np.testing.assert_allclose([path.vertices.min(0), path.vertices.max(0)], [[0, 0], [1, 1]], atol=1e-6)


def test_a_drawing_is_added_to_given_axes():
    _, ax = plt.subplots()
    assert plot_problem(Ellipse(), X, ax=ax) is ax
    assert plot_path(Ellipse(), X, ax=ax) is ax


def test_a_path_passes_through_the_solutions():
    t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    x = torch.stack([2 + t, 1 - 2 * t], dim=1)
    node = ddn.DeclarativeNode(Ellipse())
    ax = plot_path(node, x, label="moved")
    assert labels(ax)[0] == "moved"
    np.testing.assert_allclose(ax.lines[0].get_xydata(), node(x))


def test_tangents_are_the_derivative_along_the_path():
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    x = torch.stack([t.sin(), 3 + t], dim=1)
    tangents = arrows(plot_path(lambda x: x.square(), x, num_arrows=4))
    assert len(tangents) == 5
    expected = (2 * x * torch.gradient(x, dim=0)[0])[::5] * 5
    np.testing.assert_allclose(tangents, expected)
    assert arrows(plot_path(lambda x: x.square(), x, num_arrows=0)) == []


def test_a_decision_of_two_numbers_in_a_tree_is_drawn():
    problem = ddn.Problem.from_functions(
        lambda y, x: (y["a"] - x[0]).square() + (y["b"] - x[1]).square(),
        initial=lambda x: {"a": x[0] * 0, "b": x[1] * 0},
    )
    np.testing.assert_allclose(marker(plot_problem(problem, X)), X[0], atol=1e-12)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plot_problem(Ellipse, X), "must be a Problem or a DeclarativeNode"),
        (lambda: plot_problem(Ellipse(), X, item=2), "must be an item of the batch, 0 to 1, got 2."),
        (lambda: plot_problem(Ellipse(), X, limits=(1, 0, 0, 1)), "must be (left, right, bottom, top)"),
        (lambda: plot_problem(Ellipse(), X, num_levels=0), "`plot_problem(num_levels=...)`"),
        (lambda: plot_problem(Ellipse(), X, resolution=1), "`plot_problem(resolution=...)`"),
        (lambda: plot_problem(Box(), randn(2, 3)), "two unknowns, this is a minimize problem with m = 3."),
        (lambda: plot_path(3, X), "must be a problem or a node, got 3."),
        (lambda: plot_path(Ellipse(), X[:1]), "at least two points of a path"),
        (lambda: plot_path(Ellipse(), X, num_arrows=-1), "`plot_path(num_arrows=...)`"),
        (lambda: plot_path(torch.sin, randn(2, 3)), "two entries, this one has 3."),
    ],
)
def test_a_wrong_argument_is_refused(draw, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        draw()
