"""Banded systems: against dense solves and scipy, without pivots on the diagonal, and in linear time and memory."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from problems import randn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, InvalidInputError, SolveError
from torchddn.functional import banded_solve, tridiagonal_solve
from torchddn.linear import BandedMatrix
from torchddn.status import Status

DOUBLE = torch.float64
seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=12)


def inside(band):
    """The band with zeros outside of the matrix."""
    width, n = band.shape[-2:]
    column = torch.arange(n) + torch.arange(width)[:, None] - width // 2
    return torch.where((column >= 0) & (column < n), band, 0)


def dense(band):
    return BandedMatrix(inside(band).flatten(0, -3)).dense().unflatten(0, band.shape[:-2])


def dominant(band):
    """The same with a diagonal that outweighs its row."""
    band = inside(band).clone()
    band[..., band.shape[-2] // 2, :] = band.abs().sum(-2) + 1
    return band


def checked(function, *inputs):
    """First and second derivatives by finite differences."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    return gradcheck(function, inputs, check_forward_ad=True) and gradgradcheck(function, inputs)


# Values


@pytest.mark.parametrize("w", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 12, 13, 64, 101])
def test_every_size_and_width_agrees_with_the_dense_solve(w, n):
    band, b = randn(3, 2 * w + 1, n), randn(3, n, 2, seed=1)
    expected = torch.linalg.solve(dense(torch.nn.functional.pad(band, (0, 0, 1, 1))), b)
    y = banded_solve(band, b)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10 * expected.abs().max().item())


def test_diagonals_agree_with_scipy():
    lower, diagonal, upper, b = randn(9), randn(10, seed=1), randn(9, seed=2), randn(10, seed=3)
    rows = np.stack([np.append(0, upper), diagonal, np.append(lower, 0)])
    expected = scipy.linalg.solve_banded((1, 1), rows, b.numpy())
    np.testing.assert_allclose(tridiagonal_solve(lower, diagonal, upper, b).numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("w, n", [(1, 2), (1, 1000), (2, 500), (3, 301), (8, 96)])
def test_a_diagonal_of_zeros_needs_no_pivots(w, n):
    band = 1 + 0.1 * randn(2, 3, n) if w == 1 else randn(2, 2 * w + 1, n)
    band[:, w] = 0
    band[:, w, -1] = 1  # else a tridiagonal matrix of odd size is singular
    expected = torch.linalg.solve(dense(band), randn(2, n, seed=1))
    found = banded_solve(band, randn(2, n, seed=1), solution=True)
    assert found.status.tolist() == [0, 0] and (found.stationarity < 1e-14).all()
    torch.testing.assert_close(found.y, expected, rtol=1e-6, atol=1e-7 * expected.abs().max().item())


def test_a_growing_pivot_costs_no_digits():
    # Without pivots, elimination of this matrix multiplies rounding errors by 1e12.
    band = randn(1, 3, 200)
    band[:, 1, ::2] *= 1e-12
    b = randn(1, 200, seed=1)
    found = banded_solve(band, b, solution=True)
    assert found.stationarity < 1e-14
    expected = torch.linalg.solve(dense(band), b)
    torch.testing.assert_close(found.y, expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())


@few
@hypothesis.given(seeds, st.integers(1, 3), st.integers(1, 40), st.sampled_from([1e-12, 1.0, 1e8]), st.booleans())
def test_units_of_rows_and_columns_do_not_matter(seed, w, n, size, strided):
    band, b = dominant(randn(2, 2 * w + 1, n, seed=seed)), randn(2, n, seed=seed + 1)
    expected = banded_solve(band, b)
    row = 10 ** (6 * randn(n, seed=seed + 2).tanh()) * size
    scaled, target = band * row, row * b
    scaled = torch.stack([scaled, scaled], dim=-1)[..., 0] if strided else scaled
    torch.testing.assert_close(banded_solve(scaled, target), expected, rtol=1e-9, atol=1e-10)


def test_many_rows_take_linear_time_and_memory():
    n = 200_000  # a dense matrix would hold 40 billion numbers
    off, diagonal = torch.ones(n - 1, dtype=DOUBLE), torch.full((n,), 2.5, dtype=DOUBLE).requires_grad_()
    truth = randn(n)
    b = diagonal.detach() * truth
    b[1:] += truth[:-1]
    b[:-1] += truth[1:]
    y = tridiagonal_solve(off, diagonal, off, b)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    (g,) = torch.autograd.grad(y.square().sum() / 2, diagonal)
    u = tridiagonal_solve(off, diagonal.detach(), off, truth)
    torch.testing.assert_close(g, -u * truth, rtol=1e-10, atol=1e-10)


# Derivatives


@pytest.mark.parametrize("w, n, columns", [(1, 3, ()), (1, 1, ()), (1, 2, (2,)), (2, 3, ()), (0, 2, ())])
def test_band_derivatives(w, n, columns):
    assert checked(banded_solve, dominant(randn(2 * w + 1, n)), randn(n, *columns, seed=1))


def test_tridiagonal_derivatives():
    assert checked(tridiagonal_solve, randn(2), 3 + randn(3), randn(2, seed=1), randn(3, seed=2))


def test_derivatives_where_pivots_vanish():
    band = randn(5, 6)
    band[2] = 0
    band.requires_grad_()
    b = randn(6, seed=1).requires_grad_()
    gradients = [
        torch.autograd.grad(solve(band, b).pow(3).sum(), (band, b))
        for solve in (banded_solve, lambda band, b: torch.linalg.solve(_matrix(band), b))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def _matrix(band):
    """The dense matrix, differentiable."""
    w, n = band.shape[0] // 2, band.shape[1]
    return sum(torch.diag(band[w + k, max(0, -k) : n - max(0, k)], k) for k in range(-w, w + 1))


def test_entries_outside_of_the_matrix_are_not_read():
    band, b = dominant(randn(3, 6)), randn(6, seed=1)
    expected = banded_solve(band, b)
    band[0, 0] = band[2, -1] = float("nan")
    band.requires_grad_()
    y = banded_solve(band, b)
    assert torch.equal(y, expected)
    (g,) = torch.autograd.grad(y.sum(), band)
    assert g[0, 0] == 0 and g[2, -1] == 0 and g.isfinite().all()


def test_hessians_agree_in_every_nesting_of_modes_and_under_vmap():
    band, b = dominant(randn(2, 3, 3)), randn(2, 3, seed=1)

    def loss(band, b):
        return banded_solve(band, b).pow(3).sum()

    expected = torch.stack(
        [torch.autograd.functional.hessian(lambda band, i=i: loss(band, b[i]), band[i]) for i in range(2)]
    )
    for nested in (hessian(loss), jacfwd(jacfwd(loss)), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(vmap(nested)(band, b), expected, rtol=1e-9, atol=1e-9)


def test_forward_mode_is_the_transpose_of_reverse_mode():
    band, b, dband, db, v = randn(5, 30), randn(30, seed=1), randn(5, 30, seed=2), randn(30, seed=3), randn(30, seed=4)
    _, dy = jvp(banded_solve, (band, b), (dband, db))
    gband, gb = grad(lambda band, b: (v * banded_solve(band, b)).sum(), argnums=(0, 1))(band, b)
    torch.testing.assert_close((gband * dband).sum() + (gb * db).sum(), (v * dy).sum(), rtol=1e-8, atol=0)


# Degenerate cases


def test_items_do_not_interact():
    band, b = randn(4, 5, 20), randn(4, 20, seed=1)
    band[1, 2] = 0  # needs the second method
    band, b = band.requires_grad_(), b.requires_grad_()
    y = banded_solve(band, b)
    gradients = torch.autograd.grad(y.pow(3).sum(), (band, b))
    for i in range(4):
        alone = banded_solve(band[i], b[i])
        torch.testing.assert_close(alone, y[i], rtol=1e-12, atol=1e-12)
        for part, whole in zip(torch.autograd.grad(alone.pow(3).sum(), (band, b)), gradients, strict=True):
            torch.testing.assert_close(part[i], whole[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["band", "b"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_item_that_is_not_finite_spoils_only_itself(where, poison):
    band, b = dominant(randn(3, 3, 6)), randn(3, 6, seed=1)
    (band[1, 1] if where == "band" else b[1])[2] = poison
    band, shared = band.requires_grad_(), torch.ones(6, dtype=DOUBLE).requires_grad_()
    with pytest.warns(ConvergenceWarning, match="1 x NON_FINITE"):
        y = banded_solve(band, b + shared)
    assert y[1].isnan().all()
    gband, g = torch.autograd.grad(y.sum(), (band, shared))
    expected = banded_solve(band[[0, 2]], b[[0, 2]] + shared)
    torch.testing.assert_close(g, torch.autograd.grad(expected.sum(), shared)[0], rtol=1e-12, atol=1e-13)
    assert not gband[1].any() and gband.isfinite().all()


def test_a_singular_matrix_is_reported_with_a_gradient_of_zero():
    band = dominant(randn(4, 3, 7))
    band[1, :, 3] = 0  # a row of zeros
    band[2] = torch.tensor([1.0, 2.0, 1.0])[:, None]
    band[2, 1, [0, -1]] = 1  # rows that add up to zero, up to signs
    band.requires_grad_()
    b = randn(4, 7, seed=1)
    with pytest.warns(ConvergenceWarning, match="2 x STALLED"):
        found = banded_solve(band, b, solution=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.STALLED, Status.CONVERGED]
    assert found.y[1:3].isnan().all() and found.y[[0, 3]].isfinite().all()
    (g,) = torch.autograd.grad(found.y.sum(), band)
    assert g.isfinite().all() and not g[1:3].any() and g[[0, 3]].any()
    with pytest.raises(SolveError, match="STALLED"):
        banded_solve(band, b, on_failure="raise")


# Shapes and dtypes


def test_batch_axes_broadcast_and_may_be_empty():
    band, b = dominant(randn(1, 3, 6)), randn(4, 5, 6, seed=1)
    y = banded_solve(band[None], b)
    assert y.shape == (4, 5, 6)
    torch.testing.assert_close(y[1, 2], banded_solve(band[0], b[1, 2]), rtol=1e-13, atol=1e-14)
    columns = banded_solve(band[0], b.flatten(0, 1).mT)
    torch.testing.assert_close(columns.mT.reshape(4, 5, 6), y, rtol=1e-12, atol=1e-13)
    assert banded_solve(band[:0], b[0, :0]).shape == (0, 6)
    lower, diagonal, upper = band[0, 0, 1:], band[:, 1], band[0, 2, :-1]
    torch.testing.assert_close(tridiagonal_solve(lower, diagonal, upper, b[0]), y[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_dtypes_follow_the_data(dtype, tolerance):
    band, b = dominant(randn(2, 3, 50)).to(dtype).requires_grad_(), randn(2, 50, seed=1).to(dtype)
    y = banded_solve(band, b)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), banded_solve(band.double(), b.double()), rtol=tolerance, atol=tolerance)
    assert torch.autograd.grad(y.sum(), band)[0].dtype == dtype


def test_a_large_float32_system_keeps_its_fast_method_exact():
    band, b = dominant(randn(1, 3, 100_000)).float(), randn(1, 100_000, seed=1).float()
    found = banded_solve(band, b, solution=True)
    assert found.status.item() == 0 and found.stationarity < 1e-6
    torch.testing.assert_close(found.y.double(), banded_solve(band.double(), b.double()), rtol=1e-5, atol=1e-6)


def test_calls_leave_records():
    band, b = dominant(randn(3, 3, 6)), randn(3, 6, seed=1)
    with ddn.diagnostics() as seen:
        vmap(banded_solve)(band, b)
        tridiagonal_solve(band[0, 0, 1:], band[0, 1], band[0, 2, 1:], b[0])
    assert [record.call for record in seen.records] == ["banded_solve", "tridiagonal_solve"]
    assert [record.statuses for record in seen.records] == [{"CONVERGED": 3}, {"CONVERGED": 1}]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"band": 1.0}, "(band=...)` must be a tensor"),
        (
            {"band": torch.ones(2, 4)},
            "(band=...)` must have shape (*B, 2 w + 1, n) with n >= 1, got (2, 4). Pad the side",
        ),
        ({"band": torch.ones(3, 0)}, "(band=...)` must have shape (*B, 2 w + 1, n) with n >= 1, got (3, 0)."),
        ({"b": torch.ones(5)}, "(b=...)` must have shape (*B, 4) or (*B, 4, k)"),
        ({"b": torch.ones(4, dtype=DOUBLE)}, "(b=...)` must have the dtype of band"),
        ({"on_failure": "explode"}, "got 'explode'."),
        ({"solution": 1}, "(solution=...)` must be True or False, got 1."),
    ],
)
def test_mistakes_are_told(changes, message):
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        banded_solve(**{"band": torch.ones(3, 4), "b": torch.ones(4), **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"diagonal": torch.ones(0)}, "(diagonal=...)` must have at least one row"),
        ({"lower": torch.ones(4)}, "(lower=...)` must have shape (*B, 3) beside a diagonal of 4"),
        ({"upper": torch.ones(3, dtype=DOUBLE)}, "(upper=...)` must have shape (*B, 3) beside a diagonal of 4"),
        ({"lower": torch.ones(2, 3), "upper": torch.ones(5, 3)}, "(diagonal=...)` must have batch axes that broadcast"),
        ({"b": 3}, "(b=...)` must be a tensor"),
    ],
)
def test_mistakes_of_the_diagonals_are_told(changes, message):
    off = torch.ones(3)
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        tridiagonal_solve(**{"lower": off, "diagonal": torch.ones(4), "upper": off, "b": torch.ones(4), **changes})
