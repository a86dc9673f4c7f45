"""Total variation and isotonic regression: optimality, other libraries, and derivatives on segments."""

import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from problems import randn
from torch.func import grad, jvp, vjp, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import ConvergenceWarning, InvalidInputError
from torchddn.functional.projection import segments as _segments
from torchddn.status import Status

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=15)


def drawn(kind: str, seed: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors ``(4, m)`` and strengths ``(4, m - 1)`` of a kind."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, m, generator=generator, dtype=torch.float64)
    s = 2 * torch.rand(4, m - 1, generator=generator, dtype=torch.float64)
    line = torch.arange(m, dtype=torch.float64)
    return {
        "noise": (x, s),
        "walk": (x.cumsum(dim=1), 10 * s),
        "ties": (x.round(), s.round()),
        "line": (line + 0 * x, s),
        "outlier": (line - 1e3 * torch.eye(1, m, dtype=torch.float64).flip(1) + x, s),
        "far away": (x + 1e6, 100 * s),
        "series": (x * 2 ** line.clamp(max=30), 1e3 * s),
    }[kind]


KINDS = ["noise", "walk", "ties", "line", "outlier", "far away", "series"]


# Total variation


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 80), kind=st.sampled_from(KINDS))
def test_answers_satisfy_the_conditions_of_optimality(seed, m, kind):
    x, s = drawn(kind, seed, m)
    found = F.total_variation(x, s, solution=True)
    assert (found.status == Status.CONVERGED).all()
    assert (found.stationarity <= 1e-12 * (1 + x.abs().amax(dim=1))).all()


@pytest.mark.parametrize("kind", ["noise", "walk", "ties"])
def test_answers_are_those_of_a_conic_solver(kind):
    cp = pytest.importorskip("cvxpy")
    x, s = drawn(kind, 0, 30)
    for row, strength, y in zip(x.numpy(), s.numpy(), F.total_variation(x, s).numpy(), strict=True):
        z = cp.Variable(30)
        objective = cp.sum_squares(z - row) / 2 + strength @ cp.abs(cp.diff(z))
        cp.Problem(cp.Minimize(objective)).solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(y, z.value, atol=1e-6)


def test_a_strong_penalty_gives_the_mean_and_none_gives_x():
    x = randn(3, 9)
    torch.testing.assert_close(F.total_variation(x, 1e6), x.mean(dim=1, keepdim=True).expand(3, 9))
    torch.testing.assert_close(F.total_variation(x, 0.0), x)
    cut = torch.full((8,), 1e6, dtype=torch.float64)
    cut[4] = 0
    halves = [half.mean(dim=1, keepdim=True).expand_as(half) for half in x.split((5, 4), dim=1)]
    torch.testing.assert_close(F.total_variation(x, cut), torch.cat(halves, dim=1))


def test_two_numbers_approach_each_other_until_they_meet():
    x = torch.tensor([0.0, 3.0], dtype=torch.float64)
    s = torch.tensor([[0.0], [1.0], [1.5], [7.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 3.0], [1.0, 2.0], [1.5, 1.5], [1.5, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(F.total_variation(x.expand(4, 2), s), expected)


def test_gradient_averages_over_segments():
    x = torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: F.total_variation(x, 1.0), x)
    expected = torch.block_diag(*(torch.full((k, k), 1 / k, dtype=torch.float64) for k in (1, 2, 2)))
    torch.testing.assert_close(jacobian, expected)
    slope = torch.autograd.functional.jacobian(lambda s: F.total_variation(x, s), torch.ones(4, dtype=torch.float64))
    pulled = torch.zeros(5, 4, dtype=torch.float64)
    pulled[0, 0], pulled[1:3, 0], pulled[1:3, 2], pulled[3:, 2] = 1, -0.5, 0.5, -0.5
    torch.testing.assert_close(slope, pulled)


def test_gradients_of_total_variation_are_exact_in_every_mode():
    x, s = randn(3, 8).requires_grad_(), (0.1 + randn(3, 7, seed=1).abs() / 3).requires_grad_()
    assert 1 < (F.total_variation(x, s).diff(dim=1) == 0).sum() < 20
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(F.total_variation, (x, s), **modes)
    tangents = randn(3, 8, seed=2), randn(3, 7, seed=3)
    _, dy = jvp(F.total_variation, (x.detach(), s.detach()), tangents)
    v = randn(3, 8, seed=4)
    pulled = vjp(F.total_variation, x.detach(), s.detach())[1](v)
    torch.testing.assert_close((v * dy).sum(), sum((g * t).sum() for g, t in zip(pulled, tangents, strict=True)))


def test_vmap_is_a_loop_and_axes_are_as_told():
    x, s = randn(4, 3, 7), randn(4, 3, 6, seed=1).abs() / 2
    y = F.total_variation(x, s)
    torch.testing.assert_close(vmap(F.total_variation)(x, s), y)
    loop = [F.total_variation(*pair) for pair in zip(x[:, 0], s[:, 0], strict=True)]
    torch.testing.assert_close(torch.stack(loop), y[:, 0])
    torch.testing.assert_close(F.total_variation(x.movedim(2, 0), s.movedim(2, 0), dim=0).movedim(0, 2), y)
    each = s[:, :, :1]
    torch.testing.assert_close(F.total_variation(x, each), F.total_variation(x, each.expand(4, 3, 6)))


@few
@hypothesis.given(seed=SEEDS)
def test_batch_items_do_not_interact(seed):
    x, s = drawn("noise", seed, 40)
    x[1] *= 1e4
    whole = F.total_variation(x, s, solution=True)
    for i in range(4):
        alone = F.total_variation(x[i], s[i], solution=True)
        torch.testing.assert_close(whole.y[i], alone.y, rtol=1e-12, atol=1e-11)
        assert whole.num_steps[i] == alone.num_steps


def test_few_rounds_are_enough_for_long_vectors():
    x = randn(2, 20_000).cumsum(dim=1)
    found = F.total_variation(x, 3.0, solution=True)
    assert (found.num_steps < 30).all()
    assert (found.stationarity < 1e-9).all()


def test_a_vector_that_is_not_finite_spoils_only_itself():
    x, s = randn(3, 6), torch.tensor(0.3, dtype=torch.float64)
    expected, slope = F.total_variation(x, s), grad(lambda x: F.total_variation(x, s).pow(3).sum())(x)
    x[1, 2] = math.nan
    with pytest.warns(ConvergenceWarning, match=r"`total_variation`: 1 of 3 items .* NON_FINITE"):
        y = F.total_variation(x, s)
    assert y[1].isnan().all()
    torch.testing.assert_close(y[[0, 2]], expected[[0, 2]])
    found = grad(lambda x: F.total_variation(x, s, on_failure="ignore").pow(3).sum())(x)
    torch.testing.assert_close(found[[0, 2]], slope[[0, 2]])
    assert (found[1] == 0).all()


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_lower_precision_returns_its_dtype(dtype, atol):
    x = randn(3, 50).cumsum(dim=1)
    for call in (lambda x: F.total_variation(x, 0.5), lambda x: F.isotonic_regression(x, 2.0)):
        y = call(x.to(dtype).requires_grad_())
        assert y.dtype == dtype
        torch.testing.assert_close(y.detach().double(), call(x.to(dtype).double()), rtol=0, atol=20 * atol)


@pytest.mark.parametrize("call", [F.total_variation, F.isotonic_regression])
def test_empty_batches_and_single_numbers(call):
    assert call(torch.zeros(0, 4)).shape == (0, 4)
    x = randn(3, 1)
    torch.testing.assert_close(call(x), x)


# Isotonic regression


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 70), kind=st.sampled_from(KINDS[:5]))
def test_isotonic_agrees_with_scikit_learn(seed, m, kind):
    isotonic = pytest.importorskip("sklearn.isotonic").isotonic_regression
    x, _ = drawn(kind, seed, m)
    w = 0.01 + 3 * torch.rand(4, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = zip(x.numpy(), w.numpy(), strict=True)
    expected = torch.tensor(np.stack([isotonic(row, sample_weight=weight) for row, weight in rows])).reshape(4, m)
    tolerance = {"rtol": 1e-11, "atol": 1e-11 * (1 + x.abs().max().item())}
    torch.testing.assert_close(F.isotonic_regression(x, w), expected, **tolerance)
    torch.testing.assert_close(F.isotonic_regression(-x, w, increasing=False), -expected, **tolerance)
    torch.testing.assert_close(_segments._merged(x, w), expected, **tolerance)


def test_equal_weights_change_nothing():
    x = randn(5, 12)
    torch.testing.assert_close(F.isotonic_regression(x, 7.0), F.project_monotone(x))
    torch.testing.assert_close(F.isotonic_regression(x), F.project_monotone(x), rtol=0, atol=0)
    torch.testing.assert_close(F.isotonic_regression(x.T, 7.0, dim=0).T, F.project_monotone(x))


def test_long_chains_with_weights_are_merged_by_halves():
    x = torch.arange(2000, dtype=torch.float64)
    x[-1] = -1e6
    w = torch.ones_like(x)
    w[-1] = 3.0
    found = F.isotonic_regression(x, w, solution=True)
    torch.testing.assert_close(found.y, ((w * x).sum() / w.sum()).expand(2000))
    assert found.num_steps == _segments._NUM_ROUNDS + 11


def test_gradients_of_isotonic_regression_are_exact_in_every_mode():
    x, w = randn(3, 7).requires_grad_(), (0.3 + randn(3, 7, seed=1).abs()).requires_grad_()
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(F.isotonic_regression, (x, w), **modes)
    assert torch.autograd.gradgradcheck(F.isotonic_regression, (x, w), check_fwd_over_rev=True, check_batched_grad=True)


def test_weights_and_numbers_that_count_more_are_the_same_as_repeated_ones():
    x = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    y = F.isotonic_regression(x, torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    repeated = F.project_monotone(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(y, repeated[:3])


def test_multipliers_of_isotonic_regression_certify_the_answer():
    x, w = randn(4, 9), 0.5 + randn(4, 9, seed=1).abs()
    found = F.isotonic_regression(x, w, solution=True)
    lam = torch.nn.functional.pad(found.inequality_multipliers, (1, 1))
    torch.testing.assert_close(w * (found.y - x) + lam.diff(dim=1), torch.zeros_like(x), rtol=0, atol=1e-12)
    assert (found.feasibility == 0).all()
    torch.testing.assert_close(found.objective, (w * (found.y - x).square()).sum(dim=1) / 2)


# Modules and mistakes


def test_modules_are_the_functions():
    x, w = randn(2, 6), 0.5 + randn(2, 6, seed=1).abs()
    denoise, fit = nn.TotalVariation(0.4), nn.IsotonicRegression(increasing=False)
    torch.testing.assert_close(denoise(x), F.total_variation(x, 0.4))
    torch.testing.assert_close(fit(x, w), F.isotonic_regression(x, w, increasing=False))
    assert (denoise.solve(x).status == fit.solve(x).status).all()
    assert repr(denoise) == "TotalVariation(\n  strength=0.4, dim=-1\n  (scale): Scale()\n)"
    assert repr(fit) == "IsotonicRegression(increasing=False, dim=-1)"
    for module in (denoise, fit):
        module.on_failure = "raise"
        with pytest.raises(ddn.SolveError):
            module(x * math.nan)


def test_a_strength_is_learned():
    denoise = nn.TotalVariation(0.1, learnable_strength=True)
    x = torch.tensor([0.0, 0.3, 1.0, 1.4])
    before = denoise(x).diff().abs().sum()
    before.backward()
    assert denoise.scale.log.grad < 0


X = torch.zeros(2, 3)
MISTAKES = [
    (lambda: F.total_variation(X, torch.ones(3)),
     "`total_variation(strength=...)` must have a shape that broadcasts to (2, 2), got (3,). Reshape it, or pass one "
     "number for all."),
    (lambda: F.total_variation(X, -0.5), "`total_variation(strength=...)` must be non-negative and finite, got -0.5."),
    (lambda: F.total_variation(X, math.inf),
     "`total_variation(strength=...)` must be non-negative and finite, got inf."),
    (lambda: F.total_variation(X[:, :0]),
     "`total_variation(x=...)` must have coordinates along dim=-1, got shape (2, 0)."),
    (lambda: F.isotonic_regression(X, 0.0), "`isotonic_regression(weights=...)` must be positive and finite, got 0.0."),
    (lambda: F.isotonic_regression(X, torch.tensor([1.0, -1.0, 0.0])),
     "`isotonic_regression(weights=...)` must be positive and finite, got -1.0 among its entries."),
    (lambda: F.isotonic_regression(X, increasing="up"),
     "`isotonic_regression(increasing=...)` must be True or False, got 'up'."),
    (lambda: nn.TotalVariation(0.0), "`TotalVariation(strength=...)` must be positive and finite, got 0.0."),
]  # fmt: skip


@pytest.mark.parametrize("call, message", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told(call, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        call()
