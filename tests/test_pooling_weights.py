"""Weights and masks of the robust poolings: a weight of two is a point twice, and a masked point is none."""

import re

import pytest
import torch
from torch.func import grad, jvp, vjp, vmap

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, InvalidInputError
from torchddn.functional import robust_pool, robust_vector_pool
from torchddn.functional.pooling.vector import VectorPooling
from torchddn.penalties import Welsch
from torchddn.status import Status

PENALTIES = ["quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic"]
SHAPES = {robust_pool: (7,), robust_vector_pool: (7, 2)}

every_penalty = pytest.mark.parametrize("penalty", PENALTIES)
both_calls = pytest.mark.parametrize("call", SHAPES, ids=lambda call: call.__name__)


def data(call, batch=3, n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, *SHAPES[call][1:], generator=generator, dtype=torch.float64)
    c = 0.2 + torch.rand(batch, n, generator=generator, dtype=torch.float64)
    return x, 0.5 + torch.rand(batch, generator=generator, dtype=torch.float64), c


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@every_penalty
@both_calls
@pytest.mark.parametrize("n", [5, 200])
def test_weight_of_two_is_the_point_twice(call, penalty, n):
    x, alpha, _ = data(call, n=n)
    count = torch.randint(1, 4, (n,), generator=torch.Generator().manual_seed(1))
    repeated = x.repeat_interleave(count, dim=1)
    weighted = call(x, penalty, alpha, weights=count.double(), solution=True)
    plain = call(repeated, penalty, alpha, solution=True)
    exact(weighted.y, plain.y)
    exact(weighted.objective, plain.objective)
    assert (weighted.status == Status.CONVERGED).all()


@every_penalty
@both_calls
@pytest.mark.parametrize("n", [6, 200])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -1e30])
def test_masked_points_are_as_removed(call, penalty, n, junk):
    x, alpha, c = data(call, n=n)
    mask = torch.arange(n) % 3 != 0
    removed, weights = x[:, mask], c[:, mask]
    x[:, ~mask] = junk
    exact(call(x, penalty, alpha, mask=mask), call(removed, penalty, alpha))
    exact(call(x, penalty, alpha, weights=c, mask=mask), call(removed, penalty, alpha, weights=weights))
    x.requires_grad_()
    slope = torch.autograd.grad(call(x, penalty, alpha, mask=mask).square().sum(), x)[0]
    assert (slope[:, ~mask] == 0).all()
    removed.requires_grad_()
    expected = torch.autograd.grad(call(removed, penalty, alpha).square().sum(), removed)[0]
    torch.testing.assert_close(slope[:, mask], expected, rtol=1e-8, atol=1e-9)


@every_penalty
@both_calls
def test_size_of_all_weights_does_not_matter(call, penalty):
    x, alpha, c = data(call)
    y = call(x, penalty, alpha, weights=c)
    exact(call(x, penalty, alpha), call(x, penalty, alpha, weights=torch.ones_like(c)))
    for size in (1e-300, 1e-8, 1e8, 1e300):
        exact(call(x, penalty, alpha, weights=size * c), y)


@every_penalty
@both_calls
def test_gradients_are_exact_in_every_mode(call, penalty):
    x, alpha, c = (t.requires_grad_() for t in data(call, batch=2))
    mask = torch.tensor([[True] * 6 + [False], [True] * 7])

    def pool(x, alpha, c):
        return call(x, penalty, alpha, weights=c, mask=mask)

    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(pool, (x, alpha, c), **modes)
    assert torch.autograd.gradgradcheck(pool, (x, alpha, c), check_fwd_over_rev=True)


@every_penalty
@both_calls
def test_forward_mode_is_the_transpose_of_reverse_mode(call, penalty):
    inputs = data(call)
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def pool(x, alpha, c):
        return call(x, penalty, alpha, weights=c)

    y, dy = jvp(pool, inputs, tangents)[:2]
    v = torch.randn_like(y)
    pulled = vjp(pool, *inputs)[1](v)
    torch.testing.assert_close((v * dy).sum(), sum((g * t).sum() for g, t in zip(pulled, tangents, strict=True)))


@every_penalty
@both_calls
def test_vmap_is_a_loop(call, penalty):
    x, alpha, c = data(call)
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(3)) > 0.3

    def pool(x, alpha, c, mask):
        return call(x, penalty, alpha, weights=c, mask=mask)

    items = list(zip(x, alpha, c, mask, strict=True))
    loop = torch.stack([pool(*item) for item in items])
    exact(pool(x, alpha, c, mask), loop)
    exact(vmap(pool)(x, alpha, c, mask), loop)

    def total(x, alpha, c, mask):
        return pool(x, alpha, c, mask).sum()

    slopes = torch.stack([grad(total, 2)(*item) for item in items])
    exact(vmap(grad(total, 2))(x, alpha, c, mask), slopes)


@every_penalty
@both_calls
def test_item_in_which_nothing_counts_spoils_only_itself(call, penalty):
    x, alpha, c = data(call)
    shared = torch.ones(7, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1] = False
    x.requires_grad_()
    with pytest.warns(ConvergenceWarning, match=r"1 of 3 items did not converge \(items 1; .* 1 x NON_FINITE"):
        y = call(x, penalty, alpha, weights=shared, mask=mask)
    assert y[1].isnan().all()
    exact(y[[0, 2]], call(x[[0, 2]], penalty, alpha[[0, 2]]))
    slopes = torch.autograd.grad(torch.where(y.isnan(), 0, y).sum(), (x, shared))
    assert all(slope.isfinite().all() for slope in slopes)
    assert (slopes[0][1] == 0).all()
    zero = c.clone()
    zero[1] = 0
    assert call(x, penalty, alpha, weights=zero, on_failure="ignore")[1].isnan().all()


@every_penalty
def test_weights_broadcast_as_the_data(penalty):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    c = torch.rand(4, 5, dtype=torch.float64)
    whole = robust_pool(x, penalty, dim=(1, 3), keepdim=True, weights=c)
    assert whole.shape == (2, 1, 4, 1)
    exact(whole, robust_pool(x, penalty, dim=(1, 3), keepdim=True, weights=c.expand(x.shape)))
    alone = robust_pool(x[1, :, 2], penalty, dim=(0, 1), weights=c[2])
    exact(whole[1, 0, 2, 0], alone)
    points = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    c = torch.rand(3, 1, dtype=torch.float64)
    exact(robust_vector_pool(points, penalty, weights=c), robust_vector_pool(points, penalty))


def test_interval_of_weighted_huber_minimizers_gives_its_midpoint():
    x = torch.tensor([-10.0, 8.0, 12.0], dtype=torch.float64)
    y = robust_pool(x, "huber", weights=torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    assert y.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("penalty", ["pseudo_huber", "huber", "welsch"])
@pytest.mark.parametrize(("n", "m"), [(5, 40), (60, 40)])
def test_many_coordinates_have_the_same_gradient_by_every_way_of_solving(penalty, n, m):
    # Conjugate gradients without a graph, factorizations of m x m or n x n matrices with one.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, n, m, generator=generator, dtype=torch.float64).requires_grad_()
    c = torch.rand(3, n, generator=generator, dtype=torch.float64).requires_grad_()
    y = robust_vector_pool(x, penalty, 8.0, weights=c)
    v = torch.randn_like(y)
    fast = torch.autograd.grad(y, (x, c), v, retain_graph=True)
    exact_ones = torch.autograd.grad(y, (x, c), v, create_graph=True)
    for a, b in zip(fast, exact_ones, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-10)
    r = (y - x.movedim(1, 0)).detach()  # (n, 3, m)
    z = r.norm(dim=2)
    penalty = ddn.penalties.get(penalty)
    k1, k2 = (c.detach().T * k for k in (penalty.kappa1(z, 8.0), penalty.kappa2(z, 8.0)))
    H = torch.diag_embed(k1.sum(0)[:, None].expand(3, m)) + torch.einsum("nb,nbi,nbj->bij", k2, r, r)
    w = torch.linalg.solve(H, v)
    expected = k1[..., None] * w + (k2 * (r * w).sum(2))[..., None] * r
    torch.testing.assert_close(fast[0].movedim(1, 0), expected, rtol=1e-8, atol=1e-10)


def test_gradient_survives_points_that_are_all_far_away_under_welsch():
    # At a start from which nothing is in sight every weight underflows; only their ratios matter.
    x = torch.tensor([[[50.0, 0.0], [-50.0, 0.0], [0.0, 50.0]]], dtype=torch.float64)
    y, v = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    alpha = torch.ones(1, dtype=torch.float64)
    dx = VectorPooling(Welsch()).pull(y, v, (x, alpha), (True, False))[0]
    assert dx is not None
    r = y - x[0]  # all as far, so that kappa1 = 1 and kappa2 = -1 up to a factor
    w = torch.linalg.solve(3 * torch.eye(2, dtype=torch.float64) - r.T @ r, v[0])
    torch.testing.assert_close(dx[0], w - (r @ w)[:, None] * r)


@pytest.mark.parametrize("module", [ddn.nn.RobustPool2d, ddn.nn.RobustVectorPool2d])
@pytest.mark.parametrize("window", [{}, {"kernel_size": 3, "padding": 1}])
def test_modules_hand_weights_and_masks_on(module, window):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    shape = x.shape if module is ddn.nn.RobustPool2d else (2, 6, 6)
    c, mask = torch.rand(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.bool)
    pool = module("huber", 0.5, **window)
    exact(pool(x, torch.ones_like(c)), pool(x))
    exact(pool(x, mask=mask), pool(x))
    mask[..., 2, 2] = False
    junk = x.clone()
    junk[..., 2, 2] = torch.nan
    exact(pool(junk, c, mask), pool(x, c * mask))
    assert pool.solve(junk, c, mask).y.isfinite().all()


def test_simple_modules_hand_weights_and_masks_on():
    x, _, c = data(robust_pool)
    mask = c > 0.5
    exact(ddn.nn.RobustPool("welsch")(x, c, mask), robust_pool(x, "welsch", weights=c, mask=mask))
    exact(ddn.nn.RobustPool("welsch").solve(x, c, mask).y, robust_pool(x, "welsch", weights=c, mask=mask))
    x, _, c = data(robust_vector_pool)
    expected = robust_vector_pool(x, "huber", weights=c, mask=mask)
    exact(ddn.nn.RobustVectorPool("huber")(x, c, mask), expected)
    exact(ddn.nn.RobustVectorPool("huber").solve(x, c, mask).y, expected)


@both_calls
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": -torch.ones(7)}, "(weights=...)` must be finite and not negative, got -1.0 among its entries."),
        ({"weights": torch.full((7,), torch.inf)}, "(weights=...)` must be finite and not negative, got inf among"),
        ({"weights": 2.0}, "(weights=...)` must be a tensor, got float. Wrap it in `torch.as_tensor`."),
        ({"weights": torch.ones(7, dtype=torch.int64)}, "(weights=...)` must be a real floating-point tensor"),
        ({"weights": torch.ones(6)}, "(weights=...)` must have a shape that broadcasts to that of the points, (3, 7)"),
        ({"weights": torch.ones(7, device="meta")}, "(weights=...)` must be on the device of the data, cpu, got meta"),
        ({"mask": torch.ones(7)}, "(mask=...)` must be a tensor of bool, True for the points that count, got torch.fl"),
        ({"mask": True}, "(mask=...)` must be a tensor of bool, True for the points that count, got bool."),
        ({"mask": torch.ones(2, 1, 7, dtype=torch.bool)}, "(mask=...)` must have a shape that broadcasts to that of"),
    ],
)
def test_mistakes_are_told(call, wrong, message):
    x = data(call)[0]
    with pytest.raises(InvalidInputError, match=f"^{re.escape(f'`{call.__name__}{message}')}"):
        call(x, **wrong)
