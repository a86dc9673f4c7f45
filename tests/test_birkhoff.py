"""Projection onto the Birkhoff polytope and transport polytopes: optimality, other solvers, derivatives."""

import math
import re
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from problems import randn
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError
from torchddn.status import Status

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=12)


def assert_optimal(X, found, r=None, c=None):
    """Sums, and Y = max(X - nu_i - nu_j, 0): all conditions of optimality."""
    Y, nu = found.y, found.equality_multipliers
    m, n = X.shape[-2:]
    r, c = (torch.ones(k, dtype=X.dtype) if t is None else t for t, k in ((r, m), (c, n)))
    torch.testing.assert_close(Y.sum(-1), r.expand_as(Y.sum(-1)), rtol=0, atol=1e-13)
    torch.testing.assert_close(Y.sum(-2), c.expand_as(Y.sum(-2)), rtol=0, atol=1e-13)
    clipped = (X - nu[..., :m, None] - nu[..., None, m:]).clamp(min=0)
    torch.testing.assert_close(Y, clipped, rtol=0, atol=1e-12 * (1 + X.abs().max().item()))
    assert (found.status == Status.CONVERGED).all()


@few
@hypothesis.given(seed=SEEDS, n=st.integers(1, 12), size=st.sampled_from([1e-3, 1.0, 10.0, 1e3, 1e6]))
def test_answers_satisfy_the_conditions_of_optimality(seed, n, size):
    X = size * torch.randn(6, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_optimal(X, F.project_birkhoff(X, solution=True))


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_large_matrices_need_few_steps(size):
    X = size * randn(1, 200, 200)
    found = F.project_birkhoff(X, solution=True)
    assert_optimal(X, found)
    assert (found.num_steps <= 45).all()


def test_ties_do_no_harm():
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 3, (40, 6, 6), generator=generator).double()
    for size in (0.0, 0.1, 1.0, 50.0):
        assert_optimal(size * X, F.project_birkhoff(size * X, solution=True))


def test_zeros_are_exact():
    X = randn(4000, 2, 2, seed=3)
    Y = F.project_birkhoff(X)
    # Of two by two there is one unknown: Y = [[t, 1 - t], [1 - t, t]].
    t = 0.5 + 0.25 * (X[:, 0, 0] + X[:, 1, 1] - X[:, 0, 1] - X[:, 1, 0])
    for end, exact in ((t > 1, torch.eye(2).to(X)), (t < 0, 1 - torch.eye(2).to(X))):
        found = Y[end]
        exact = exact.expand_as(found)
        assert len(found) > 500 and torch.equal(found == 0, exact == 0)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-15)


def test_it_is_the_projection_of_a_conic_solver():
    cp = pytest.importorskip("cvxpy")
    X = randn(3, 6, 6)
    for matrix, Y in zip(X.numpy(), F.project_birkhoff(X).numpy(), strict=True):
        Z = cp.Variable((6, 6), nonneg=True)
        sums = [cp.sum(Z, axis=0) == 1, cp.sum(Z, axis=1) == 1]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(Z - matrix)), sums)
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(Y, Z.value, atol=1e-6)


def test_inside_it_is_a_shift_of_rows_and_columns():
    n = 5
    X = 0.01 * randn(3, n, n)
    centered = X - X.mean(1, keepdim=True) - X.mean(2, keepdim=True) + X.mean((1, 2), keepdim=True)
    torch.testing.assert_close(F.project_birkhoff(X), centered + 1 / n)
    inside = F.project_birkhoff(X)
    torch.testing.assert_close(F.project_birkhoff(inside), inside)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_a_large_multiple_gives_the_best_assignment(n):
    X = randn(3, n, n)
    for matrix, Y in zip(X.numpy(), F.project_birkhoff(1e5 * X), strict=True):
        expected = np.zeros((n, n))
        expected[scipy.optimize.linear_sum_assignment(matrix, maximize=True)] = 1
        np.testing.assert_array_equal(Y.numpy(), expected)


def test_marginals_may_be_any_and_zero_too():
    X = randn(4, 3, 5)
    r = torch.rand(4, 3, dtype=torch.float64)
    r[1, 2] = 0
    c = torch.rand(4, 5, dtype=torch.float64)
    c[2, 0] = 0
    c = c / c.sum(1, keepdim=True) * r.sum(1, keepdim=True)
    found = F.project_birkhoff(X, r, c, solution=True)
    assert_optimal(X, found, r, c)
    assert (found.y[1, 2] == 0).all() and (found.y[2, :, 0] == 0).all()
    torch.testing.assert_close(F.project_birkhoff(X.mT, c, r), found.y.mT)
    nothing = F.project_birkhoff(X, torch.zeros(3), torch.zeros(5))
    torch.testing.assert_close(nothing, torch.zeros_like(X))


# Derivatives


def test_gradients_are_exact_in_every_mode():
    X = randn(2, 4, 4).requires_grad_()
    assert 0 < (F.project_birkhoff(X) == 0).sum() < 20
    assert torch.autograd.gradcheck(F.project_birkhoff, X, check_forward_ad=True)
    tangent, v = randn(2, 4, 4, seed=1), randn(2, 4, 4, seed=2)
    _, dy = jvp(F.project_birkhoff, (X.detach(),), (tangent,))
    torch.testing.assert_close((v * dy).sum(), (vjp(F.project_birkhoff, X.detach())[1](v)[0] * tangent).sum())


def test_gradients_of_marginals_are_exact():
    def project(X, a, b):
        return F.project_birkhoff(X, 2 * a.softmax(-1), 2 * b.softmax(-1))

    inputs = [t.requires_grad_() for t in (0.2 * randn(3, 3), 0.2 * randn(3, seed=1), 0.2 * randn(3, seed=2))]
    assert torch.autograd.gradcheck(project, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(project, inputs, check_fwd_over_rev=True)


def test_gradients_of_multipliers_are_exact():
    def potentials(X):
        nu = F.project_birkhoff(X, solution=True).equality_multipliers
        return nu[:, :4, None] + nu[:, None, 4:]  # the constant that is free cancels

    X = (0.3 * randn(2, 4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(potentials, X, check_forward_ad=True)


def test_the_jacobian_is_the_projection_onto_what_the_support_leaves_free():
    X = randn(5, 5)
    Y = F.project_birkhoff(X)
    jacobian = torch.autograd.functional.jacobian(F.project_birkhoff, X).reshape(25, 25)
    kept = (Y > 0).flatten()
    eye = torch.eye(5, dtype=torch.float64)
    ones = torch.ones(1, 5, dtype=torch.float64)
    rows = torch.cat([torch.kron(eye, ones), torch.kron(ones, eye)])[:, kept]
    inner = torch.eye(int(kept.sum()), dtype=torch.float64) - torch.linalg.pinv(rows) @ rows
    expected = torch.zeros(25, 25, dtype=torch.float64)
    expected[kept.nonzero(), kept.nonzero().T] = inner
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-12)


def test_a_support_in_parts_has_an_exact_gradient():
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.ones(1, 1)).double()
    X = (0.3 * randn(5, 5) - 20 * (1 - blocks)).requires_grad_()
    torch.testing.assert_close((F.project_birkhoff(X) > 0).double(), blocks)
    assert torch.autograd.gradcheck(F.project_birkhoff, X, check_forward_ad=True)


def test_a_response_to_marginals_that_is_not_determined_is_told():
    X = torch.eye(3, dtype=torch.float64) * 50
    r = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = F.project_birkhoff(X, r)
    with pytest.warns(DegenerateGradientWarning, match="^`project_birkhoff`: the gradient of 1 of 1 items"):
        slope = torch.autograd.grad((y * torch.diag(torch.arange(3.0).double())).sum(), r)[0]
    assert slope.isfinite().all()
    # In X alone nothing is free.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X.requires_grad_()
        assert (torch.autograd.grad(F.project_birkhoff(X).pow(3).sum(), X)[0] == 0).all()


def test_vmap_is_a_loop_and_transforms_compose():
    X = randn(3, 4, 4)
    loop = torch.stack([F.project_birkhoff(item) for item in X])
    torch.testing.assert_close(F.project_birkhoff(X), loop, rtol=0, atol=1e-12)
    torch.testing.assert_close(vmap(F.project_birkhoff)(X), loop, rtol=0, atol=1e-12)
    torch.testing.assert_close(vmap(F.project_birkhoff, in_dims=1)(X.transpose(0, 1)), loop, rtol=0, atol=1e-12)
    jacobians = torch.stack([torch.autograd.functional.jacobian(F.project_birkhoff, item) for item in X])
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(F.project_birkhoff))(X), jacobians, rtol=0, atol=1e-11)


# Batches, failures, shapes, dtypes


@few
@hypothesis.given(seed=SEEDS)
def test_batch_items_do_not_interact(seed):
    X = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X[1] *= 1e4
    X[2] *= 30
    whole = F.project_birkhoff(X, solution=True)
    for i in range(4):
        alone = F.project_birkhoff(X[i], solution=True)
        torch.testing.assert_close(whole.y[i], alone.y, rtol=0, atol=1e-11)
        assert whole.num_steps[i] == alone.num_steps


def test_a_matrix_that_is_not_finite_spoils_only_itself():
    X = randn(3, 4, 4)
    expected, slope = F.project_birkhoff(X), grad(lambda X: F.project_birkhoff(X).pow(3).sum())(X)
    for poison in (math.nan, math.inf, -math.inf):
        bad = X.clone()
        bad[1, 2, 0] = poison
        with pytest.warns(ConvergenceWarning, match=r"`project_birkhoff`: 1 of 3 items .* NON_FINITE"):
            Y = F.project_birkhoff(bad)
        assert Y[1].isnan().all()
        torch.testing.assert_close(Y[[0, 2]], expected[[0, 2]])
        found = grad(lambda X: F.project_birkhoff(X, on_failure="ignore").pow(3).sum())(bad)
        torch.testing.assert_close(found[[0, 2]], slope[[0, 2]])
        assert (found[1] == 0).all()


def test_too_few_steps_are_reported():
    X = 10 * randn(3, 20, 20)
    with pytest.warns(ConvergenceWarning, match="MAX_STEPS"):
        F.project_birkhoff(X, max_steps=2)
    assert F.project_birkhoff(X, max_steps=2, on_failure="nan").isnan().all()
    with pytest.raises(ddn.SolveError, match="MAX_STEPS"):
        F.project_birkhoff(X, max_steps=2, on_failure="raise")


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_lower_precision_returns_its_dtype(dtype, atol):
    X = randn(3, 8, 8).to(dtype).requires_grad_()
    Y = F.project_birkhoff(X)
    assert Y.dtype == dtype
    torch.testing.assert_close(Y.detach().double(), F.project_birkhoff(X.detach().double()), rtol=0, atol=atol)
    v = randn(3, 8, 8, seed=1)
    exact = X.detach().double().requires_grad_()
    expected = torch.autograd.grad(F.project_birkhoff(exact), exact, v)[0]
    found = torch.autograd.grad(Y, X, v.to(dtype))[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=30 * atol)


def test_empty_batches_and_batch_axes():
    assert F.project_birkhoff(randn(0, 3, 3)).shape == (0, 3, 3)
    X = randn(2, 3, 4, 4)
    torch.testing.assert_close(F.project_birkhoff(X), F.project_birkhoff(X.flatten(0, 1)).unflatten(0, (2, 3)))
    torch.testing.assert_close(F.project_birkhoff(randn(5, 1, 1)), torch.ones(5, 1, 1, dtype=torch.float64))


def test_the_module_is_the_function():
    X, r = torch.randn(2, 3, 4), torch.tensor([2.0, 1.0, 1.0])
    module = nn.ProjectBirkhoff()
    torch.testing.assert_close(module(X, r), F.project_birkhoff(X, r))
    assert (module.solve(X, r).status == Status.CONVERGED).all()
    assert repr(module) == "ProjectBirkhoff(max_steps=500)"
    module.on_failure = "raise"
    with pytest.raises(ddn.SolveError):
        module(X * math.nan, r)


X = torch.zeros(2, 3)
MISTAKES = [
    (lambda: F.project_birkhoff(X),
     "`project_birkhoff(X=...)` must be square matrices, (*B, n, n), got shape (2, 3). Or pass `r` and `c`."),
    (lambda: F.project_birkhoff(X[:0]),
     "`project_birkhoff(X=...)` must be square matrices, (*B, n, n), got shape (0, 3)."),
    (lambda: F.project_birkhoff(X, torch.ones(2)),
     "`project_birkhoff(r=..., c=...)` must have the same sum, got 2 and 3. Scale one of them; ones stand for a "
     "marginal that is not given."),
    (lambda: F.project_birkhoff(X, torch.ones(3)),
     "`project_birkhoff(r=...)` must have a shape that broadcasts to (2,), got (3,). Reshape it."),
    (lambda: F.project_birkhoff(X, torch.tensor([4.0, -1.0])),
     "`project_birkhoff(r=...)` must be non-negative and finite, got -1.0 among its entries."),
    (lambda: F.project_birkhoff(torch.eye(2), max_steps=1.5),
     "`project_birkhoff(max_steps=...)` must be a positive integer, got 1.5."),
]  # fmt: skip


@pytest.mark.parametrize("call, message", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told(call, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        call()
