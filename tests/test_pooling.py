"""Robust pooling: the right minimizer, exact derivatives in every mode, and mistakes that are told."""

import itertools
import re

import hypothesis
import hypothesis.strategies as st
import pytest
import scipy.optimize
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn import penalties
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError, SolveError
from torchddn.functional import robust_pool, robust_vector_pool
from torchddn.status import Status

PENALTIES = ["quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic"]
CONVEX = PENALTIES[:3]
REDESCENDING = PENALTIES[3:]
CALLS = {"robust_pool": robust_pool, "robust_vector_pool": robust_vector_pool}

every_penalty = pytest.mark.parametrize("penalty", PENALTIES)
seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=20)


def cases():
    """Each pooling as a function of data and alpha, with one item's shape."""
    for penalty in PENALTIES:
        yield pytest.param(lambda x, alpha, p=penalty: robust_pool(x, p, alpha), (7,), id=f"scalar-{penalty}")
        yield pytest.param(lambda x, alpha, p=penalty: robust_vector_pool(x, p, alpha), (7, 2), id=f"vector-{penalty}")


every_case = pytest.mark.parametrize(("pool", "shape"), list(cases()))


def data(shape, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return x, 0.5 + torch.rand(batch, generator=generator, dtype=torch.float64)


def objective(y, x, penalty, alpha):
    """Of points ``(n, m)``, or numbers ``(n,)``, at ``y``, ``(m,)`` or ``()``."""
    r = y - x
    z = r.norm(dim=-1) if r.dim() > 1 else r
    return penalties.get(penalty).phi(z, alpha).sum()


# Values


def test_known_robust_means():
    x = torch.tensor([0.1, 0.2, 0.15, 8.0], dtype=torch.float64)
    known = {"huber": 0.4833333333333334, "pseudo_huber": 0.5008483309203028, "welsch": 0.15}
    for penalty, y in (known | {"truncated_quadratic": 0.15, "quadratic": 2.1125}).items():
        assert robust_pool(x, penalty).item() == pytest.approx(y, abs=1e-12)


def test_known_gradient():
    x = torch.tensor([0.1, 0.2, 0.15, 8.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(robust_pool(x, "pseudo_huber"), x)
    expected = torch.tensor([0.317303, 0.348417, 0.333364, 0.000916], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, atol=1e-6, rtol=0)


@every_penalty
def test_scalar_gradient_is_that_of_the_paper(penalty):
    x = torch.randn(30, dtype=torch.float64, requires_grad=True)
    y = robust_pool(x, penalty)
    curvature = penalties.get(penalty).ddphi(y - x, 1.0).detach()
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], curvature / curvature.sum())


@every_penalty
def test_vector_gradient_is_that_of_the_paper(penalty):
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    y = robust_vector_pool(x, penalty, 2.0)
    z, r = (y - x).norm(dim=1).detach(), (y - x).detach()
    kappa1, kappa2 = penalties.get(penalty).kappa1(z, 2.0), penalties.get(penalty).kappa2(z, 2.0)
    B = kappa1[:, None, None] * torch.eye(3, dtype=x.dtype) + kappa2[:, None, None] * r[:, :, None] * r[:, None, :]
    expected = (torch.linalg.inv(B.sum(dim=0)) @ B).movedim(0, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: robust_vector_pool(x, penalty, 2.0), x)
    torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("penalty", ["pseudo_huber", "huber"])
@pytest.mark.parametrize("pool", CALLS.values(), ids=CALLS)
def test_convex_pooling_agrees_with_scipy(penalty, pool):
    x = torch.randn(20, 1 if pool is robust_pool else 3, dtype=torch.float64)
    x[::5] *= 20

    def value_and_gradient(y):
        y = torch.tensor(y, requires_grad=True)
        f = objective(y, x, penalty, 0.7)
        return f.item(), torch.autograd.grad(f, y)[0].numpy()

    options = {"gtol": 1e-12, "ftol": 1e-15}
    found = scipy.optimize.minimize(value_and_gradient, x.mean(0).numpy(), jac=True, method="L-BFGS-B", options=options)
    y = pool(x.squeeze(1) if pool is robust_pool else x, penalty, 0.7).reshape(-1)
    torch.testing.assert_close(y, torch.from_numpy(found.x), rtol=0, atol=1e-6)
    assert objective(y, x, penalty, 0.7) <= found.fun + 1e-12


@pytest.mark.parametrize("kind", ["normal", "integers", "far"])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_truncated_quadratic_is_the_global_minimum_over_all_subsets(kind, alpha):
    for n, _ in itertools.product((1, 2, 5, 9), range(5)):
        x = torch.randn(n, dtype=torch.float64) * 2
        if kind == "integers":
            x = x.round()
        elif kind == "far":
            x[::2] *= 1e6
        x = x.sort().values
        means = [x[i:j].mean() for i in range(n) for j in range(i + 1, n + 1)]
        best = min(objective(mean, x, "truncated_quadratic", alpha).item() for mean in means)
        y = robust_pool(x, "truncated_quadratic", alpha)
        assert objective(y, x, "truncated_quadratic", alpha).item() == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_truncated_quadratic_bears_far_outliers_in_float32():
    # Sums of squares from the left would lose the cluster behind an outlier at -1e10.
    x = torch.cat([torch.tensor([-1e10, -1e10]), 5 + 0.1 * torch.randn(50), torch.tensor([3e9])])
    inliers = x[2:-1].double()
    assert robust_pool(x, "truncated_quadratic").item() == pytest.approx(inliers.mean().item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 2.5])
def test_welsch_is_the_global_minimum_on_a_fine_grid(alpha):
    for seed in range(12):
        x, _ = data((1 + 2 * seed,), batch=1, seed=seed)
        x = 2 * x[0]
        grid = torch.linspace(x.min().item(), x.max().item(), 20_001, dtype=torch.float64)
        best = penalties.Welsch().phi(grid[:, None] - x, alpha).sum(dim=1).min().item()
        found = robust_pool(x, "welsch", alpha, solution=True)
        assert found.objective.item() <= best + 1e-9
        assert found.status.item() == Status.CONVERGED


def test_welsch_searches_a_flat_density_to_the_end():
    # Evenly spaced points: every interior y is as good as another, up to the ends' influence.
    x = torch.linspace(0, 40, 401, dtype=torch.float64)
    found = robust_pool(x, "welsch", on_failure="ignore", solution=True)
    best = penalties.Welsch().phi(x[:, None] - x, 1.0).sum(dim=1).min().item()
    assert found.objective.item() <= best + 1e-9


@pytest.mark.parametrize("penalty", REDESCENDING)
def test_of_equal_minima_the_smaller_is_returned(penalty):
    x = torch.tensor([7.0, -3.0], dtype=torch.float64)
    assert robust_pool(x, penalty).item() == pytest.approx(-3, abs=1e-9)
    assert robust_pool(x.flip(0), penalty).item() == pytest.approx(-3, abs=1e-9)


@pytest.mark.parametrize("penalty", ["pseudo_huber", "huber"])
@pytest.mark.parametrize(
    "x",
    [[1e18, -1e18, 0.0, 1.0, 2.0], [1e-20, 2e-20, -5e-20], [3.3] * 7, [-5000.0, 5000.0, 5000.0], [0.0] * 4, [5.0]],
    ids=str,
)
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bracketed_newton_cannot_fail(penalty, x, alpha, dtype):
    x = torch.tensor(x, dtype=dtype)
    found = robust_pool(x, penalty, alpha, solution=True)
    assert found.status.item() == Status.CONVERGED
    assert x.min() <= found.y <= x.max()
    slope = penalties.get(penalty).dphi(found.y - x, alpha)
    resolution = torch.finfo(dtype).eps * (slope.abs().sum() + len(x) * found.y.abs())
    assert slope.sum().abs() <= 20 * resolution


def test_interval_of_huber_minimizers_gives_its_midpoint():
    x = torch.tensor([-10.0, 8.0, 12.0, -11.0], dtype=torch.float64, requires_grad=True)
    y = robust_pool(x, "huber")
    assert y.item() == pytest.approx(-1.0)
    with pytest.warns(DegenerateGradientWarning, match=r"^`robust_pool`: the gradient of 1 of 1 items is one of many"):
        (slope,) = torch.autograd.grad(y, x)
    assert (slope == 0).all()  # of minimum norm


def test_huber_interval_that_is_a_point_has_a_plain_gradient():
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64, requires_grad=True)
    y = robust_pool(x, "huber")
    assert y.item() == 0
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], torch.full((2,), 0.5, dtype=torch.float64))


def test_collinear_points_under_huber_have_the_minimum_norm_gradient():
    points = torch.tensor([[-10.0, 0.0], [10.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y = robust_vector_pool(points, "huber")
    with pytest.warns(DegenerateGradientWarning, match=r"^`robust_vector_pool`: the gradient of 1 of 1 items"):
        jacobian = torch.stack([torch.autograd.grad(y[i], points, retain_graph=True)[0] for i in range(2)])
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)
    expected[1, :, 1] = 0.5  # across the line the answer is determined, along it is not
    torch.testing.assert_close(jacobian, expected)


@pytest.mark.parametrize("penalty", REDESCENDING)
@pytest.mark.parametrize("alpha", [0.1, 1.0, 12.0])
def test_no_vector_answer_is_worse_than_the_best_point(penalty, alpha):
    points = torch.randn(2, 200, 128, dtype=torch.float64, requires_grad=True)
    spread = points * torch.where(torch.arange(200) < 20, 10.0, 1.0)[:, None]
    found = robust_vector_pool(spread, penalty, alpha, solution=True)
    z = torch.cdist(spread, spread, compute_mode="donot_use_mm_for_euclid_dist")
    best = penalties.get(penalty).phi(z, alpha).sum(dim=2).amin(dim=1)
    assert (found.objective <= best * (1 + 1e-12)).all()
    assert (found.status == Status.CONVERGED).all()
    (slope,) = torch.autograd.grad(found.y.sum(), points)
    assert slope.isfinite().all()
    assert (slope != 0).any(dim=2).any(dim=1).all()  # not every point is rejected


@pytest.mark.parametrize("penalty", REDESCENDING)
def test_vector_pooling_finds_the_larger_cluster(penalty):
    clusters = [
        torch.tensor([5.0, 5.0]) + 0.1 * torch.randn(30, 2),
        torch.tensor([-5.0, 0.0]) + 0.1 * torch.randn(20, 2),
    ]
    points = torch.cat([*clusters, 50 * torch.randn(40, 2)]).double()
    torch.testing.assert_close(robust_vector_pool(points, penalty), points[:30].mean(dim=0), rtol=0, atol=0.02)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_points_of_one_coordinate_are_pooled_as_numbers(penalty):
    x, alpha = data((15,))
    torch.testing.assert_close(robust_vector_pool(x[..., None], penalty, alpha)[..., 0], robust_pool(x, penalty, alpha))


@pytest.mark.parametrize("penalty", ["pseudo_huber", "huber"])
@pytest.mark.parametrize("alpha", [1e-4, 1e-2])
def test_tiny_alpha_converges_to_the_geometric_median(penalty, alpha):
    # As alpha goes to zero, Newton meets kinks at the data points; here the answer is at (or near) one of them.
    points = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [-2.0, -2.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    batch = torch.cat([points[None], torch.randn(20, 4, 3, dtype=torch.float64)])
    found = robust_vector_pool(batch, penalty, alpha, solution=True)
    assert (found.status == Status.CONVERGED).all()
    assert (found.stationarity <= 1e-12 * alpha).all()


# Derivatives


@every_case
def test_gradients_are_exact_in_every_mode(pool, shape):
    x, alpha = data(shape)
    inputs = (x.requires_grad_(), alpha.requires_grad_())
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(pool, inputs, **modes)
    assert torch.autograd.gradgradcheck(pool, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_case
def test_forward_mode_is_the_transpose_of_reverse_mode(pool, shape):
    x, alpha = data(shape)
    dx, dalpha = torch.randn_like(x), torch.randn_like(alpha)
    y, dy = jvp(pool, (x, alpha), (dx, dalpha))
    v = torch.randn_like(y)
    grad_x, grad_alpha = vjp(pool, x, alpha)[1](v)
    torch.testing.assert_close((v * dy).sum(), (grad_x * dx).sum() + (grad_alpha * dalpha).sum())
    with fwAD.dual_level():
        dual = pool(fwAD.make_dual(x, dx), fwAD.make_dual(alpha, dalpha))
        torch.testing.assert_close(fwAD.unpack_dual(dual).tangent, dy)


@every_case
def test_vmap_is_a_loop(pool, shape):
    x, alpha = data(shape)
    loop = torch.stack([pool(x[i], alpha[i]) for i in range(3)])
    torch.testing.assert_close(pool(x, alpha), loop)
    torch.testing.assert_close(vmap(pool)(x, alpha), loop)
    torch.testing.assert_close(vmap(pool, (1, 0))(x.movedim(0, 1), alpha), loop)
    torch.testing.assert_close(vmap(vmap(pool))(x[None], alpha[None])[0], loop)
    shared = torch.stack([pool(x[i], alpha[0]) for i in range(3)])
    torch.testing.assert_close(vmap(pool, (0, None))(x, alpha[0]), shared)


@every_case
def test_transforms_compose(pool, shape):
    x, alpha = data(shape, batch=2)

    def loss(x, alpha):
        return pool(x, alpha).pow(3).sum()

    jacobians = [torch.autograd.functional.jacobian(lambda x, i=i: pool(x, alpha[i]), x[i]) for i in range(2)]
    hessians = [torch.autograd.functional.hessian(lambda x, i=i: loss(x, alpha[i]), x[i]) for i in range(2)]
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(pool))(x, alpha), torch.stack(jacobians))
    for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f))):
        torch.testing.assert_close(vmap(transform(loss))(x, alpha), torch.stack(hessians), rtol=1e-6, atol=1e-9)


# The compiler hides this warning of its own, but not from a filter that turns warnings into errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("penalty", ["huber", "truncated_quadratic"])
def test_compiling_the_network_around_a_pooling_changes_nothing(penalty):
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 9), ddn.nn.RobustPool(penalty, keepdim=True), torch.nn.Linear(1, 2)
    )
    x = torch.randn(4, 3)
    compiled = torch.compile(network, backend="eager")
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    actual = torch.autograd.grad(compiled(x).square().sum(), list(network.parameters()))
    torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiling_a_transform_never_drops_the_derivative_in_silence():
    x = torch.randn(3, 7, dtype=torch.float64)

    def loss(x):
        return robust_pool(x, "huber").square().sum()

    try:
        compiled = torch.compile(grad(loss), backend="eager")(x)
    except (AssertionError, RuntimeError):
        return  # of torch: refused aloud
    torch.testing.assert_close(compiled, grad(loss)(x))


# Invariance


@every_case
@few
@hypothesis.given(seed=seeds)
def test_pooling_moves_with_the_data(pool, shape, seed):
    x, alpha = data(shape, seed=seed)
    y = pool(x, alpha)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(pool(x + 3.0, alpha), y + 3.0, **close)
    torch.testing.assert_close(pool(2.5 * x, 2.5 * alpha), 2.5 * y, **close)


@pytest.mark.parametrize("penalty", PENALTIES)
@few
@hypothesis.given(seed=seeds)
def test_order_of_the_points_does_not_matter(penalty, seed):
    x, alpha = data((9,), seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        robust_pool(x[:, order], penalty, alpha), robust_pool(x, penalty, alpha), rtol=0, atol=1e-9
    )
    # Points so close together that the minimum is unique.
    points = torch.stack([x, x.cos()], dim=2) / 4
    moved = robust_vector_pool(points[:, order], penalty, 1 + alpha)
    torch.testing.assert_close(moved, robust_vector_pool(points, penalty, 1 + alpha), rtol=0, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES)
@few
@hypothesis.given(seed=seeds)
def test_vector_pooling_turns_with_the_points(penalty, seed):
    points, alpha = data((9, 3), seed=seed)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = robust_vector_pool(points / 4 @ turn, penalty, 1 + alpha)
    torch.testing.assert_close(turned, robust_vector_pool(points / 4, penalty, 1 + alpha) @ turn, rtol=0, atol=1e-9)


@every_case
@few
@hypothesis.given(seed=seeds)
def test_batch_items_do_not_interact(pool, shape, seed):
    x, alpha = data(shape, batch=4, seed=seed)
    x[1] *= 1e4
    torch.testing.assert_close(pool(x, alpha), torch.cat([pool(x[i : i + 1], alpha[i : i + 1]) for i in range(4)]))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_blocks_of_rows_are_one_batch(penalty):
    # More numbers than one block holds, and rows that need different numbers of steps.
    x = torch.randn(90, 1500, dtype=torch.float64) * torch.logspace(-2, 2, 90, dtype=torch.float64)[:, None]
    whole = robust_pool(x, penalty)
    torch.testing.assert_close(whole[[0, 44, 89]], robust_pool(x[[0, 44, 89]], penalty))


# Items that fail


@every_case
def test_item_that_is_not_finite_spoils_only_itself(pool, shape):
    x, alpha = data(shape)
    good = [0, 2]
    expected = pool(x[good], alpha[good])
    slopes = grad(lambda x, alpha: pool(x, alpha).pow(3).sum(), (0, 1))(x[good], alpha[good])
    for poison in (torch.nan, torch.inf, -torch.inf):
        bad = x.clone()
        bad[1].view(-1)[0] = poison
        bad.requires_grad_()
        shared = alpha.clone().requires_grad_()
        with pytest.warns(ConvergenceWarning, match=r"1 of 3 items did not converge \(items 1; .* 1 x NON_FINITE"):
            y = pool(bad, shared)
        assert y[1].isnan().all()
        torch.testing.assert_close(y[good], expected)
        loss = torch.where(y.isnan(), 0, y).pow(3).sum()
        grad_x, grad_alpha = torch.autograd.grad(loss, (bad, shared))
        torch.testing.assert_close(grad_x[good], slopes[0])
        torch.testing.assert_close(grad_alpha[good], slopes[1])
        assert (grad_x[1] == 0).all()
        assert grad_alpha[1] == 0
        dx, dalpha = torch.ones_like(x), torch.ones_like(alpha)
        with pytest.warns(ConvergenceWarning):
            dy = jvp(pool, (bad.detach(), alpha), (dx, dalpha))[1]
        torch.testing.assert_close(dy[good], jvp(pool, (x, alpha), (dx, dalpha))[1][good])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_on_failure_is_obeyed(name, penalty):
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    x[1] = torch.nan
    for policy in ("nan", "ignore"):
        y = CALLS[name](x, penalty, on_failure=policy)
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()
    with pytest.raises(SolveError, match=rf"^`{name}`: .* NON_FINITE"):
        CALLS[name](x, penalty, on_failure="raise")
    with pytest.warns(ConvergenceWarning, match=rf"^`{name}`: "):
        CALLS[name](x, penalty, on_failure="warn")


def test_failure_is_reported_inside_vmap():
    x = torch.randn(3, 6)
    x[1, 2] = torch.nan
    with pytest.raises(SolveError, match=r"^`robust_pool`: 1 of 3 items did not converge \(items 1;"):
        vmap(lambda x: robust_pool(x, on_failure="raise"))(x)


# Shapes and dtypes


def test_any_axes_are_pooled_as_torch_reduces_them():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for dim in (-1, 0, 2, (1,), (2, 3), (3, 1), (0, 1, 2, 3), (-1, -3)):
        for keepdim in (False, True):
            y = robust_pool(x, "quadratic", dim=dim, keepdim=keepdim)
            torch.testing.assert_close(y, x.mean(dim=dim, keepdim=keepdim))


def test_alpha_broadcasts_to_the_output():
    x = torch.randn(2, 3, 50, dtype=torch.float64)
    alpha = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    y = robust_pool(x, "huber", alpha)
    for c in range(3):
        torch.testing.assert_close(y[:, c], robust_pool(x[:, c], "huber", alpha[c].item()))
    torch.testing.assert_close(robust_pool(x, "huber", alpha[:, None], keepdim=True), y[..., None])
    points = torch.randn(2, 3, 20, 4, dtype=torch.float64)
    z = robust_vector_pool(points, "huber", alpha)
    torch.testing.assert_close(z[:, 1], robust_vector_pool(points[:, 1], "huber", 1.0))


@every_case
def test_lower_precision_returns_its_dtype(pool, shape):
    x, alpha = data(shape)
    y = pool(x, alpha)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        low = x.to(dtype).requires_grad_()
        found = pool(low, alpha.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), y, rtol=0, atol=atol)
        assert torch.autograd.grad(found.sum(), low)[0].dtype == dtype


@every_case
def test_empty_batch_gives_an_empty_answer(pool, shape):
    x, alpha = data(shape, batch=0)
    x.requires_grad_()
    y = pool(x, alpha)
    assert y.shape == (0, *shape[1:])
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_solution_tells_what_is_known(name, penalty):
    x = torch.randn(4, 5, 8, 2, dtype=torch.float64, requires_grad=True)
    found = CALLS[name](x, penalty, solution=True)
    torch.testing.assert_close(found.y, CALLS[name](x, penalty))
    shape = found.y.shape if name == "robust_pool" else found.y.shape[:-1]
    for field in ("objective", "status", "num_steps", "stationarity", "feasibility", "complementarity"):
        assert getattr(found, field).shape == shape
        assert not getattr(found, field).requires_grad
    assert (found.status == Status.CONVERGED).all()
    assert (found.stationarity < 1e-12).all()
    assert found.y.requires_grad
    item = (0, 1, 3) if name == "robust_pool" else (0, 1)
    expected = objective(found.y[item], x[item], penalty, 1.0)
    torch.testing.assert_close(found.objective[item], expected.detach())
    assert found.solver == type(penalties.get(penalty)).__name__


# Modules


def test_modules_are_the_functions():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(ddn.nn.RobustPool("welsch", 0.5, dim=1)(x), robust_pool(x, "welsch", 0.5, dim=1))
    torch.testing.assert_close(ddn.nn.RobustVectorPool("huber", 0.5)(x), robust_vector_pool(x, "huber", 0.5))
    torch.testing.assert_close(ddn.nn.RobustPool2d("huber", 0.5)(x), robust_pool(x, "huber", 0.5, dim=(2, 3)))
    pixels = x.flatten(2).mT
    torch.testing.assert_close(ddn.nn.RobustVectorPool2d("huber", 0.5)(x), robust_vector_pool(pixels, "huber", 0.5))


@pytest.mark.parametrize("module", [ddn.nn.RobustPool2d, ddn.nn.RobustVectorPool2d])
@pytest.mark.parametrize(
    "window", [{"kernel_size": 2}, {"kernel_size": (3, 2), "stride": 1, "padding": (1, 0)}, {"kernel_size": 5}]
)
def test_windows_are_those_of_avg_pool(module, window):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = torch.nn.AvgPool2d(**window)(x)
    torch.testing.assert_close(module("quadratic", **window)(x), expected)
    torch.testing.assert_close(module("quadratic", **window)(x[0]), expected[0])
    assert module("huber", **window)(x).shape == expected.shape


def test_alpha_per_channel():
    x = torch.randn(2, 3, 6, 6)
    alpha = torch.tensor([0.1, 1.0, 10.0])
    for window in ({}, {"kernel_size": 3}):
        y = ddn.nn.RobustPool2d("huber", alpha, **window)(x)
        for c in range(3):
            alone = ddn.nn.RobustPool2d("huber", alpha[c].item(), **window)(x[:, c : c + 1])
            torch.testing.assert_close(y[:, c : c + 1], alone)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (ddn.nn.RobustPool, (4, 9)),
        (ddn.nn.RobustVectorPool, (4, 9, 2)),
        (ddn.nn.RobustPool2d, (4, 2, 3, 3)),
        (ddn.nn.RobustVectorPool2d, (4, 2, 3, 3)),
    ],
)
def test_learned_alpha_stays_positive(module, shape):
    pool = module("pseudo_huber", 0.7, learnable_alpha=True)
    x = 3 * torch.randn(shape)
    assert [name for name, _ in pool.named_parameters()] == ["scale.log"]
    optimizer = torch.optim.SGD(pool.parameters(), lr=50.0)
    before = pool(x)
    for _ in range(3):
        optimizer.zero_grad()
        pool(x).square().sum().backward()
        optimizer.step()
    assert pool.scale() > 0
    assert not torch.equal(pool(x), before)
    assert "learnable_alpha=True" in repr(pool)


def test_fixed_alpha_moves_and_is_saved_with_the_module():
    pool = ddn.nn.RobustPool(alpha=torch.tensor([0.5, 2.0]))
    assert pool.double().scale().dtype == torch.float64
    assert "scale.fixed" in pool.state_dict()
    assert not list(pool.parameters())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (ddn.nn.RobustPool(dim=(1, 2)), "RobustPool(\n  Huber(), alpha=1.0, dim=(1, 2), keepdim=False"),
        (ddn.nn.RobustVectorPool("welsch"), "RobustVectorPool(\n  Welsch(), alpha=1.0"),
        (ddn.nn.RobustPool2d(kernel_size=3), "kernel_size=(3, 3), stride=(3, 3), padding=(0, 0)"),
        (ddn.nn.RobustVectorPool2d(alpha=torch.tensor(0.25)), "Huber(), alpha=0.25"),
    ],
)
def test_modules_show_what_they_do(module, text):
    assert text in repr(module)


@pytest.mark.parametrize(
    ("module", "shape"),
    [(ddn.nn.RobustPool, (4, 9)), (ddn.nn.RobustPool2d, (4, 2, 3, 3)), (ddn.nn.RobustVectorPool2d, (4, 2, 3, 3))],
)
def test_modules_give_solutions_and_obey_on_failure(module, shape):
    x = torch.randn(shape)
    assert (module().solve(x).status == Status.CONVERGED).all()
    x[0] = torch.nan
    with pytest.raises(SolveError):
        module(on_failure="raise")(x)


# Mistakes

X = torch.zeros(2, 3, 4)
PENALTY_WORDS = "'quadratic', 'pseudo_huber', 'huber', 'welsch', 'truncated_quadratic'"
FLOATING = "Convert it with `.to(torch.get_default_dtype())`."


def shared_mistakes(call, data_name):
    """Wrong values of the arguments that both functions have, with what is said of them."""
    yield (
        {"penalty": "l1"},
        f"`{call}(penalty=...)` must be one of {PENALTY_WORDS}, or an object of `torchddn.penalties`, got 'l1'.",
    )
    for alpha in (0.0, -1, torch.inf, torch.nan):
        yield {"alpha": alpha}, f"`{call}(alpha=...)` must be positive and finite, got {alpha}."
    for alpha in ("1", None, True):
        kind = type(alpha).__name__
        yield {"alpha": alpha}, f"`{call}(alpha=...)` must be a number or a tensor, got {kind}."
    yield (
        {"alpha": torch.tensor(1)},
        f"`{call}(alpha=...)` must be a real floating-point tensor, got torch.int64. Convert it with `.float()`.",
    )
    yield (
        {"alpha": torch.tensor([1.0, -2.0]).reshape(2, 1)},
        f"`{call}(alpha=...)` must be positive and finite, got -2.0 among its entries.",
    )
    yield (
        {"alpha": torch.ones(1, device="meta")},
        f"`{call}(alpha=...)` must be on the device of the data, cpu, got meta. Move it with `.to('cpu')`.",
    )
    yield (
        {"on_failure": "skip"},
        f"`{call}(on_failure=...)` must be one of 'warn', 'raise', 'nan', 'ignore', got 'skip'.",
    )
    yield {"solution": 1}, f"`{call}(solution=...)` must be True or False, got 1."
    yield (
        {data_name: [1.0, 2.0]},
        f"`{call}({data_name}=...)` must be a tensor, got list. Wrap it in `torch.as_tensor`.",
    )
    for dtype in (torch.int64, torch.bool, torch.complex64):
        yield (
            {data_name: torch.zeros(2, 3, dtype=dtype)},
            f"`{call}({data_name}=...)` must be a real floating-point tensor, got {dtype}. {FLOATING}",
        )


SCALAR_MISTAKES = [
    *shared_mistakes("robust_pool", "x"),
    (
        {"alpha": torch.ones(5)},
        "`robust_pool(alpha=...)` must have a shape that broadcasts to (2, 3), got (5,). Reshape it, or pass one "
        "number for all.",
    ),
    ({"x": torch.tensor(1.0)}, "`robust_pool(x=...)` must have shape (n,) or more axes, got ()."),
    ({"x": torch.zeros(3, 0)}, "`robust_pool(x=...)` must have numbers to pool over dim=-1, got shape (3, 0)."),
    (
        {"dim": 3},
        "`robust_pool(dim=...)` must name axes of a tensor with 3 of them, got 3. Use integers from -3 to 2, each axis "
        "once.",
    ),
    (
        {"dim": (0, -3)},
        "`robust_pool(dim=...)` must name each axis once, got (0, -3). Use integers from -3 to 2, each axis once.",
    ),
    *(
        (
            {"dim": dim},
            f"`robust_pool(dim=...)` must be an integer or a tuple of integers, got {dim!r}. Use integers from -3 to "
            "2, each axis once.",
        )
        for dim in (1.0, None, "0", (), True)
    ),
    ({"keepdim": None}, "`robust_pool(keepdim=...)` must be True or False, got None."),
]

VECTOR_MISTAKES = [
    *shared_mistakes("robust_vector_pool", "points"),
    (
        {"alpha": torch.ones(5)},
        "`robust_vector_pool(alpha=...)` must have a shape that broadcasts to (2,), got (5,). Reshape it, or pass one "
        "number for all.",
    ),
    ({"points": torch.zeros(4)}, "`robust_vector_pool(points=...)` must have shape (*B, n, m), got (4,)."),
    *(
        (
            {"points": torch.zeros(shape)},
            f"`robust_vector_pool(points=...)` must have points with coordinates, got shape {shape}.",
        )
        for shape in ((2, 0, 3), (2, 3, 0))
    ),
]


@pytest.mark.parametrize(("wrong", "message"), SCALAR_MISTAKES)
def test_robust_pool_tells_mistakes(wrong, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        robust_pool(**({"x": X} | wrong))


@pytest.mark.parametrize(("wrong", "message"), VECTOR_MISTAKES)
def test_robust_vector_pool_tells_mistakes(wrong, message):
    if isinstance(wrong.get("alpha"), torch.Tensor) and wrong["alpha"].shape == (2, 1):
        wrong = {"alpha": wrong["alpha"].squeeze(1)}
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        robust_vector_pool(**({"points": X} | wrong))


def test_wrong_alpha_is_told_inside_vmap():
    with pytest.raises(InvalidInputError, match=r"must be positive and finite, got -1\.0 among its entries"):
        vmap(lambda x, alpha: robust_pool(x, alpha=alpha))(torch.zeros(2, 3), torch.tensor([1.0, -1.0]))


MODULES = [ddn.nn.RobustPool, ddn.nn.RobustVectorPool, ddn.nn.RobustPool2d, ddn.nn.RobustVectorPool2d]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"penalty": 3},
            f"(penalty=...)` must be one of {PENALTY_WORDS}, or an object of `torchddn.penalties`, got 3.",
        ),
        ({"alpha": -1.0}, "(alpha=...)` must be positive and finite, got -1.0."),
        ({"learnable_alpha": 1}, "(learnable_alpha=...)` must be True or False, got 1."),
        ({"on_failure": ""}, "(on_failure=...)` must be one of 'warn', 'raise', 'nan', 'ignore', got ''."),
    ],
)
def test_modules_tell_mistakes_when_they_are_made(module, wrong, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape('`' + module.__name__ + message)}$"):
        module(**wrong)


def test_keepdim_of_the_module_is_checked():
    with pytest.raises(InvalidInputError, match=r"^`RobustPool\(keepdim=\.\.\.\)` must be True or False, got 'yes'\.$"):
        ddn.nn.RobustPool(keepdim="yes")


@pytest.mark.parametrize("module", MODULES[2:])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            (
                {"kernel_size": size},
                f"(kernel_size=...)` must be an integer of at least 1, or a pair of such, got {size!r}.",
            )
            for size in (0, 2.0, (1, 2, 3), "3", True)
        ),
        (
            {"kernel_size": 2, "stride": 0},
            "(stride=...)` must be an integer of at least 1, or a pair of such, got 0.",
        ),
        (
            {"kernel_size": 2, "padding": -1},
            "(padding=...)` must be an integer of at least 0, or a pair of such, got -1.",
        ),
        (
            {"kernel_size": (2, 4), "padding": 2},
            "(padding=...)` must be at most half of the kernel size (2, 4), got 2.",
        ),
        (
            {"stride": 2},
            "(kernel_size=...)` must be given with `stride` or `padding`, got None. Without it, the whole image is "
            "pooled.",
        ),
    ],
)
def test_windows_tell_mistakes(module, wrong, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape('`' + module.__name__ + message)}$"):
        module(**wrong)


@pytest.mark.parametrize("module", MODULES[2:])
def test_images_of_another_shape_are_refused(module):
    name = re.escape(f"`{module.__name__}(x=...)`")
    for shape in ((3, 3), (1, 2, 3, 4, 5)):
        with pytest.raises(
            InvalidInputError, match=rf"^{name} must have shape \(B, C, H, W\) or \(C, H, W\), got \(.*\)\.$"
        ):
            module()(torch.zeros(shape))
    with pytest.raises(InvalidInputError, match=rf"^{name} must be at least as large as the window \(5, 5\)"):
        module(kernel_size=5)(torch.zeros(2, 3, 4, 9))
