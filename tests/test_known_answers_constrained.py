"""Closed forms that nodes with inequalities, bounds, or degenerate systems must reproduce."""

import pytest
import torch
from problems import randn
from torch import Tensor

import torchddn as ddn


def tensor(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def jacobian(node, x: Tensor) -> Tensor:
    """``Dy`` of one item, ``(m, n)``."""
    return torch.autograd.functional.jacobian(lambda x: node(x[None])[0], x)


def projection(x: Tensor, **constraints) -> Tensor:
    return ddn.argmin(lambda y, x: 0.5 * (y - x).square().sum(), 0 * x, x, start="batch", **constraints)


@pytest.mark.parametrize("x", [(3.0, 4.0), (0.3, 0.4)])
def test_projection_onto_the_ball_is_the_identity_inside(x):
    x = tensor(*x)
    expected = tensor([0.128, -0.096], [-0.096, 0.072]) if x.norm() > 1 else torch.eye(2, dtype=x.dtype)
    J = jacobian(lambda x: projection(x, inequality=lambda y, x: y.square().sum() - 1.0), x)
    torch.testing.assert_close(J, expected, rtol=1e-10, atol=1e-10)


WAYS = {
    "equality": {"equality": lambda y, x: y.sum() - 1},
    "two inequalities": {"inequality": lambda y, x: torch.stack([y.sum() - 1, 1 - y.sum()])},
    "equality and a loose inequality": {
        "equality": lambda y, x: y.sum() - 1,
        "inequality": lambda y, x: y.sum() - 5,
    },
    "equality and the same inequality": {
        "equality": lambda y, x: y.sum() - 1,
        "inequality": lambda y, x: y.sum() - 1,
    },
    "equality and loose bounds": {"equality": lambda y, x: y.sum() - 1, "bounds": (-100.0, 100.0)},
}


@pytest.mark.parametrize("way", WAYS)
def test_hyperplane_with_inequalities(way):
    # Inside both of two inequalities there is nothing: no interior, two dependent rows, infinitely many multipliers.
    x = tensor(0.3, -0.2, 0.5, 0.9)
    y = projection(x[None], **WAYS[way])[0]
    torch.testing.assert_close(y, x - (x.sum() - 1) / 4, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*is one-sided")  # one of two dependent rows has no multiplier
@pytest.mark.parametrize("way", WAYS)
def test_hyperplane_with_inequalities_has_its_gradient(way):
    x = tensor(0.3, -0.2, 0.5, 0.9)
    J = jacobian(lambda x: projection(x, **WAYS[way]), x)
    torch.testing.assert_close(J, torch.eye(4, dtype=x.dtype) - 0.25, rtol=1e-9, atol=1e-9)


def test_kullback_leibler_projection_with_its_bounds():
    x = randn(5).exp()

    def node(x):
        f = lambda y, x: (y * (y / x).log()).sum()  # noqa: E731
        start = torch.full((5,), 0.2, dtype=x.dtype)
        return ddn.argmin(f, start, x, equality=lambda y, x: y.sum() - 1, bounds=(0, None), start="item")

    y = x / x.sum()
    torch.testing.assert_close(node(x[None])[0], y, rtol=1e-10, atol=1e-11)
    expected = (torch.eye(5, dtype=x.dtype) - y[:, None]) / x.sum()
    torch.testing.assert_close(jacobian(node, x), expected, rtol=1e-9, atol=1e-10)


def test_three_active_rows_in_the_plane():
    def node(x):
        return ddn.argmin(
            lambda y, x: 0.5 * (y - x).square().sum(),
            tensor(0.8, 0.1),
            x,
            equality=lambda y, x: y.square().sum() - 1,
            inequality=lambda y, x: torch.stack([y[0] + y[1] - 1, y[0] - y[1] - 1]),
            start="item",
        )

    x = tensor(2.0, 0.0)
    torch.testing.assert_close(node(x[None])[0], tensor(1.0, 0.0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(jacobian(node, x), torch.zeros(2, 2, dtype=x.dtype), rtol=0, atol=1e-9)


POINT = tensor(0.5, -2.0, 1.0, 0.1)


@pytest.mark.parametrize(
    "expected, constraints",
    [
        (tensor(0.25, 0.0, 0.75, 0.0), {"equality": lambda y, x: y.sum() - 1, "bounds": (0, None)}),
        (
            # The signs of the answer are those of x.
            tensor(0.0, -1.0, 0.0, 0.0),
            {
                "inequality": lambda y, x: (x.sign() * y).sum() - 1,
                "bounds": lambda x: (torch.where(x > 0, 0, -torch.inf), torch.where(x > 0, torch.inf, 0)),
            },
        ),
        (
            tensor(0.21801036, -0.87204144, 0.43602072, 0.04360207),
            {"inequality": lambda y, x: y.square().sum() - 1},
        ),
        (tensor(0.5, -1.0, 1.0, 0.1), {"bounds": (-1, 1)}),
    ],
    ids=["simplex", "L1 ball", "L2 ball", "Linf ball"],
)
def test_projections_of_a_point(expected, constraints):
    y = ddn.argmin(lambda y, x: 0.5 * (y - x).square().sum(), 0.1 * POINT, POINT[None], start="item", **constraints)
    torch.testing.assert_close(y[0], expected, rtol=0, atol=1e-8)


def transport(M: Tensor) -> Tensor:
    """Entropic optimal transport with uniform marginals, written as it is defined."""
    m, n = M.shape[1:]

    def marginals(P, M):
        # One of all the sums follows from the others.
        return torch.cat([P.sum(1) - 1 / m, P.sum(0)[1:] - 1 / n])

    return ddn.argmin(
        lambda P, M: (M * P).sum() + (P * (P.log() - 1)).sum(),
        torch.full((m, n), 1 / (m * n), dtype=M.dtype),
        M,
        equality=marginals,
        bounds=(0, None),
        start="item",
    )


def test_transport_forgets_what_is_added_to_a_row_or_a_column():
    M, u, v = randn(2, 3, 4), randn(2, 3, 1, seed=1), randn(2, 1, 4, seed=2)
    M.requires_grad_()
    P = transport(M)
    torch.testing.assert_close(transport(M + u + v), P, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(transport(M.mT).mT, P, rtol=1e-8, atol=1e-10)
    (g,) = torch.autograd.grad((P * randn(2, 3, 4, seed=3)).sum(), M)
    for sums in (g.sum(1), g.sum(2)):
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


def test_least_squares_with_its_residual_as_a_variable_keeps_nine_digits_at_condition_1e6():
    # As an unconstrained problem the Hessian has condition 1e12; with r = b - A y as a constraint the system has 1e6.
    left, right = torch.linalg.qr(randn(8, 4))[0], torch.linalg.qr(randn(4, 4, seed=1))[0]
    A = left @ torch.diag(torch.logspace(0, -6, 4, dtype=torch.float64)) @ right.T
    b = A @ randn(4, seed=2) + 1e-3 * randn(8, seed=3)

    def node(A, b):
        y = ddn.argmin(
            lambda y, A, b: 0.5 * y[4:].square().sum(),
            torch.zeros(12, dtype=A.dtype),
            A[None],
            b[None],
            equality=lambda y, A, b: A @ y[:4] + y[4:] - b,
            start="item",
        )
        return y[0, :4]

    A, b, v = A.requires_grad_(), b.requires_grad_(), randn(4, seed=4)
    x = node(A, b)
    dA, db = torch.autograd.grad(x, (A, b), v)
    Q, R = torch.linalg.qr(A.detach())
    w = torch.linalg.solve_triangular(R, torch.linalg.solve_triangular(R.T, v[:, None], upper=False), upper=True)[:, 0]
    y = torch.linalg.solve_triangular(R, (Q.T @ b.detach())[:, None], upper=True)[:, 0]
    Aw = Q @ torch.linalg.solve_triangular(R.T, v[:, None], upper=False)[:, 0]
    r = b.detach() - A.detach() @ y
    for found, expected in ((dA, torch.outer(r, w) - torch.outer(Aw, y)), (db, Aw)):
        assert (found - expected).norm() / expected.norm() < 1e-9


def test_projector_onto_eigenvectors_has_a_gradient_where_eigenvalues_coincide():
    # Any rotation of the block solves the problem as well; losses of the projector do not see it.
    V = torch.linalg.qr(randn(5, 5))[0]
    A = (V @ torch.diag(tensor(3.0, 3.0, 1.0, 0.5, 0.2)) @ V.T).requires_grad_()

    def top(A):
        S = 0.5 * (A + A.T)
        Y = ddn.argmin(
            lambda Y, S: -0.5 * (Y * (S @ Y)).sum(),
            V[:, :2] + 0.1 * randn(5, 2, seed=1),
            S[None],
            equality=lambda Y, S: (Y.T @ Y - torch.eye(2, dtype=S.dtype))[(0, 0, 1), (0, 1, 1)],
            start="item",
        )[0]
        return Y @ Y.T

    weight = randn(5, 5, seed=2)
    with pytest.warns(ddn.DegenerateGradientWarning, match="is one of many"):
        (g,) = torch.autograd.grad((top(A) * weight).sum(), A)
    # dP = sum over pairs (inside, outside) of v_i v_i' dA v_j v_j' / (l_i - l_j), both ways round.
    values = tensor(3.0, 3.0, 1.0, 0.5, 0.2)
    gap = torch.zeros(5, 5, dtype=torch.float64)
    gap[:2, 2:] = 1 / (values[:2, None] - values[None, 2:])
    gap = gap + gap.T
    W = V.T @ (0.5 * (weight + weight.T)) @ V
    torch.testing.assert_close(0.5 * (g + g.T), V @ (gap * W) @ V.T, rtol=1e-8, atol=1e-9)


def total_variation(x: Tensor, weight: float) -> Tensor:
    """One-dimensional total variation through its dual: ``y = x - D' u``, ``|u| <= weight``."""
    u = ddn.argmin(
        lambda u, x: 0.5 * (x - _adjoint_difference(u)).square().sum(),
        torch.zeros(x.shape[1] - 1, dtype=x.dtype),
        x,
        bounds=(-weight, weight),
        start="item",
    )
    return x - _adjoint_difference(u)


def _adjoint_difference(u: Tensor) -> Tensor:
    """``D' u``, where ``D y = y[1:] - y[:-1]``."""
    return -torch.diff(torch.nn.functional.pad(u, (1, 1)))


def test_total_variation_averages_over_each_segment():
    x = tensor(1.0, 1.2, 0.9, 4.0, 4.1, 3.8, 0.2, 0.1)
    y = total_variation(x[None], 0.5)[0]
    segments = [slice(0, 3), slice(3, 6), slice(6, 8)]
    expected = torch.zeros(8, 8, dtype=x.dtype)
    for segment in segments:
        assert (y[segment] - y[segment][0]).abs().max() < 1e-9
        expected[segment, segment] = 1 / (segment.stop - segment.start)
    torch.testing.assert_close(
        y,
        torch.cat(
            [x[s].mean().expand(s.stop - s.start) + d for s, d in zip(segments, (0.5 / 3, -1 / 3, 0.25), strict=True)]
        ),
    )
    torch.testing.assert_close(jacobian(lambda x: total_variation(x, 0.5), x), expected, rtol=1e-8, atol=1e-9)


def test_total_variation_with_a_large_weight_is_the_mean():
    x = randn(6)
    torch.testing.assert_close(total_variation(x[None], 100.0)[0], x.mean().expand(6), rtol=1e-9, atol=1e-9)
    J = jacobian(lambda x: total_variation(x, 100.0), x)
    torch.testing.assert_close(J, torch.full((6, 6), 1 / 6, dtype=x.dtype), rtol=1e-9, atol=1e-9)
