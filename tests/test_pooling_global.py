"""The minimum that robust pooling finds is the global one: brute force over sets with clusters and outliers."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from torchddn import penalties
from torchddn.functional import robust_pool, robust_vector_pool
from torchddn.status import Status

REDESCENDING = ["welsch", "truncated_quadratic"]
CONVEX = ["pseudo_huber", "huber"]

redescending = pytest.mark.parametrize("penalty", REDESCENDING)


def sets(num_sets, n, m, seed):
    """Two to four clusters of different sizes and widths, and a fifth of the points anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centers = 4 * normal(num_sets, 4, m)
    widths = 0.1 + torch.rand(num_sets, 4, 1, generator=generator, dtype=torch.float64)
    odds = torch.rand(num_sets, 4, generator=generator, dtype=torch.float64) + 0.05
    which = torch.multinomial(odds, n, replacement=True, generator=generator)
    row = torch.arange(num_sets)[:, None]
    x = centers[row, which] + widths[row, which] * normal(num_sets, n, m)
    outlier = torch.rand(num_sets, n, 1, generator=generator) < 0.2
    return torch.where(outlier, 12 * normal(num_sets, n, m), x)


def least_on_line(x, penalty, alpha, c):
    """The least objective on a grid of 4001 numbers, polished at its best three by reweighting, ``(R,)``."""
    share = torch.linspace(0, 1, 4001, dtype=x.dtype)
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    grid = torch.cat([low + (high - low) * share, x], dim=1)
    values = torch.cat([objective(g[None], x, penalty, alpha, c) for g in grid.T.split(512)], dim=1)
    y = grid.gather(1, values.topk(3, dim=1, largest=False).indices)
    for _ in range(100):
        weights = c[:, None] * penalty.kappa1(y[:, :, None] - x[:, None], alpha)
        y = (weights * x[:, None]).sum(dim=2) / weights.sum(dim=2)
    return objective(y.T[None], x, penalty, alpha, c).amin(dim=1)


def objective(y, x, penalty, alpha, c):
    """At y, ``(1, G, R)``, for all x, ``(R, n)``: ``(R, G)``."""
    return (c[:, None] * penalty.phi(y[0].T[:, :, None] - x[:, None], alpha)).sum(dim=2)


def check_line(num_sets, n, penalty, seed, dtype=torch.float64, weighted=False):
    x = sets(num_sets, n, 1, seed)[..., 0].to(dtype)
    alpha = 0.3 + (seed % 5) / 2
    c = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.1
    found = robust_pool(x, penalty, alpha, weights=c if weighted else None, solution=True)
    assert (found.status == Status.CONVERGED).all()
    c = c if weighted else torch.ones_like(x)
    kind = penalties.get(penalty)
    best = least_on_line(x.double(), kind, alpha, c.double())
    reached = objective(found.y.double()[None, None], x.double(), kind, alpha, c.double())[:, 0]
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    # The density of Welsch may be that close to its maximum elsewhere; nothing else is allowed.
    slack = (c.double().sum(dim=1) - best) / 2048 if penalty == "welsch" else 0 * best
    assert (reached <= best + slack + rtol * best).all()
    assert (reached <= best + 1e-9 * best + rtol).double().mean() > 0.99


@redescending
@pytest.mark.parametrize(("n", "weighted"), [(1, False), (9, False), (9, True), (90, False), (90, True), (300, False)])
def test_number_is_the_global_minimum(penalty, n, weighted):
    check_line(60, n, penalty, seed=n, weighted=weighted)


@redescending
def test_number_is_the_global_minimum_in_float32(penalty):
    check_line(60, 150, penalty, seed=7, dtype=torch.float32)


@pytest.mark.slow
@redescending
@pytest.mark.parametrize("seed", range(5))
def test_number_is_the_global_minimum_of_many_sets(penalty, seed):
    check_line(100, 64 + 50 * seed, penalty, seed)


def gain_of_all_sets(x, alpha, c):
    """The largest ``sum_i c_i alpha^2 - 2 f`` over all runs of sorted points of one row, whatever their width."""
    x, order = x.double().sort()
    c = c.double()[order]
    weight, total, square = (torch.nn.functional.pad(t.cumsum(0), (1, 0)) for t in (c, c * x, c * x * x))
    weight, total, square = (t - t[:, None] for t in (weight, total, square))
    gain = weight * alpha**2 - (square - total.square() / weight)
    return gain[weight > 0].max()


def line(kind, n, seed):
    """A row of n numbers, whose sets of inliers are many and alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    even = torch.arange(n, dtype=torch.float64)
    return {
        "normal": x,
        "normal with outliers": torch.where(even % 10 == 0, 4 * x, x),
        "few values": (2 * x).round() / 2,
        "two clusters": torch.where(even < n // 2, x / 2, 6 + x / 2),
        "even": 16 * even / n,
        "one value and outliers": torch.where(even % 7 == 0, 3 * x, 0.25),
    }[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "kind", ["normal", "normal with outliers", "few values", "two clusters", "even", "one value and outliers"]
)
def test_no_set_of_inliers_is_better(kind, weighted, dtype):
    for n in (64, 100, 257, 700):
        for size in (1e-12, 1.0, 1e8):
            x = (size * line(kind, n, n)).to(dtype)
            c = torch.rand(n, generator=torch.Generator().manual_seed(n)).to(dtype)
            c = torch.where(c < 0.2, 0, c) if weighted else torch.ones_like(x)
            y = robust_pool(x, "truncated_quadratic", size, weights=c if weighted else None).double()
            reached = (c.double() * (1 - ((y - x.double()) / size).square()).clamp(min=0)).sum()
            best = gain_of_all_sets(x.double() / size, 1.0, c)
            rtol = 1e-11 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(reached, best, rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("n", "dtype"), [(8, torch.float64), (8, torch.float32), (64, torch.float32), (512, torch.float32)]
)
def test_of_equal_clusters_the_lower_one_is_chosen(n, dtype):
    cluster = torch.randint(-64, 65, (5, n), generator=torch.Generator().manual_seed(n)).to(dtype) / 64
    x = torch.cat([cluster + 8, cluster, cluster + 4], dim=1)
    y = robust_pool(x, "truncated_quadratic")
    torch.testing.assert_close(y, robust_pool(cluster, "truncated_quadratic"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(robust_pool(x.flip(1), "truncated_quadratic"), y, rtol=0, atol=0)


def check_plane(num_sets, n, penalty, seed):
    x = sets(num_sets, n, 2, seed)
    alpha = 0.5 + (seed % 3) / 2
    kind = penalties.get(penalty)
    found = robust_vector_pool(x, penalty, alpha, solution=True)
    assert (found.status == Status.CONVERGED).all()
    share = torch.linspace(0, 1, 81, dtype=x.dtype)
    low, high = x.quantile(0.02, dim=1), x.quantile(0.98, dim=1)
    axes = low[..., None] + (high - low)[..., None] * share  # (R, 2, 81)
    grid = torch.stack([axes[:, 0, :, None].expand(-1, -1, 81), axes[:, 1, None].expand(-1, 81, -1)], dim=-1)
    candidates = torch.cat([grid.flatten(1, 2), x], dim=1)
    values = torch.cat([kind.phi(torch.cdist(y, x), alpha).sum(dim=2) for y in candidates.split(500, dim=1)], dim=1)
    y = candidates.gather(1, values.topk(20, dim=1, largest=False).indices[..., None].expand(-1, -1, 2))
    for _ in range(60):
        weights = kind.kappa1(torch.cdist(y, x), alpha)
        y = weights @ x / weights.sum(dim=2, keepdim=True)
    best = kind.phi(torch.cdist(y, x), alpha).sum(dim=2).amin(dim=1)
    return ((found.objective - best) / best).clamp(min=0)


@redescending
def test_point_in_the_plane_is_the_global_minimum(penalty):
    excess = check_plane(60, 40, penalty, seed=1)
    assert (excess <= 1e-9).all()


@pytest.mark.slow
@redescending
@pytest.mark.parametrize("seed", range(5))
def test_point_in_the_plane_is_the_global_minimum_of_many_sets(penalty, seed):
    excess = check_plane(100, 40, penalty, seed)
    assert (excess <= 1e-9).all()


@pytest.mark.parametrize("penalty", CONVEX)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [5, 600])
def test_convex_minimum_is_stationary_at_every_scale(penalty, dtype, n):
    x = sets(20, n, 1, seed=2)[..., 0]
    kind = penalties.get(penalty)
    for size in (1e-12, 1e-5, 1.0, 1e4, 1e8):
        for alpha in (size, 1.0):
            scaled = (size * x).to(dtype)
            found = robust_pool(scaled, penalty, alpha, solution=True)
            assert (found.status == Status.CONVERGED).all()
            r = found.y.double()[:, None] - scaled.double()
            terms, slope = kind.dphi(r, alpha), kind.ddphi(r, alpha).sum(dim=1)
            rounding = torch.finfo(dtype).eps * (terms.abs().sum(dim=1) + slope * found.y.double().abs())
            assert (terms.sum(dim=1).abs() <= 20 * rounding).all()


@pytest.mark.parametrize("penalty", [*CONVEX, *REDESCENDING])
@hypothesis.settings(max_examples=12)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 130),
    size=st.sampled_from([1e-12, 1e-6, 1.0, 1e8]),
    copies=st.integers(1, 3),
)
def test_scale_and_copies_of_all_points_change_nothing(penalty, seed, n, size, copies):
    x = sets(2, n, 1, seed)[..., 0]
    y = robust_pool(x, penalty)
    torch.testing.assert_close(robust_pool(size * x, penalty, size) / size, y, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(robust_pool(x.repeat(1, copies), penalty), y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("penalty", ["quadratic", *CONVEX, *REDESCENDING])
@pytest.mark.parametrize("n", [1, 2, 70, 1000])
@pytest.mark.parametrize("value", [0.0, 3.3, -1e8, 1e-12])
def test_equal_points_are_their_own_mean(penalty, n, value):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.full((2, n), value, dtype=dtype)
        close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
        torch.testing.assert_close(robust_pool(x, penalty, 0.1), x[:, 0], **close)
        points = x[..., None].expand(2, n, 3)
        torch.testing.assert_close(robust_vector_pool(points, penalty, 0.1), points[:, 0], **close)


@pytest.mark.parametrize("penalty", [*CONVEX, *REDESCENDING])
def test_strides_and_axes_do_not_matter(penalty):
    x = sets(6, 96, 1, seed=4).reshape(2, 3, 96)
    y = robust_pool(x, penalty)
    torch.testing.assert_close(robust_pool(x.movedim(2, 0), penalty, dim=0), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(robust_pool(x.reshape(2, 3, 8, 12).mT, penalty, dim=(2, 3)), y, rtol=1e-9, atol=1e-9)
    wide = torch.stack([x, x + 1], dim=3)[..., 0]
    a = wide.detach().requires_grad_()
    slope = torch.autograd.grad(robust_pool(a, penalty).sum(), a)[0]
    torch.testing.assert_close(slope.sum(dim=2), torch.ones_like(y))


@redescending
def test_wide_and_narrow_rows_share_a_batch(penalty):
    # Some rows are searched by cells, others are too wide for that.
    x = sets(8, 120, 1, seed=5)[..., 0]
    x[::2, 0] = 1e7
    whole = robust_pool(x, penalty)
    torch.testing.assert_close(whole, torch.stack([robust_pool(row, penalty) for row in x]), rtol=1e-12, atol=1e-12)
