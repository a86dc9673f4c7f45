"""Robust pooling in many coordinates, where distances come from matrix products: as exact as in few."""

import pytest
import torch

from torchddn import penalties
from torchddn.functional import robust_vector_pool
from torchddn.status import Status

PENALTIES = ["pseudo_huber", "huber", "welsch", "truncated_quadratic"]

every_penalty = pytest.mark.parametrize("penalty", PENALTIES)


def clusters(batch=3, n=150, m=40, dtype=torch.float64):
    """Points around one place, and a third of them around another."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n, m, generator=generator, dtype=torch.float64)
    x[:, ::3] += 20
    return x.to(dtype)


def gradient(x, penalty, alpha, weights=None, v=1.0):
    x = x.clone().requires_grad_()
    y = robust_vector_pool(x, penalty, alpha, weights=weights)
    return y.detach(), torch.autograd.grad((v * y).sum(), x)[0]


@every_penalty
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [30, 150])
def test_coordinates_that_are_all_zero_change_nothing(penalty, weighted, n):
    x = clusters(n=n, m=10)
    weights = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1), dtype=x.dtype) if weighted else None
    y, dx = gradient(x, penalty, 4.0, weights)
    y_wide, dx_wide = gradient(torch.nn.functional.pad(x, (0, 30)), penalty, 4.0, weights)
    torch.testing.assert_close(y_wide[:, :10], y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dx_wide[..., :10], dx, rtol=1e-7, atol=1e-9)


@every_penalty
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e4, 1e8])
def test_any_scale_of_float32_is_the_same_problem(penalty, scale):
    x = clusters(dtype=torch.float32)
    unscaled = robust_vector_pool(x.double(), penalty, 8.0)
    y = robust_vector_pool((x.double() * scale).float(), penalty, 8.0 * scale)
    torch.testing.assert_close(y.double() / scale, unscaled, rtol=2e-5, atol=2e-5)


@every_penalty
@pytest.mark.parametrize("outlier", [1e3, 1e8])
def test_inliers_far_from_the_mean_are_resolved(penalty, outlier):
    x = clusters(m=32)
    x[:, ::10] += outlier
    alpha = 12.0
    exact = robust_vector_pool(x, penalty, alpha)
    y = robust_vector_pool(x.float(), penalty, alpha)
    kind, r = penalties.get(penalty), exact.unsqueeze(1) - x
    pull = (kind.kappa1(r.norm(dim=2), alpha).unsqueeze(2) * r).sum(dim=1).norm(dim=1)
    assert (pull <= 1e-9 * x.shape[1] * alpha).all()
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-5)


@every_penalty
def test_gradients_in_alpha_and_weights_are_those_of_differences(penalty):
    x, alpha = clusters(batch=2, m=32), torch.tensor([4.0, 9.0], dtype=torch.float64)
    weights = 0.5 + torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    alpha.requires_grad_()
    weights.requires_grad_()

    def total(alpha, weights):
        return robust_vector_pool(x, penalty, alpha, weights=weights).sum()

    dalpha, dweights = torch.autograd.grad(total(alpha, weights), (alpha, weights))
    h, one = 1e-5, torch.zeros_like(weights)
    one[:, 7] = 1
    with torch.no_grad():
        by_alpha = (total(alpha + h, weights) - total(alpha - h, weights)) / (2 * h)
        by_weights = (total(alpha, weights + h * one) - total(alpha, weights - h * one)) / (2 * h)
    torch.testing.assert_close(dalpha.sum(), by_alpha, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dweights[:, 7].sum(), by_weights, rtol=1e-5, atol=1e-7)


@every_penalty
def test_a_large_offset_costs_no_accuracy_of_the_differences(penalty):
    x = clusters()
    _, dx = gradient(x, penalty, 8.0)
    y, dx_moved = gradient(x + 1e6, penalty, 8.0)
    torch.testing.assert_close(y - 1e6, robust_vector_pool(x, penalty, 8.0), rtol=0, atol=1e-8)
    torch.testing.assert_close(dx_moved, dx, rtol=1e-6, atol=1e-9)


@every_penalty
def test_an_item_that_is_not_finite_spoils_only_itself(penalty):
    x = clusters(dtype=torch.float32)
    y, dx = gradient(x, penalty, 8.0)
    x[1, 5, 7] = torch.nan
    found = robust_vector_pool(x, penalty, 8.0, solution=True, on_failure="ignore")
    assert found.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    with pytest.warns(UserWarning, match="robust_vector_pool"):
        y_spoiled, dx_spoiled = gradient(x, penalty, 8.0)
    assert y_spoiled[1].isnan().all()
    assert (dx_spoiled[1] == 0).all()
    torch.testing.assert_close(y_spoiled[::2], y[::2])
    torch.testing.assert_close(dx_spoiled[::2], dx[::2])


@every_penalty
def test_an_item_alone_is_that_item_in_a_batch(penalty):
    x = clusters(batch=5)
    x[2] *= 3
    together = robust_vector_pool(x, penalty, 8.0, solution=True)
    for number, item in enumerate(x):
        alone = robust_vector_pool(item, penalty, 8.0, solution=True)
        torch.testing.assert_close(alone.y, together.y[number], rtol=0, atol=1e-12)
        assert alone.status == together.status[number]
        assert alone.num_steps == together.num_steps[number]


@every_penalty
def test_peak_memory_is_below_three_times_the_points(penalty):
    x = torch.randn(16, 1024, 64, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        robust_vector_pool(x, penalty, 10.0).sum().backward()
    used = peak = 0
    for event in seen.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            used += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, used)
    assert peak <= 3 * x.numel() * x.element_size()
