"""The soft choice of k out of m: closed forms, bisection, general solvers, limits, and numbers of any size.

Modes of differentiation, batches and failures are looked at with those of the projections.
"""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from problems import randn

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import InvalidInputError
from torchddn.status import Status

D = torch.float64
SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=20)


def by_bisection(x, k, gamma=1.0):
    low, high = x.amin(dim=1, keepdim=True) - 100 / gamma, x.amax(dim=1, keepdim=True) + 100 / gamma
    for _ in range(200):
        tau = (low + high) / 2
        large = torch.sigmoid(gamma * (x - tau)).sum(dim=1, keepdim=True) > k
        low, high = torch.where(large, tau, low), torch.where(large, high, tau)
    return torch.sigmoid(gamma * (x - low))


# Answers


@pytest.mark.parametrize("m", [1, 2, 7, 300])
@pytest.mark.parametrize("share", [1e-30, 0.1, 0.5, 0.7, 1 - 1e-9])
def test_equal_scores_share_equally(m, share):
    for level in (0.0, -3e8, 1e-9):
        y = F.soft_top_k(torch.full((2, m), level, dtype=D), share * m, gamma=7.0)
        torch.testing.assert_close(y, torch.full((2, m), share, dtype=D), rtol=1e-13, atol=0)


def test_two_scores_are_a_sigmoid_of_their_difference():
    apart = torch.tensor([0.0, 1e-9, 0.3, 5.0, 80.0, 600.0], dtype=D)
    y = F.soft_top_k(torch.stack([apart, torch.zeros(6, dtype=D)], dim=1), 1, gamma=2.0)
    torch.testing.assert_close(y[:, 0], torch.sigmoid(apart), rtol=1e-14, atol=0)
    torch.testing.assert_close(y[:, 1], torch.sigmoid(-apart), rtol=1e-12, atol=0)


@few
@hypothesis.given(
    seed=SEEDS,
    m=st.integers(1, 200),
    share=st.floats(1e-6, 1 - 1e-6),
    gamma=st.sampled_from([1e-6, 0.1, 1.0, 30.0]),
    ties=st.booleans(),
)
def test_answer_agrees_with_bisection(seed, m, share, gamma, ties):
    x = 3 * torch.randn(3, m, generator=torch.Generator().manual_seed(seed), dtype=D)
    x = x.round() if ties else x
    for k in {share * m, float(round(share * m))} - {0.0, float(m)}:
        found = F.soft_top_k(x, k, gamma, solution=True)
        torch.testing.assert_close(found.y, by_bisection(x, k, gamma), rtol=1e-9, atol=1e-12)
        assert (found.num_steps <= 12).all()
        assert (found.feasibility <= 1e-14 * m).all()


def test_answer_and_derivatives_are_those_of_a_general_problem():
    x, k, gamma = 2 * randn(3, 6), torch.tensor([1.0, 2.5, 4.0], dtype=D), torch.tensor([0.5, 1.0, 3.0], dtype=D)

    def objective(y, x, k, gamma):
        return -(x * y).sum() + (y * y.log() + (1 - y) * (1 - y).log()).sum() / gamma

    def general(x, k, gamma):
        start = torch.full((3, 6), 0.5, dtype=D)
        return ddn.argmin(objective, start, x, k, gamma, equality=lambda y, x, k, gamma: y.sum() - k, bounds=(0, 1))

    inputs = tuple(each.requires_grad_() for each in (x, k, gamma))
    ours, theirs = F.soft_top_k(*inputs), general(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    v = randn(3, 6, seed=1)
    pulled = [torch.autograd.grad((y * v).sum(), inputs) for y in (ours, theirs)]
    torch.testing.assert_close(*pulled, rtol=1e-5, atol=1e-6)


def test_multiplier_satisfies_the_optimality_conditions_and_is_differentiable():
    inputs = (2 * randn(4, 6), torch.tensor([0.2, 2.0, 3.5, 5.9], dtype=D), 0.5 + randn(4, seed=1).abs())
    x, k, gamma = (each.requires_grad_() for each in inputs)
    found = F.soft_top_k(x, k, gamma, solution=True)
    tau = found.equality_multipliers
    assert tau.shape == (4, 1)
    torch.testing.assert_close(found.y.logit() / gamma[:, None], x - tau)
    entropy = torch.special.entr(found.y) + torch.special.entr(1 - found.y)
    torch.testing.assert_close(found.objective, -(x * found.y).sum(dim=1) - entropy.sum(dim=1) / gamma)

    def multiplier(x, k, gamma):
        return F.soft_top_k(x, k, gamma, solution=True).equality_multipliers

    assert torch.autograd.gradcheck(multiplier, (x, k, gamma), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(multiplier, (x, k, gamma))


def test_each_vector_has_its_own_k_and_gamma():
    x, k = randn(2, 3, 5), torch.tensor([1.0, 2.0, 3.5], dtype=D)
    gamma = torch.tensor([[1.0], [4.0]], dtype=D)
    y = F.soft_top_k(x.mT, k, gamma, dim=1).mT
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(y[i, j], F.soft_top_k(x[i, j], k[j].item(), gamma[i, 0].item()))


# Limits


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_large_gamma_is_the_hard_choice(k):
    x = randn(4, 8).requires_grad_()
    hard = torch.zeros(4, 8, dtype=D).scatter_(1, x.topk(k).indices, 1.0)
    for gamma in (1e6, 1e12, 1e300):
        found = F.soft_top_k(x, k, gamma, solution=True)
        torch.testing.assert_close(found.y, hard, rtol=0, atol=0)
        tau = found.equality_multipliers
        assert ((x > tau) == (hard == 1)).all()
        (dx,) = torch.autograd.grad((found.y * randn(4, 8, seed=1)).sum(), x)
        assert (dx == 0).all()


def test_large_gamma_shares_a_fraction_with_the_next():
    x = torch.tensor([3.0, 1.0, 1.0, 0.0], dtype=D)
    y = F.soft_top_k(x, 1.5, 1e9)
    torch.testing.assert_close(y, torch.tensor([1.0, 0.25, 0.25, 0.0], dtype=D), rtol=1e-14, atol=0)


def test_nothing_and_everything_may_be_chosen():
    x, k = randn(3, 4).requires_grad_(), torch.tensor([0.0, 4.0, 2.0], dtype=D, requires_grad=True)
    gamma = torch.ones(3, dtype=D, requires_grad=True)
    found = F.soft_top_k(x, k, gamma, solution=True)
    assert (found.status == Status.CONVERGED).all() and (found.feasibility < 1e-15).all()
    assert (found.y[0] == 0).all() and (found.y[1] == 1).all()
    gradients = torch.autograd.grad((found.y * x.detach().cos()).sum(), (x, k, gamma), create_graph=True)
    for gradient in gradients:
        assert (gradient[:2] == 0).all() and (gradient[2] != 0).all()
    for second in torch.autograd.grad(sum(g.sin().sum() for g in gradients), (x, k, gamma)):
        assert (second[:2] == 0).all() and second.isfinite().all()
    assert (F.soft_top_k(x, 0) == 0).all() and (F.soft_top_k(x, 4) == 1).all()
    assert F.soft_top_k(torch.ones(1), 1).tolist() == [1.0]


def test_derivatives_keep_their_digits_where_the_choice_is_almost_hard():
    # Of two scores: y = sigmoid(gamma (x_1 - x_2) / 2) for k = 1, and both gain half of what k gains.
    for gap in (1.0, 30.0, 80.0, 500.0):
        x = torch.tensor([[gap, 0.0]], dtype=D, requires_grad=True)
        k = torch.ones(1, dtype=D, requires_grad=True)
        y = F.soft_top_k(x, k, 2.0)
        (dx,) = torch.autograd.grad(y[0, 0], x, retain_graph=True)
        w = (torch.sigmoid(x.detach()) * torch.sigmoid(-x.detach()))[0, 0]
        torch.testing.assert_close(dx[0], torch.stack([w, -w]), rtol=1e-12, atol=0)
        for i in range(2):
            (dk,) = torch.autograd.grad(y[0, i], k, retain_graph=True)
            torch.testing.assert_close(dk.item(), 0.5, rtol=1e-12, atol=0)


def test_derivatives_in_a_hard_choice_are_zero_not_nan():
    x = torch.tensor([[5.0, 1.0, -2.0]], dtype=D).requires_grad_()
    k, gamma = (torch.tensor([value], dtype=D, requires_grad=True) for value in (1.0, 1e4))
    y = F.soft_top_k(x, k, gamma)
    first = torch.autograd.grad((y * randn(1, 3)).sum(), (x, k, gamma), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (x, k, gamma))
    assert all((g == 0).all() for g in (*first, *second))


# Numbers of any size


@few
@hypothesis.given(
    seed=SEEDS,
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e8]),
    gamma=st.sampled_from([1e-8, 1.0, 1e3, 1e12]),
    m=st.integers(1, 12),
    ties=st.booleans(),
)
def test_sums_and_derivatives_are_right_for_any_scale(seed, scale, gamma, m, ties):
    x = torch.randn(4, m, generator=torch.Generator().manual_seed(seed), dtype=D)
    x = scale * (x.round() if ties else x)
    x[3] = scale
    for dtype in (torch.float32, torch.float64):
        at = x.to(dtype).requires_grad_()
        for k in {0.3, m / 2, m - 0.01, m // 2}:
            found = F.soft_top_k(at, k, gamma, solution=True)
            assert (found.feasibility <= 8 * m * torch.finfo(dtype).eps).all()
            assert (found.y >= 0).all() and (found.y <= 1).all()
            # The larger score has the larger share.
            order = at.detach().argsort(dim=1)
            assert (found.y.detach().gather(1, order).diff(dim=1) >= 0).all()
            (dx,) = torch.autograd.grad((found.y * at.detach().sign()).sum(), at)
            assert dx.isfinite().all()
            assert (dx.sum(dim=1).abs() <= 1e2 * torch.finfo(dtype).eps * gamma).all()


def test_offset_of_the_scores_costs_no_digits():
    x = torch.randint(-8, 8, (4, 20), generator=torch.Generator().manual_seed(0)).double() / 8
    for offset in (2.0**20, -(2.0**40)):
        torch.testing.assert_close(F.soft_top_k(x + offset, 3.5, 5.0), F.soft_top_k(x, 3.5, 5.0), rtol=1e-14, atol=0)
    x = x.float()
    torch.testing.assert_close(F.soft_top_k(x + 2.0**14, 3, 5.0), F.soft_top_k(x, 3, 5.0), rtol=1e-5, atol=0)


def test_far_outliers_do_not_disturb_the_choice_of_others():
    x = randn(3, 6)
    far = torch.cat([torch.full((3, 1), 1e12, dtype=D), x, torch.full((3, 1), -1e12, dtype=D)], dim=1)
    y = F.soft_top_k(far, 3.5)
    torch.testing.assert_close(y[:, 1:-1], F.soft_top_k(x, 2.5), rtol=1e-13, atol=0)
    assert (y[:, 0] == 1).all() and (y[:, -1] == 0).all()
    gamma = torch.ones(3, dtype=D, requires_grad=True)
    pulled = [
        torch.autograd.grad(F.soft_top_k(*both, gamma).square().sum(), gamma)[0] for both in ((far, 3.5), (x, 2.5))
    ]
    torch.testing.assert_close(*pulled, rtol=1e-10, atol=0)
    extreme = torch.tensor([1.7e308, -1.7e308, 1.0, 2.0], dtype=D)
    torch.testing.assert_close(F.soft_top_k(extreme, 2, 1e200), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=D))


def test_float32_is_as_near_as_its_digits():
    x, k = randn(8, 100), 1 + 50 * randn(8, seed=1).abs().clamp(max=1.9)
    for gamma in (0.1, 1.0, 20.0):
        y = F.soft_top_k(x.float(), k.float(), gamma)
        torch.testing.assert_close(
            y.double(), F.soft_top_k(x.float().double(), k.float().double(), gamma), rtol=0, atol=1e-6
        )


# Modules


def test_module_learns_gamma_and_k():
    x, k = randn(3, 5).float(), torch.nn.Parameter(torch.tensor(2.0))
    module = nn.SoftTopK(k, 2.0, learnable_gamma=True)
    assert sorted(dict(module.named_parameters())) == ["k", "scale.log"]
    torch.testing.assert_close(module(x), F.soft_top_k(x, 2, 2.0))
    module(x).square().sum().backward()
    assert k.grad.isfinite() and module.scale.log.grad > 0
    assert (
        repr(module)
        == "SoftTopK(\n  k=tensor of shape (), gamma=2, learnable_gamma=True, dim=-1\n  (scale): Scale()\n)"
    )


def test_wrong_k_is_told_under_vmap():
    for wrong in (-1.0, math.nan, 5.5):
        with pytest.raises(InvalidInputError, match=r"soft_top_k\(k=...\)"):
            torch.func.vmap(F.soft_top_k)(randn(2, 5), torch.tensor([1.0, wrong]))
