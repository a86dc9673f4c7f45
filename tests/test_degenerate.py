"""One test for each row of the table of cases: each on a batch in which only some items are in that case."""

import pytest
import torch
from torch import Tensor

import torchddn as ddn


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def jacobian(node, x: Tensor) -> Tensor:
    """``(B, m, n)``: of each item's answer with respect to its own input."""
    J = torch.autograd.functional.jacobian(node, x)
    return torch.stack([J[i, :, i] for i in range(len(x))])


def ball(x, **options):
    return ddn.argmin(
        lambda y, x: 0.5 * (y - x).square().sum(),
        torch.zeros(2, dtype=x.dtype),
        x,
        inequality=lambda y, x: y.square().sum() - 1.0,
        start="item",
        **options,
    )


def onto_circle(x: Tensor) -> Tensor:
    u = x / x.norm()
    return (torch.eye(2, dtype=x.dtype) - torch.outer(u, u)) / x.norm()


EYE = torch.eye(2, dtype=torch.float64)


def test_inactive_inequality_does_not_matter():
    x = tensor([3.0, 4.0], [0.3, -0.2], [0.0, -2.0])
    J = jacobian(ball, x)
    torch.testing.assert_close(J, torch.stack([onto_circle(x[0]), EYE, onto_circle(x[2])]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side, kink", [("active", onto_circle(tensor(0.6, 0.8))), ("inactive", EYE)])
def test_weakly_active_inequality_has_the_side_that_was_asked_for_and_is_reported(side, kink):
    x = tensor([3.0, 4.0], [0.6, 0.8], [0.3, -0.2])
    with pytest.warns(ddn.DegenerateGradientWarning, match=r"1 of 3 items is one-sided.*item 1: inequality\[0\]"):
        J = jacobian(lambda x: ball(x, adjoint=ddn.Implicit(weakly_active=side)), x)
    torch.testing.assert_close(J, torch.stack([onto_circle(x[0]), kink, EYE]), rtol=1e-9, atol=1e-9)
    with ddn.diagnostics() as seen, pytest.warns(ddn.DegenerateGradientWarning):
        ball(x.requires_grad_()).sum().backward()
    assert seen.records[-1].weakly_active == (1,)


@pytest.mark.parametrize("side, kink", [("active", 0.0), ("inactive", 1.0)])
def test_weakly_active_bound_has_the_side_that_was_asked_for(side, kink):
    x = tensor([1.0, -1.0], [0.0, 2.0])

    def relu(x):
        adjoint = ddn.Implicit(weakly_active=side)
        y0 = torch.ones(2, dtype=x.dtype)
        return ddn.argmin(
            lambda y, x: 0.5 * (y - x).square().sum(), y0, x, bounds=(0, None), adjoint=adjoint, start="item"
        )

    torch.testing.assert_close(relu(x), x.clamp(min=0))
    with pytest.warns(ddn.DegenerateGradientWarning, match=r"1 of 2 items is one-sided.*item 1: lower\[0\]"):
        J = jacobian(relu, x)
    torch.testing.assert_close(J, torch.stack([tensor([1.0, 0.0], [0.0, 0.0]), tensor([kink, 0.0], [0.0, 1.0])]))


def test_singular_hessian_with_a_regular_reduced_one_is_exact_and_silent():
    # Curvature a of the objective: zero in some items, where the circle supplies it.
    a, c = tensor(0.0, 1.0, 0.0), tensor([1.0, 2.0], [1.0, 2.0], [-3.0, 0.5])

    def node(a, c):
        return ddn.argmin(
            lambda y, a, c: (c * y).sum() + 0.5 * a * y.square().sum(),
            -c.detach(),
            a,
            c,
            equality=lambda y, a, c: y.square().sum() - 1.0,
        )

    expected = -torch.stack([onto_circle(row) for row in c])
    torch.testing.assert_close(jacobian(lambda c: node(a, c), c), expected, rtol=1e-9, atol=1e-10)


def test_linear_program_at_a_vertex_is_exact_and_silent():
    # min c.y over the simplex: all of it moves with the sum, which is the input.
    c = tensor([3.0, 1.0, 2.0], [-1.0, 0.5, 0.2], [0.1, 0.2, -4.0])
    total = tensor([1.0], [2.0], [0.5])

    def node(c, total):
        start = torch.full((3,), 0.3, dtype=c.dtype)
        f = lambda y, c, total: (c * y).sum()  # noqa: E731
        h = lambda y, c, total: y.sum() - total[0]  # noqa: E731
        return ddn.argmin(f, start, c, total, equality=h, bounds=(0, None), start="item", solution=True)

    solution = node(c, total)
    assert solution.status.eq(0).all()
    torch.testing.assert_close(
        solution.y, tensor([0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.5]), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(solution.lower_multipliers, c - c.amin(1, keepdim=True))
    by_total = jacobian(lambda total: node(c, total).y, total)[..., 0]
    torch.testing.assert_close(by_total, torch.nn.functional.one_hot(c.argmin(1), 3).double())
    torch.testing.assert_close(jacobian(lambda c: node(c, total).y, c), torch.zeros(3, 3, 3, dtype=torch.float64))
    # The price of a unit of the sum is the lowest cost.
    torch.testing.assert_close(solution.equality_multipliers, -c.amin(1, keepdim=True))


def flat(a, x, **options):
    """Curvature a along (1, -1): where a = 0 every y with y1 + y2 = x is a minimum."""
    return ddn.argmin(
        lambda y, a, x: 0.5 * (y.sum() - x[0]).square() + 0.5 * a * (y[0] - y[1] - x[1]).square(),
        torch.zeros(2, dtype=x.dtype),
        a,
        x,
        inequality=lambda y, a, x: y.sum() - 10.0,
        start="item",
        **options,
    )


def test_non_isolated_solution_gets_the_gradient_of_minimum_norm_and_is_reported():
    a, x = tensor(1.0, 0.0, 2.0), tensor([1.0, 2.0], [1.0, 2.0], [3.0, 4.0])
    regular, singular = 0.5 * tensor([1.0, 1.0], [1.0, -1.0]), 0.5 * tensor([1.0, 0.0], [1.0, 0.0])
    with pytest.warns(ddn.DegenerateGradientWarning, match=r"1 of 3 items is one of many.*items 1;"):
        J = jacobian(lambda x: flat(a, x), x)
    torch.testing.assert_close(J, torch.stack([regular, singular, regular]), rtol=1e-9, atol=1e-9)
    with pytest.warns(ddn.DegenerateGradientWarning):
        J = jacobian(lambda x: flat(a, x, adjoint=ddn.Implicit(on_singular="damp")), x)
    torch.testing.assert_close(J, torch.stack([regular, singular, regular]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ddn.SingularError):
        jacobian(lambda x: flat(a, x, adjoint=ddn.Implicit(on_singular="raise")), x)


def test_redundant_active_constraints_leave_the_gradient_exact():
    # The second row repeats the first in some items, and is loose in others.
    x, slack = tensor([2.0, 1.0], [2.0, 1.0], [0.0, 0.1]), tensor(0.0, 1.0, 0.0)

    def node(x, slack):
        return ddn.argmin(
            lambda y, x, slack: 0.5 * (y - x).square().sum(),
            torch.zeros(2, dtype=x.dtype),
            x,
            slack,
            inequality=lambda y, x, slack: torch.stack([y.sum() - 1.0, 3 * (y.sum() - 1.0) - slack]),
            start="item",
            solution=True,
        )

    project = EYE - 0.5
    with ddn.diagnostics() as seen:
        J = jacobian(lambda x: node(x, slack).y, x)
    torch.testing.assert_close(J, torch.stack([project, project, EYE]), rtol=1e-9, atol=1e-9)
    backward = seen.records[-1]
    assert backward.redundant == (0,)
    assert "inequality[0], inequality[1]" in backward.notes[0]
    with pytest.warns(ddn.DegenerateGradientWarning, match="1 of 3 items is one of many for the multipliers"):
        node(x.requires_grad_(), slack).inequality_multipliers.sum().backward()


def test_more_active_constraints_than_variables_move_in_the_least_squares_sense():
    # Known answer 9, its second item shifted so that the corner moves with the input.
    x, corner = tensor([2.0, 0.0], [2.0, 0.1], [0.1, 0.2]), tensor(1.0, 1.0, 1.0)

    def node(x, corner):
        return ddn.argmin(
            lambda y, x, corner: 0.5 * (y - x).square().sum(),
            torch.zeros(2, dtype=x.dtype),
            x,
            corner,
            inequality=lambda y, x, corner: torch.stack([y[0] + y[1] - corner, y[0] - y[1] - corner, y[0] - corner]),
            start="item",
        )

    torch.testing.assert_close(node(x, corner), tensor([1.0, 0.0], [1.0, 0.0], [0.1, 0.2]), atol=1e-10, rtol=0)
    J = jacobian(lambda x: node(x, corner), x)
    torch.testing.assert_close(J, torch.stack([0 * EYE, 0 * EYE, EYE]), rtol=1e-9, atol=1e-9)
    by_corner = torch.autograd.functional.jacobian(lambda corner: node(x, corner), corner)
    moved = torch.stack([by_corner[i, :, i] for i in range(3)])
    torch.testing.assert_close(moved, tensor([1.0, 0.0], [1.0, 0.0], [0.0, 0.0]), rtol=1e-9, atol=1e-9)


def test_feasibility_problem_has_the_gradient_of_its_constraints():
    x = tensor([2.0], [3.0])

    def node(x):
        h = lambda y, x: torch.stack([y[0] + y[1] - x[0], y[0] * y[1] - 0.5])  # noqa: E731
        return ddn.argmin(None, torch.tensor([2.0, 0.1], dtype=x.dtype), x, equality=h, bounds=(0, None), start="item")

    y = node(x)
    torch.testing.assert_close(y.sum(1, keepdim=True), x)
    torch.testing.assert_close(y.prod(1), torch.full((2,), 0.5, dtype=y.dtype))
    # dy1 + dy2 = dx and y2 dy1 + y1 dy2 = 0
    expected = torch.stack([y[:, 0], -y[:, 1]], 1) / (y[:, :1] - y[:, 1:])
    torch.testing.assert_close(jacobian(node, x)[..., 0], expected, rtol=1e-9, atol=1e-9)


def test_nonsmooth_constraint_has_the_gradient_of_its_face():
    # The L1 ball: away from its edges the projection is that onto a face, or the identity.
    x = tensor([2.0, 1.5], [0.2, -0.3], [-1.0, 1.2])

    def node(x):
        return ddn.argmin(
            lambda y, x: 0.5 * (y - x).square().sum(),
            0.1 * x.detach(),
            x,
            inequality=lambda y, x: y.abs().sum() - 1.0,
        )

    faces = [EYE - 0.5, EYE, EYE - 0.5 * tensor([1.0, -1.0], [-1.0, 1.0])]
    torch.testing.assert_close(jacobian(node, x), torch.stack(faces), rtol=1e-9, atol=1e-9)


def test_gradient_belongs_to_the_solution_that_was_returned():
    # Two minima at distance one from the origin, on either side: the start decides.
    x, start = tensor([0.5], [0.5]), tensor([0.9], [-0.9])

    def node(x):
        f = lambda y, x: (y.square().sum() - x[0].square()).square()  # noqa: E731
        return ddn.argmin(f, start, x, bounds=(-2, 2))

    torch.testing.assert_close(node(x), tensor([0.5], [-0.5]), atol=1e-7, rtol=0)
    torch.testing.assert_close(jacobian(node, x)[..., 0], tensor([1.0], [-1.0]), atol=1e-6, rtol=0)


def test_each_failure_is_the_status_of_its_item_alone():
    # y <= x[0], y >= x[1], slope x[2]: fine, infeasible, unbounded below, not finite, fine.
    inf = torch.inf
    upper, lower, slope = (
        tensor(1.0, 0.0, inf, 1.0, 2.0),
        tensor(0.0, 1.0, -inf, 0.0, 0.0),
        tensor(1.0, 1.0, 1.0, 0.0, -1.0),
    )
    slope[3] = torch.nan

    def node(slope, **options):
        return ddn.argmin(
            lambda y, s: s * y.sum(),
            torch.tensor([0.5], dtype=slope.dtype),
            slope,
            bounds=(lower[:, None], upper[:, None]),
            start="item",
            **options,
        )

    with pytest.warns(ddn.ConvergenceWarning, match="3 of 5 items did not converge"):
        solution = node(slope.requires_grad_(), solution=True)
    names = [ddn.Status(code).name for code in solution.status.tolist()]
    assert names == ["CONVERGED", "INFEASIBLE", "UNBOUNDED", "NON_FINITE", "CONVERGED"]
    torch.testing.assert_close(solution.y[[0, 4], 0], tensor(0.0, 2.0), atol=1e-10, rtol=0)
    (gradient,) = torch.autograd.grad(solution.y[[0, 4]].sum(), slope)
    assert gradient.isfinite().all()
    with pytest.raises(ddn.SolveError):
        node(tensor(1.0, 1.0, 1.0, 1.0, 1.0), on_failure="raise")
    assert node(slope, on_failure="nan").isnan()[:, 0].tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("limits", ["inputs", "captured"])
def test_infinite_limit_is_none_wherever_it_comes_from(limits):
    x = tensor([2.0], [-3.0], [0.5])
    upper, shared = tensor([1.0], [torch.inf], [torch.inf]).requires_grad_(), torch.tensor([torch.inf]).double()
    shared.requires_grad_()
    f = lambda y, x, *_: 0.5 * (y - x).square().sum()  # noqa: E731
    start = torch.zeros(1, dtype=x.dtype)
    if limits == "inputs":
        bounds = lambda x, upper: (None, upper)  # noqa: E731
        y = ddn.argmin(f, start, x.requires_grad_(), upper, bounds=bounds, start="item")
        expected = tensor([1.0], [-3.0], [0.5])
    else:
        y = ddn.argmin(f, start, x.requires_grad_(), bounds=(upper, shared), start="item", on_failure="ignore")
        expected = tensor([2.0], [torch.nan], [torch.nan])
    torch.testing.assert_close(y[0], expected[0])
    by_x, by_upper = torch.autograd.grad(y[0].sum(), (x, upper))
    assert by_x.isfinite().all() and by_upper.isfinite().all()
    torch.testing.assert_close(by_upper[0, 0], tensor(1.0 if limits == "inputs" else 0.0)[0])


def test_infinity_in_data_of_the_objective_is_an_item_that_is_not_finite():
    x, upper = tensor([2.0], [torch.inf]), tensor([1.0], [torch.inf])
    f = lambda y, x, upper: 0.5 * (y - x).square().sum()  # noqa: E731
    start = torch.zeros(1, dtype=x.dtype)
    solution = ddn.argmin(
        f, start, x, upper, bounds=lambda x, upper: (None, upper), start="item", on_failure="ignore", solution=True
    )
    assert [ddn.Status(code).name for code in solution.status.tolist()] == ["CONVERGED", "NON_FINITE"]


def test_multipliers_require_no_grad_where_nothing_does():
    solution = ball(tensor([3.0, 4.0], [0.3, 0.1]), solution=True)
    bounded = ddn.argmin(
        lambda y, x: (y - x).square().sum(), torch.zeros(2).double(), tensor([3.0, 4.0]), bounds=(0, 1), solution=True
    )
    assert not solution.inequality_multipliers.requires_grad
    assert not bounded.lower_multipliers.requires_grad and not bounded.upper_multipliers.requires_grad
