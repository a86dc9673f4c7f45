"""Projections onto the second-order cone and the positive semidefinite matrices."""

import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from problems import randn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import ConvergenceWarning, InvalidInputError
from torchddn.status import Status

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=10)


def symmetric(values: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues and no special basis."""
    Q = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    return (Q * torch.tensor(values, dtype=torch.float64)) @ Q.mT


# The second-order cone


def test_the_three_cases_of_the_cone():
    x = torch.tensor([[6.0, 3.0, 4.0], [1.0, 3.0, 4.0], [-6.0, 3.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[6.0, 3.0, 4.0], [3.0, 1.8, 2.4], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(F.project_second_order_cone(x), expected)


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 6), size=st.sampled_from([1e-200, 1e-3, 1.0, 1e150]))
def test_the_cone_and_its_polar_split_every_vector(seed, m, size):
    """Moreau: x = y + z with y in the cone, z in the polar one and both orthogonal."""
    x = size * torch.randn(20, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = F.project_second_order_cone(x)
    z = x - y
    y, z = y / size, z / size
    assert (y[:, 1:].norm(dim=1) <= y[:, 0] + 1e-12).all()
    assert (z[:, 1:].norm(dim=1) <= -z[:, 0] + 1e-12).all()
    assert ((y * z).sum(dim=1).abs() < 1e-11).all()


def test_the_cone_is_that_of_a_conic_solver():
    cp = pytest.importorskip("cvxpy")
    x = randn(5, 4)
    for row, y in zip(x.numpy(), F.project_second_order_cone(x).numpy(), strict=True):
        z = cp.Variable(4)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z - row)), [cp.SOC(z[0], z[1:])])
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(y, z.value, atol=1e-6)


KINKS = {
    "on the cone": ([5.0, 3.0, 4.0], 1.0),
    "on the polar cone": ([-5.0, 3.0, 4.0], 0.0),
    "at the apex": ([0.0, 0.0, 0.0], 1.0),
    "on the axis": ([1.0, 0.0, 0.0], 1.0),
    "below the apex": ([-1.0, 0.0, 0.0], 0.0),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_have_the_gradient_that_is_documented(name):
    x, factor = KINKS[name]
    x = torch.tensor(x, dtype=torch.float64)
    jacobian = jacrev(F.project_second_order_cone)(x)
    torch.testing.assert_close(jacobian, factor * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(jacfwd(F.project_second_order_cone)(x), jacobian)
    assert hessian(lambda x: F.project_second_order_cone(x).pow(2).sum())(x).isfinite().all()


def test_one_number_is_a_bound_alone():
    x = torch.tensor([[-1.0], [2.0]])
    torch.testing.assert_close(F.project_second_order_cone(x), x.clamp(min=0))


def test_the_multiplier_of_the_cone_is_how_far_the_bound_moves():
    x = randn(6, 3)
    found = F.project_second_order_cone(x, solution=True)
    torch.testing.assert_close(found.inequality_multipliers, found.y[:, :1] - x[:, :1])
    assert (found.inequality_multipliers >= 0).all()
    assert (found.feasibility < 1e-15).all()


# Positive semidefinite matrices


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 7), floor=st.sampled_from([0.0, 0.3, -0.5]))
def test_eigenvalues_are_raised_to_the_floor(seed, m, floor):
    X = torch.randn(5, m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Y = F.project_psd(X, floor)
    values, Q = np.linalg.eigh(((X + X.mT) / 2).numpy())
    expected = (Q * np.maximum(values, floor)[:, None]) @ Q.swapaxes(1, 2)
    np.testing.assert_allclose(Y, expected, atol=1e-12)
    torch.testing.assert_close(Y, Y.mT)
    torch.testing.assert_close(F.project_psd(Y, floor), Y)


def test_it_is_the_projection_of_a_conic_solver():
    cp = pytest.importorskip("cvxpy")
    X = randn(4, 4)
    Z = cp.Variable((4, 4), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Z - X.numpy())))
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    np.testing.assert_allclose(F.project_psd(X), Z.value, atol=1e-6)


SPECTRA = {
    "distinct": [2.0, 1.0, -0.5, -3.0],
    "repeated on both sides": [2.0, 2.0, -1.0, -1.0],
    "all alike": [2.0, 2.0, 2.0, 2.0],
    "all alike and negative": [-2.0, -2.0, -2.0, -2.0],
    "near the kink": [1.0, 1e-2, -1e-2, -5.0],
    "opposite": [1.0, -1.0, 3.0, -3.0],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_gradients_are_exact_for_every_spectrum(name):
    X = symmetric(SPECTRA[name]).requires_grad_()
    floor = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(F.project_psd, (X, floor), **modes)
    assert torch.autograd.gradgradcheck(F.project_psd, (X, floor), check_fwd_over_rev=True, check_batched_grad=True)


def test_third_derivatives_are_exact_in_all_modes():
    X, V, D = symmetric(SPECTRA["repeated on both sides"]), randn(4, 4, seed=1), randn(4, 4, seed=2)

    def f(X):
        return (F.project_psd(X) * V).sum()

    third = jacrev(jacrev(jacrev(f)))(X)
    torch.testing.assert_close(jacfwd(jacfwd(jacfwd(f)))(X), third)
    step = 1e-4
    difference = (hessian(f)(X + step * D) - hessian(f)(X - step * D)) / (2 * step)
    torch.testing.assert_close((third * D).sum((-1, -2)), difference, rtol=1e-6, atol=1e-7)


def test_at_the_kink_the_gradient_is_that_of_the_inside():
    X = symmetric([1.0, 0.0, 0.0])
    jacobian = torch.autograd.functional.jacobian(F.project_psd, X).reshape(9, 9)
    E = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    expected = ((E + E.mT) / 2).reshape(9, 9)
    torch.testing.assert_close(jacobian, expected)


def test_small_eigenvalues_keep_their_digits_in_the_gradient():
    """Between 1e-9 and -3e-9 the slope is 1/4, although both are rounding beside the largest."""
    X = torch.diag(torch.tensor([1e3, 1e-9, -3e-9], dtype=torch.float64)).requires_grad_()
    slope = torch.autograd.grad(F.project_psd(X)[1, 2], X)[0]
    torch.testing.assert_close(2 * slope[1, 2].detach(), torch.tensor(0.25, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_multiplier_is_semidefinite_and_orthogonal():
    X = randn(5, 4, 4)
    found = F.project_psd(X, 0.2, solution=True)
    Z = found.inequality_multipliers
    assert (torch.linalg.eigvalsh(Z) > -1e-14).all()
    gap = found.y - 0.2 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(gap @ Z, torch.zeros_like(Z), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.objective, (found.y - (X + X.mT) / 2).square().sum((1, 2)) / 2)
    assert (found.feasibility < 1e-14).all()


def test_floors_belong_to_their_items():
    X, floor = randn(3, 4, 4), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    Y = F.project_psd(X, floor)
    for i in range(3):
        torch.testing.assert_close(Y[i], F.project_psd(X[i], float(floor[i])))


# Both


CALLS = {"cone": (F.project_second_order_cone, (3, 4)), "psd": (F.project_psd, (3, 4, 4))}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_forward_mode_is_the_transpose_of_reverse_mode(name):
    call, shape = CALLS[name]
    x, dx = randn(*shape), randn(*shape, seed=1)
    y, dy = jvp(call, (x,), (dx,))
    v = randn(*shape, seed=2)
    torch.testing.assert_close((v * dy).sum(), (vjp(call, x)[1](v)[0] * dx).sum())
    torch.testing.assert_close(y, call(x))


@every_call
def test_vmap_is_a_loop_and_transforms_compose(name):
    call, shape = CALLS[name]
    x = randn(*shape)
    torch.testing.assert_close(vmap(call)(x), torch.stack([call(item) for item in x]))
    jacobians = torch.stack([torch.autograd.functional.jacobian(call, item) for item in x])
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(call))(x), jacobians)


@every_call
def test_cone_gradients_are_exact_in_every_mode(name):
    call, shape = CALLS[name]
    x = randn(*shape).requires_grad_()
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True, check_batched_grad=True)


@every_call
def test_an_item_that_is_not_finite_spoils_only_itself(name):
    call, shape = CALLS[name]
    x = randn(*shape)
    expected, slope = call(x), grad(lambda x: call(x).pow(3).sum())(x)
    for poison in (math.nan, math.inf, -math.inf):
        bad = x.clone()
        bad[1, 0] = poison
        with pytest.warns(ConvergenceWarning, match=r"1 of 3 items did not converge \(items 1; .* NON_FINITE"):
            y = call(bad)
        assert y[1].isnan().all()
        torch.testing.assert_close(y[[0, 2]], expected[[0, 2]])
        found = grad(lambda x: call(x, on_failure="ignore").pow(3).sum())(bad)
        torch.testing.assert_close(found[[0, 2]], slope[[0, 2]])
        assert (found[1] == 0).all()


@every_call
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_lower_precision_returns_its_dtype(name, dtype, atol):
    call, shape = CALLS[name]
    x = randn(*shape).to(dtype).requires_grad_()
    y = call(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), call(x.double()), rtol=0, atol=atol)
    assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype


@every_call
def test_empty_batch_gives_an_empty_answer(name):
    call, shape = CALLS[name]
    assert call(randn(0, *shape[1:])).shape == (0, *shape[1:])


MODULES = [
    (nn.ProjectSecondOrderCone(dim=1), lambda x: F.project_second_order_cone(x, 1)),
    (nn.ProjectPSD(torch.tensor(0.1)), lambda x: F.project_psd(x, 0.1)),
]


@pytest.mark.parametrize("module, function", MODULES, ids=lambda part: type(part).__name__)
def test_modules_are_the_functions(module, function):
    x = torch.randn(2, 3, 3)
    torch.testing.assert_close(module(x), function(x))
    assert (module.solve(x).status == Status.CONVERGED).all()
    assert repr(module).startswith(type(module).__name__ + "(")
    module.on_failure = "raise"
    with pytest.raises(ddn.SolveError):
        module(x * math.nan)


MISTAKES = [
    (lambda: F.project_psd(torch.zeros(2, 3)),
     "`project_psd(X=...)` must be square matrices, (*B, m, m), got shape (2, 3)."),
    (lambda: F.project_psd(torch.zeros(0, 0)),
     "`project_psd(X=...)` must be square matrices, (*B, m, m), got shape (0, 0)."),
    (lambda: F.project_psd(torch.eye(2), math.nan), "`project_psd(minimum=...)` must be finite, got nan."),
    (lambda: F.project_psd(torch.eye(2), torch.zeros(2)),
     "`project_psd(minimum=...)` must have a shape that broadcasts to (), got (2,). Reshape it, or pass one number for "
     "all."),
    (lambda: F.project_second_order_cone(torch.zeros(2, 0)),
     "`project_second_order_cone(x=...)` must have coordinates along dim=-1, got shape (2, 0)."),
]  # fmt: skip


@pytest.mark.parametrize("call, message", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told(call, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        call()
