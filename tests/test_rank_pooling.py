"""Rank pooling: support vector regressions of the time, exact in every loss, with exact gradients."""

import re

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVR
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.functional import rank_pooling

D = torch.float64
LOSSES = {"squared": {}, "linear": {"loss": "linear"}, "smoothed": {"loss": "linear", "smoothing": 0.5}}
losses = pytest.mark.parametrize("loss", LOSSES)


def sequences(B: int, T: int, m: int, seed: int = 0) -> Tensor:
    """Frames that drift."""
    noise = torch.randn(B, T, m, dtype=D, generator=torch.Generator().manual_seed(seed))
    return 0.5 * noise + 0.2 * torch.arange(T, dtype=D).unsqueeze(1) / T**0.5


def by_cvxpy(x: Tensor, C: float, epsilon: float, loss: str) -> tuple[Tensor, float]:
    u = cp.Variable(x.shape[1])
    over = cp.pos(cp.abs(np.arange(1, len(x) + 1) - x.numpy() @ u) - epsilon)
    cost = {"squared": cp.sum_squares(over) / 2, "linear": cp.sum(over), "smoothed": cp.sum(cp.huber(over, 0.5))}
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u) / 2 + C * cost[loss]))
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return torch.from_numpy(u.value), problem.value


@losses
@pytest.mark.parametrize("T, m", [(6, 3), (4, 9), (20, 5)])
@pytest.mark.parametrize("C", [0.3, 30.0])
def test_the_answer_is_that_of_cvxpy(loss, T, m, C):
    X = sequences(2, T, m)
    found = rank_pooling(X, C, 0.2, solution=True, **LOSSES[loss])
    for x, y, objective in zip(X, found.y, found.objective, strict=True):
        expected, value = by_cvxpy(x, C, 0.2, loss)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
        assert objective.item() == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("loss", ["squared", "linear"])
def test_the_answer_is_that_of_scikit_learn(loss):
    x, prefix = sequences(1, 8, 3)[0], "squared_" if loss == "squared" else ""
    # Its squared loss is not halved.
    theirs = LinearSVR(
        C=0.5 if loss == "squared" else 1.0,
        epsilon=0.3,
        loss=f"{prefix}epsilon_insensitive",
        fit_intercept=False,
        dual=True,
        tol=1e-12,
        max_iter=1_000_000,
        random_state=0,
    ).fit(x.numpy(), np.arange(1.0, 9.0))
    y = rank_pooling(x, 1.0, 0.3, loss=loss)
    torch.testing.assert_close(y, torch.from_numpy(theirs.coef_), rtol=1e-4, atol=1e-5)


def test_without_a_tube_the_squared_loss_is_ridge_regression():
    x, times = sequences(1, 7, 3)[0], torch.arange(1, 8, dtype=D)
    expected = torch.linalg.solve(torch.eye(3, dtype=D) + 2.0 * x.mT @ x, 2.0 * x.mT @ times)
    torch.testing.assert_close(rank_pooling(x, 2.0, 0.0), expected)


def test_a_large_price_is_no_reason_to_give_up():
    x, times = sequences(1, 40, 4)[0], torch.arange(1, 41, dtype=D)
    found = rank_pooling(x, 1e6, 0.0, solution=True)
    expected = torch.linalg.solve(torch.eye(4, dtype=D) + 1e6 * x.mT @ x, 1e6 * x.mT @ times)
    assert found.status == ddn.Status.CONVERGED
    torch.testing.assert_close(found.y, expected, rtol=0, atol=1e-6)  # C times a rounding


def test_the_multipliers_make_the_answer():
    X = sequences(2, 7, 3)
    found = rank_pooling(X, 2.0, 0.3, solution=True)
    a = found.equality_multipliers
    torch.testing.assert_close((a.unsqueeze(1) @ X).squeeze(1), found.y)
    residual = torch.arange(1, 8, dtype=D) - (X @ found.y.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(a, 2.0 * residual.sign() * (residual.abs() - 0.3).clamp(min=0))


def test_little_smoothing_is_almost_none():
    X = sequences(3, 8, 3)
    exact = rank_pooling(X, 2.0, loss="linear")
    torch.testing.assert_close(rank_pooling(X, 2.0, loss="linear", smoothing=1e-7), exact, rtol=1e-5, atol=1e-6)


@losses
@pytest.mark.parametrize("T, m", [(5, 2), (3, 5)])
def test_derivatives(loss, T, m):
    def pooled(X, C, epsilon):
        return rank_pooling(X, C, epsilon, **LOSSES[loss])

    C, epsilon = torch.tensor([0.5, 3.0], dtype=D), torch.tensor([0.2, 0.4], dtype=D)
    inputs = [x.requires_grad_() for x in (sequences(2, T, m), C, epsilon)]
    assert gradcheck(pooled, inputs, check_forward_ad=True)
    assert gradgradcheck(pooled, inputs)


@pytest.mark.parametrize("frames", ["mean", "unit mean"])
def test_means_of_the_frames_so_far(frames):
    X = sequences(2, 6, 3)
    means = torch.stack([X[:, : t + 1].mean(1) for t in range(6)], dim=1)
    if frames == "unit mean":
        means = torch.nn.functional.normalize(means, dim=2)
    torch.testing.assert_close(rank_pooling(X, frames=frames), rank_pooling(means))
    leaf = X.requires_grad_()
    assert gradcheck(lambda X: rank_pooling(X, frames=frames), leaf)


def test_a_mean_of_zero_has_gradient_zero():
    X = torch.zeros(4, 3, dtype=D, requires_grad=True)
    y = rank_pooling(X, frames="unit mean")
    assert (y == 0).all()
    assert (torch.autograd.grad(y.sum(), X)[0] == 0).all()


@losses
@pytest.mark.parametrize("frames", ["as given", "mean", "unit mean"])
def test_a_masked_sequence_is_the_short_one(loss, frames):
    X, options = sequences(2, 7, 3), {"frames": frames, **LOSSES[loss]}
    mask = torch.tensor([[True] * 7, [True, True, False, True, True, False, False]])
    X = torch.where(mask.unsqueeze(2), X, torch.nan).requires_grad_()
    y = rank_pooling(X, mask=mask, **options)
    short = X.detach()[1, mask[1]].requires_grad_()
    expected = rank_pooling(short, **options)
    torch.testing.assert_close(y[1], expected)
    torch.testing.assert_close(y[0], rank_pooling(X.detach()[0], **options))
    (ours,) = torch.autograd.grad(y.sin().sum(), X)
    torch.testing.assert_close(ours[1, mask[1]], torch.autograd.grad(expected.sin().sum(), short)[0])
    assert (ours[~mask] == 0).all()


def test_a_sequence_without_frames_is_zero():
    assert (rank_pooling(sequences(1, 4, 2), mask=torch.zeros(4, dtype=torch.bool)) == 0).all()


@losses
def test_a_poisoned_item_harms_nobody(loss):
    X = sequences(4, 6, 3)
    bad = X.clone()
    bad[1, 2, 0] = torch.inf
    bad.requires_grad_()
    with pytest.warns(ddn.ConvergenceWarning, match="1 of 4 items"):
        y = rank_pooling(bad, **LOSSES[loss])
    rest = [0, 2, 3]
    assert y[1].isnan().all()
    torch.testing.assert_close(y[rest], rank_pooling(X, **LOSSES[loss])[rest], rtol=1e-12, atol=1e-13)
    (gradient,) = torch.autograd.grad(y.nansum(), bad)
    assert gradient.isfinite().all() and (gradient[1] == 0).all()


@losses
def test_items_alone_or_mapped_are_those_of_the_batch(loss):
    X, options = sequences(5, 6, 3), LOSSES[loss]
    found = rank_pooling(X, solution=True, **options)
    alone = [rank_pooling(x, solution=True, **options) for x in X]
    torch.testing.assert_close(found.y, torch.stack([one.y for one in alone]), rtol=1e-12, atol=1e-13)
    assert found.num_steps.tolist() == [one.num_steps.item() for one in alone]
    gradient = torch.func.grad(lambda x: rank_pooling(x, **options).sin().sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(X), torch.stack([gradient(x) for x in X]))


@losses
def test_single_precision_agrees(loss):
    X = sequences(3, 6, 3)
    single, double = X.float().requires_grad_(), X.clone().requires_grad_()
    y, expected = (rank_pooling(x, **LOSSES[loss]) for x in (single, double))
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-4)
    (ours,), (theirs,) = (torch.autograd.grad(y.sin().sum(), x) for y, x in ((y, single), (expected, double)))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-3)


def test_shapes_and_empty_batches():
    assert rank_pooling(sequences(6, 4, 2).reshape(2, 3, 4, 2)).shape == (2, 3, 2)
    assert rank_pooling(torch.zeros(0, 4, 2)).shape == (0, 2)
    assert rank_pooling(torch.zeros(0, 4, 2), loss="linear").shape == (0, 2)
    assert rank_pooling(sequences(1, 4, 2)[0].half()).dtype == torch.float16


WRONG = {
    "no frames": ({"sequence": torch.ones(0, 3)}, "must have frames and features"),
    "a negative tube": ({"epsilon": -0.1}, "(epsilon=...)` must be finite and not negative, got -0.1."),
    "a NaN tube": ({"epsilon": torch.tensor(float("nan"))}, "must be finite and not negative, got nan"),
    "a loss that does not exist": ({"loss": "huber"}, "must be one of 'squared', 'linear'"),
    "smoothing what is smooth": ({"smoothing": 1.0}, "belongs to `loss='linear'`"),
    "negative smoothing": ({"loss": "linear", "smoothing": -1.0}, "(smoothing=...)` must be a number in [0"),
    "a mask of numbers": ({"mask": torch.ones(4)}, "must be a tensor of bool"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        rank_pooling(**{"sequence": torch.ones(4, 3), **changes})


def test_the_module_holds_what_the_function_takes_and_learns_it():
    X = sequences(2, 6, 3)
    pool = ddn.nn.RankPooling(0.5, torch.nn.Parameter(torch.tensor(0.2)), frames="mean", learnable_C=True).double()
    torch.testing.assert_close(pool(X), rank_pooling(X, 0.5, pool.epsilon.detach(), frames="mean"))
    pool(X).sum().backward()
    assert pool.C.log.grad.abs() > 0 and pool.epsilon.grad.abs() > 0
    assert "frames=mean" in repr(pool)
