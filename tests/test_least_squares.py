"""Least squares: against exact rational arithmetic, numpy, scikit-learn, the engine and finite differences."""

import re
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from problems import randn
from sklearn.linear_model import Ridge
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError, SolveError
from torchddn.functional import total_least_squares, weighted_least_squares
from torchddn.nn import RidgeRegression
from torchddn.status import Status

DOUBLE = torch.float64
seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=12)
both = pytest.mark.parametrize("solve", [weighted_least_squares, total_least_squares])


def data(batch=(3,), n=7, m=3, columns=(), seed=0):
    w = 0.3 + randn(*batch, n, seed=seed + 2).sigmoid()
    return randn(*batch, n, m, seed=seed), randn(*batch, n, *columns, seed=seed + 1), w


def conditioned(n, m, condition, seed=0):
    """A matrix whose singular values fall from one to ``1 / condition``."""
    U, V = (torch.linalg.qr(randn(size, m, seed=seed + size)).Q for size in (n, m))
    return (U * torch.logspace(0, -np.log10(condition), m, dtype=DOUBLE)) @ V.mT


def checked(function, inputs):
    """First and second derivatives in all modes by finite differences."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    return gradcheck(function, inputs, check_forward_ad=True) and gradgradcheck(
        function, inputs, check_fwd_over_rev=True
    )


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# Values


def test_weights_and_ridge_are_those_of_the_normal_equations():
    A, b, w = data(columns=(2,))
    ridge = torch.rand(3, 3, dtype=DOUBLE)
    M = A.mT @ (w.unsqueeze(-1) * A) + torch.diag_embed(ridge)
    expected = torch.linalg.solve(M, A.mT @ (w.unsqueeze(-1) * b))
    torch.testing.assert_close(weighted_least_squares(A, b, w, ridge=ridge), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n, m", [(8, 3), (3, 3), (3, 8), (1, 4), (4, 1)])
def test_plain_least_squares_agree_with_numpy(n, m):
    A, b, _ = data((4,), n, m)
    y = weighted_least_squares(A, b)
    for i in range(4):
        expected = np.linalg.lstsq(A[i].numpy(), b[i].numpy(), rcond=None)[0]
        np.testing.assert_allclose(y[i].numpy(), expected, rtol=1e-11, atol=1e-12)


def test_of_many_solutions_the_shortest_is_returned_as_numpy_does():
    A, b, _ = data((), 7, 2)
    A = A @ randn(2, 5, seed=5)
    expected = np.linalg.lstsq(A.numpy(), b.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weighted_least_squares(A, b).numpy(), expected, rtol=1e-11, atol=1e-12)
    zero = weighted_least_squares(torch.zeros(4, 3), torch.ones(4))
    assert zero.tolist() == [0, 0, 0]


@pytest.mark.parametrize("per_output", [False, True])
def test_ridge_regression_agrees_with_scikit_learn(per_output):
    X, Y, w = data((), 20, 4, (3,))
    X = X + 100
    alpha = torch.tensor([0.1, 1.0, 10.0], dtype=DOUBLE) if per_output else 2.0
    fit = RidgeRegression(alpha).fit(X, Y, w)
    theirs = Ridge(alpha=alpha.numpy() if per_output else alpha, solver="cholesky")
    theirs.fit(X.numpy(), Y.numpy(), sample_weight=w.numpy())
    np.testing.assert_allclose(fit.coefficients.mT.numpy(), theirs.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fit.intercept.numpy(), theirs.intercept_, rtol=1e-8)
    np.testing.assert_allclose(fit.predict(X).numpy(), theirs.predict(X.numpy()), rtol=1e-8)


def test_total_least_squares_is_the_singular_vector_of_the_closed_form():
    A, b, _ = data()
    y = total_least_squares(A, b)
    C = torch.cat([A, b.unsqueeze(-1)], dim=-1)
    smallest = torch.linalg.svdvals(C)[:, -1:]
    M = A.mT @ A - smallest.square().unsqueeze(-1) * torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(y, torch.linalg.solve(M, (A.mT @ b.unsqueeze(-1)).squeeze(-1)), rtol=1e-9, atol=1e-10)
    found = total_least_squares(A, b, solution=True)
    torch.testing.assert_close(found.objective, smallest.squeeze(-1).square(), rtol=1e-12, atol=1e-14)


def test_total_least_squares_minimize_the_distances_to_a_plane_as_scipy_does():
    A, b, _ = data((), 30, 2)
    b = A @ torch.tensor([1.0, -2.0], dtype=DOUBLE) + 0.1 * b

    def distances(y):
        return (A.numpy() @ y - b.numpy()) / np.sqrt(1 + y @ y)

    found = scipy.optimize.least_squares(distances, [0.5, -1.0], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    np.testing.assert_allclose(total_least_squares(A, b).numpy(), found.x, rtol=1e-7)


def test_total_least_squares_make_the_smallest_change():
    A, b, _ = data((), 9, 3, (2,))
    found = total_least_squares(A, b, solution=True)
    T = torch.cat([found.y, -torch.eye(2, dtype=DOUBLE)])
    C = torch.cat([A, b], dim=1)

    def change(T):
        """The squared size of the smallest change that makes ``(C + E) T = 0``."""
        return (C @ T @ torch.linalg.pinv(T)).square().sum()

    torch.testing.assert_close(change(T), found.objective, rtol=1e-11, atol=0)
    for seed in range(30):
        other = T + 0.1 * torch.cat([randn(3, 2, seed=seed), torch.zeros(2, 2, dtype=DOUBLE)])
        assert change(other) > found.objective


# Derivatives


@pytest.mark.parametrize("n, m, ridge", [(4, 2, 0.0), (4, 2, 0.4), (2, 3, 0.0), (2, 3, 0.4)])
@pytest.mark.parametrize("columns", [(), (2,)])
def test_weighted_derivatives(n, m, ridge, columns):
    batch = () if columns else (2,)
    assert checked(lambda A, b, w: weighted_least_squares(A, b, w, ridge=ridge), data(batch, n, m, columns))


@pytest.mark.parametrize("n, shape", [(4, (2, 3)), (4, (2, 1)), (2, (3,)), (2, ())])
def test_ridge_derivatives(n, shape):
    A, b, _ = data((2,), n, 3)
    ridge = 0.2 + torch.rand(shape, dtype=DOUBLE)
    assert checked(lambda A, b, ridge: weighted_least_squares(A, b, ridge=ridge), (A, b, ridge))


@pytest.mark.parametrize("columns", [(), (1,), (2,)])
def test_total_derivatives(columns):
    assert checked(total_least_squares, data((), 5, 2, columns)[:2])


@pytest.mark.filterwarnings("ignore::torchddn.DegenerateGradientWarning")
@pytest.mark.parametrize("n, m", [(6, 4), (4, 6)])
def test_derivatives_at_a_constant_lower_rank(n, m):
    left, right, b = randn(1, n, 2), randn(1, 2, m, seed=1), randn(1, n, seed=2)
    assert checked(lambda left, right, b: weighted_least_squares(left @ right, b), (left, right, b))


def exact(A, b, v):
    """``y``, ``dA`` and ``db`` of the loss ``v . y``, in rational arithmetic."""
    A = [[Fraction(a) for a in row] for row in A.tolist()]
    b, v = ([Fraction(a) for a in x.tolist()] for x in (b, v))
    n, m = len(A), len(A[0])
    columns = [[A[i][j] for i in range(n)] for j in range(m)]

    def dot(x, y):
        return sum(s * t for s, t in zip(x, y, strict=True))

    M = [[dot(p, q) for q in columns] + [dot(p, b), v[j]] for j, p in enumerate(columns)]
    for j in range(m):
        M[j] = [entry / M[j][j] for entry in M[j]]
        for i in range(m):
            if i != j:
                M[i] = [s - M[i][j] * t for s, t in zip(M[i], M[j], strict=True)]
    y, u = [row[m] for row in M], [row[m + 1] for row in M]
    r, Au = [b[i] - dot(A[i], y) for i in range(n)], [dot(A[i], u) for i in range(n)]
    dA = [[float(r[i] * u[j] - Au[i] * y[j]) for j in range(m)] for i in range(n)]
    return (torch.tensor(x, dtype=DOUBLE) for x in ([float(t) for t in y], dA, [float(t) for t in Au]))


@pytest.mark.parametrize("condition, bound", [(1e2, 1e-12), (1e4, 1e-10), (1e6, 1e-9), (1e8, 1e-6), (1e10, 1e-4)])
def test_gradients_lose_the_condition_number_and_not_its_square(condition, bound):
    for seed in range(3):
        A = conditioned(12, 6, condition, seed).requires_grad_()
        b, v = randn(12, seed=seed).requires_grad_(), randn(6, seed=seed + 1)
        y = weighted_least_squares(A, b)
        found = (y.detach(), *torch.autograd.grad(y, (A, b), v))
        assert max(map(relative, found, exact(A, b, v))) < bound


def test_gradients_are_those_of_the_formula():
    A, b, _ = (x.requires_grad_() for x in data((), 8, 3))
    y, v = weighted_least_squares(A, b), randn(3, seed=9)
    dA, db = torch.autograd.grad(y, (A, b), v)
    w, r = torch.linalg.solve(A.mT @ A, v), b - A @ y
    torch.testing.assert_close(dA, torch.outer(r, w) - torch.outer(A @ w, y), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(db, A @ w, rtol=1e-11, atol=1e-12)
    mu = torch.tensor(0.7, dtype=DOUBLE)
    slope = jacfwd(lambda mu: weighted_least_squares(A.detach(), b.detach(), ridge=mu))(mu)
    M = (A.mT @ A + mu * torch.eye(3, dtype=DOUBLE)).detach()
    expected = -torch.linalg.solve(M, torch.linalg.solve(M, (A.mT @ b).detach()))
    torch.testing.assert_close(slope, expected, rtol=1e-11, atol=1e-12)


def test_the_engine_has_the_same_derivatives():
    class Weighted(ddn.Problem):
        def objective(self, y, A, b, w):
            return (w * (A @ y - b).square()).sum() + 0.3 * y.square().sum()

        def initial(self, A, b, w):
            return torch.zeros(3, dtype=DOUBLE)

    inputs = [x.requires_grad_() for x in data()]
    answers = []
    for node in (ddn.DeclarativeNode(Weighted()), lambda A, b, w: weighted_least_squares(A, b, w, ridge=0.3)):
        y = node(*inputs)
        answers.append((y, *torch.autograd.grad(y.pow(3).sum(), inputs)))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


@both
def test_hessians_agree_in_every_nesting_of_modes_and_under_vmap(solve):
    A, b, _ = data((3,), 6, 2)

    def loss(A, b):
        return solve(A, b).pow(3).sum()

    expected = torch.stack([torch.autograd.functional.hessian(lambda A, i=i: loss(A, b[i]), A[i]) for i in range(3)])
    for nested in (hessian(loss), jacfwd(jacfwd(loss)), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(vmap(nested)(A, b), expected, rtol=1e-9, atol=1e-9)


@both
def test_forward_mode_is_the_transpose_of_reverse_mode(solve):
    A, b, _ = data(columns=(2,))
    dA, db = randn(3, 7, 3, seed=3), randn(3, 7, 2, seed=4)
    y, dy = jvp(solve, (A, b), (dA, db))
    v = randn(*y.shape, seed=5)
    gA, gb = grad(lambda A, b: (v * solve(A, b)).sum(), argnums=(0, 1))(A, b)
    torch.testing.assert_close((gA * dA).sum() + (gb * db).sum(), (v * dy).sum(), rtol=1e-11, atol=0)


# Degenerate cases


@both
def test_items_do_not_interact(solve):
    A, b, _ = data((4,))
    A, b = A.requires_grad_(), b.requires_grad_()
    y = solve(A, b)
    gA, gb = torch.autograd.grad(y.pow(3).sum(), (A, b))
    for i in range(4):
        alone = solve(A[i], b[i])
        assert torch.equal(alone, y[i])
        parts = torch.autograd.grad(alone.pow(3).sum(), (A, b))
        torch.testing.assert_close(parts[0][i], gA[i], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(parts[1][i], gb[i], rtol=1e-12, atol=1e-13)


@both
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["A", "b"])
def test_an_item_that_is_not_finite_spoils_only_itself(solve, poison, where):
    A, b, _ = data((3,))
    (A if where == "A" else b)[1, 2] = poison
    shared = torch.ones(3, dtype=DOUBLE).requires_grad_()
    A.requires_grad_()
    with pytest.warns(ConvergenceWarning, match="1 x NON_FINITE"):
        y = solve(A * shared, b)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    gA, gs = torch.autograd.grad(y[[0, 2]].sum() + y[1].sum(), (A, shared))
    clean = solve(A[[0, 2]].detach() * shared, b[[0, 2]])
    torch.testing.assert_close(gA[[1]], torch.where(A[[1]].isfinite(), 0, gA[[1]]), equal_nan=True)
    if where == "b":
        torch.testing.assert_close(gs, torch.autograd.grad(clean.sum(), shared)[0], rtol=1e-12, atol=1e-13)
    found = solve(A, b, on_failure="ignore", solution=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    with pytest.raises(SolveError, match="NON_FINITE"):
        solve(A, b, on_failure="raise")


def test_a_row_of_weight_zero_is_left_out_whatever_it_holds():
    A, b, w = data((2,))
    w[:, 4] = 0
    kept = [0, 1, 2, 3, 5, 6]
    expected = weighted_least_squares(A[:, kept], b[:, kept], w[:, kept])
    torch.testing.assert_close(weighted_least_squares(A, b, w), expected, rtol=1e-12, atol=1e-13)
    A[:, 4], b[0, 4] = float("nan"), float("inf")
    A, b, w = A.requires_grad_(), b.requires_grad_(), w.requires_grad_()
    y = weighted_least_squares(A, b, w)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    gradients = torch.autograd.grad(y.sum(), (A, b, w))
    assert all(g.isfinite().all() and not g[:, 4].any() for g in gradients)


def test_a_weight_that_leaves_zero_has_a_one_sided_gradient():
    A, b, w = data(())
    w[2] = 0
    slope = jacrev(lambda w: weighted_least_squares(A, b, w))(w)[:, 2]
    step = torch.zeros_like(w)
    step[2] = 1e-7
    difference = (weighted_least_squares(A, b, w + step) - weighted_least_squares(A, b, w)) / 1e-7
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-6)


def test_lost_rank_is_told_when_a_gradient_is_asked_for():
    A, b, _ = data((3,))
    A[1, :, 2] = A[1, :, 0]
    A.requires_grad_()
    y = weighted_least_squares(A, b)
    with pytest.warns(DegenerateGradientWarning, match=r"the gradient of 1 of 3 items .* \(items 1\)"):
        (g,) = torch.autograd.grad(y.sum(), A)
    assert g.isfinite().all()
    torch.autograd.grad(weighted_least_squares(A, b, ridge=1e-3).sum(), A)  # and not with a ridge


def test_units_of_the_variables_do_not_make_a_matrix_singular():
    A, b, _ = data((), 8, 3)
    units = torch.tensor([1e-12, 1.0, 1e10], dtype=DOUBLE)
    y = weighted_least_squares(A * units, b)
    torch.testing.assert_close(y * units, weighted_least_squares(A, b), rtol=1e-11, atol=0)


def test_equal_smallest_singular_values_give_the_shortest_answer_and_a_warning():
    # The two smallest singular values of [A, b] are one; V spans e_2 and (1, 0, 1) / sqrt 2, so that y = (-1, 0)
    # is the shortest of the solutions.
    half = 0.5**0.5
    V = torch.tensor([[half, 0, half], [0, 1, 0], [-half, 0, half]], dtype=DOUBLE)
    C = torch.linalg.qr(randn(6, 3)).Q * torch.tensor([3.0, 1.0, 1.0], dtype=DOUBLE) @ V.mT
    A, b = C[:, :2].clone().requires_grad_(), C[:, 2]
    y = total_least_squares(A, b)
    torch.testing.assert_close(y, torch.tensor([-1.0, 0.0], dtype=DOUBLE), rtol=1e-10, atol=1e-10)
    with pytest.warns(DegenerateGradientWarning, match="total_least_squares"):
        assert torch.autograd.grad(y.sum(), A)[0].isfinite().all()


def test_where_no_smallest_change_exists_it_is_said():
    A = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=DOUBLE, requires_grad=True)
    b = torch.tensor([1.0, 1.0, 1.0], dtype=DOUBLE)
    with pytest.warns(ConvergenceWarning, match="UNBOUNDED"):
        y = total_least_squares(A, b)
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), A)[0].isfinite().all()


# Shapes and dtypes


@both
def test_shapes_broadcast_and_empty_batches_pass(solve):
    A, b, _ = data((), 7, 3)
    many = randn(5, 7, seed=2)
    y = solve(A[None].expand(5, 7, 3), many)
    torch.testing.assert_close(y, torch.stack([solve(A, row) for row in many]), rtol=1e-12, atol=1e-13)
    assert torch.equal(solve(A[None], many), y)
    assert solve(A[None, None], randn(2, 4, 7, 2)).shape == (2, 4, 3, 2)
    assert solve(A[None][:0], b[None][:0]).shape == (0, 3)
    torch.testing.assert_close(solve(A, b[:, None]).squeeze(-1), solve(A, b), rtol=1e-12, atol=0)


@both
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_dtypes_follow_the_data(solve, dtype, rtol):
    A, b, _ = (x.to(dtype) for x in data())
    A.requires_grad_()
    y = solve(A, b)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), solve(A.double(), b.double()), rtol=rtol, atol=rtol)
    assert torch.autograd.grad(y.sum(), A)[0].dtype == dtype


@few
@hypothesis.given(
    seeds,
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1e-12, 1e-4, 1.0, 1e8]),
    st.sampled_from([1e-12, 1.0, 1e8]),
    st.booleans(),
)
def test_scales_and_strides_change_nothing_else(seed, n, m, size, target, strided):
    A, b = randn(2, n, m, seed=seed), randn(2, n, seed=seed + 1)
    expected = weighted_least_squares(A, b)
    if strided:
        A, b = A.mT.contiguous().mT, torch.stack([b, b], dim=-1)[..., 0]
    y = weighted_least_squares(size * A, target * b)
    torch.testing.assert_close(y * (size / target), expected, rtol=1e-7, atol=1e-9 * expected.abs().max().item())


@few
@hypothesis.given(seeds, st.integers(1, 4))
def test_duplicate_rows_count_as_weights(seed, times):
    A, b = randn(6, 3, seed=seed), randn(6, seed=seed + 1)
    copies = torch.ones(6, dtype=torch.int64)
    copies[2] = times
    repeated = weighted_least_squares(A.repeat_interleave(copies, 0), b.repeat_interleave(copies))
    torch.testing.assert_close(repeated, weighted_least_squares(A, b, copies.double()), rtol=1e-9, atol=1e-10)


@few
@hypothesis.given(seeds)
def test_total_least_squares_turn_with_the_data(seed):
    A, b = randn(7, 3, seed=seed), randn(7, seed=seed + 1)
    turn = torch.linalg.qr(randn(3, 3, seed=seed + 2)).Q
    expected, turned = total_least_squares(A, b), total_least_squares(A @ turn, b)
    torch.testing.assert_close(turn @ turned, expected, rtol=1e-6, atol=1e-7 * expected.abs().max().item())


def test_a_solution_satisfies_its_conditions():
    A, b, w = data(columns=(2,))
    found = weighted_least_squares(A, b, w, ridge=0.2, solution=True)
    assert found.status.tolist() == [0, 0, 0] and found.solver == "QR"
    assert (found.stationarity < 1e-13).all()
    r = A @ found.y - b
    expected = (w.unsqueeze(-1) * r.square()).sum((1, 2)) + 0.2 * found.y.square().sum((1, 2))
    torch.testing.assert_close(found.objective, expected)
    total = total_least_squares(A, b, solution=True)
    assert (total.stationarity < 1e-10).all() and total.solver == "SVD"
    with ddn.diagnostics() as seen:
        vmap(weighted_least_squares)(A, b, w)
        total_least_squares(A, b)
    assert [record.method for record in seen.records] == ["QR", "SVD"]
    assert [record.statuses for record in seen.records] == [{"CONVERGED": 3}] * 2


def test_a_ridge_is_learned_by_gradient_descent():
    torch.manual_seed(0)
    X, true = randn(6, 5), randn(5, seed=1)
    Y, X_new = X @ true + 0.5 * randn(6, seed=2), randn(50, 5, seed=3)
    model = RidgeRegression(0.01, learnable_ridge=True).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    losses = []
    for _ in range(40):
        loss = (model(X, Y, X_new) - X_new @ true).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and model.scale() > 0
    assert "learnable_ridge=True" in repr(model)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("per_output", [True, False])
def test_ridge_regression_derivatives(intercept, per_output):
    ridge = torch.tensor([0.3, 0.6], dtype=DOUBLE) if per_output else 0.5
    model = RidgeRegression(ridge, intercept=intercept)
    assert checked(lambda X, Y, X_new: model(X, Y, X_new), (randn(4, 1), randn(4, 2), randn(2, 1)))
    assert model.solve(randn(2, 5, 2), randn(2, 5, 2)).status.shape == ((2, 2) if per_output else (2,))


def test_ridge_regression_keeps_its_shapes():
    model = RidgeRegression()
    fit = model.fit(randn(4, 6, 3), randn(4, 6))
    assert fit.coefficients.shape == (4, 3) and fit.intercept.shape == (4,)
    assert fit.predict(randn(4, 9, 3)).shape == (4, 9)
    assert model(randn(6, 3), randn(6, 2), randn(9, 3)).shape == (9, 2)
    assert vmap(model.forward)(randn(4, 6, 3), randn(4, 6), randn(4, 9, 3)).shape == (4, 9)
    half = model(randn(6, 3).bfloat16(), randn(6).bfloat16(), randn(9, 3).bfloat16())
    assert half.dtype == torch.bfloat16


# Mistakes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"A": 3.0}, "(A=...)` must be a tensor"),
        ({"A": torch.zeros(0, 3)}, "(A=...)` must have rows and columns"),
        ({"b": torch.zeros(4, dtype=DOUBLE)}, "(b=...)` must have shape (*B, 7) or (*B, 7, k)"),
        ({"b": torch.zeros(7)}, "(b=...)` must have the dtype of A"),
        ({"b": torch.zeros(2, 7, dtype=DOUBLE)}, "(b=...)` must have batch axes that broadcast"),
        ({"w": -1.0}, "(w=...)` must be finite and not negative, got -1.0"),
        ({"w": torch.tensor([1.0, float("nan")])}, "(w=...)` must be finite and not negative, got nan"),
        ({"w": torch.ones(5)}, "(w=...)` must have a shape that broadcasts to (3, 7), got (5,)"),
        ({"ridge": -0.5}, "(ridge=...)` must be finite and not negative, got -0.5"),
        ({"ridge": torch.tensor([-2.0])}, "(ridge=...)` must be finite and not negative, got -2.0"),
        ({"ridge": "strong"}, "(ridge=...)` must be a tensor"),
        ({"on_failure": "explode"}, "got 'explode'"),
        ({"solution": 1}, "(solution=...)` must be True or False"),
    ],
)
def test_mistakes_are_told(changes, message):
    A, b, w = data()
    given = {"A": A, "b": b, "w": w, **changes}
    with pytest.raises(
        InvalidInputError, match=re.escape("weighted_least_squares" + message if message[0] == "(" else message)
    ):
        weighted_least_squares(**given)


def test_total_least_squares_need_as_many_rows_as_variables():
    with pytest.raises(InvalidInputError, match="at least as many rows as columns, got 2 x 3"):
        total_least_squares(randn(2, 3), randn(2))


def test_mistakes_of_the_module_are_told():
    with pytest.raises(InvalidInputError, match=r"RidgeRegression\(ridge=...\)` must be positive"):
        RidgeRegression(0.0)
    with pytest.raises(InvalidInputError, match=r"must be a number or a tensor \(k,\)"):
        RidgeRegression(torch.ones(2, 2))
    with pytest.raises(InvalidInputError, match=r"RidgeRegression\(Y=...\)` must have shape"):
        RidgeRegression()(randn(4, 2), randn(3), randn(4, 2))
    with pytest.raises(InvalidInputError, match="an output for each of 3 strengths"):
        RidgeRegression(torch.ones(3))(randn(4, 2), randn(4, 2), randn(4, 2))
