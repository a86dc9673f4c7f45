"""Robust pooling by kernels: that it is the same function, with whatever it is given."""

import shutil

import pytest
import torch
from torch import Tensor

from torchddn import kernels, nn
from torchddn.functional import robust_pool, robust_vector_pool
from torchddn.functional.pooling import kernel
from torchddn.kernels import BoundKernels, Kernels
from torchddn.status import Status

PENALTIES = ("pseudo_huber", "huber", "welsch", "truncated_quadratic")
D = torch.float64


COMPILE = kernels._compile


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No kernels yet; they are made at the first call, and replayed."""
    for name, call in (("_KERNELS", "robust_pool"), ("_POINTS_KERNELS", "robust_vector_pool")):
        monkeypatch.setattr(kernel, name, BoundKernels(Kernels(call, least=0), state=0))
    monkeypatch.setattr(kernels, "_REPLAYS", 0)
    monkeypatch.setattr(kernels, "_compile", lambda graph, tensors: graph)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    """Normal, with a tenth of outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dtype=dtype, generator=generator)
    return torch.where(torch.rand(*shape, generator=generator) < 0.1, 10 + x, x)


def assert_same(
    x: Tensor, penalty: str, alpha: float | Tensor = 1.0, rtol: float = 1e-12, pool=robust_pool, **given
) -> None:
    """Answers, and gradients in everything that has one."""
    leaves = [t.clone().requires_grad_() for t in (x, alpha, given.get("weights")) if isinstance(t, Tensor)]
    names = [n for n, t in (("x", x), ("alpha", alpha), ("weights", given.get("weights"))) if isinstance(t, Tensor)]
    arguments = {"x": x, "alpha": alpha, **given} | dict(zip(names, leaves, strict=True))
    points = arguments.pop("x")
    found = [pool(points, penalty, compile=c, solution=True, **arguments) for c in (False, True)]
    assert torch.equal(found[0].status, found[1].status)
    torch.testing.assert_close(found[1].y, found[0].y, rtol=rtol, atol=rtol, equal_nan=True)
    v = torch.randn(found[0].y.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    v = torch.where((found[0].status == Status.CONVERGED).reshape(-1, *[1] * (v.dim() - 1)), v, 0)
    grads = [torch.autograd.grad((v * each.y.nan_to_num()).sum(), leaves, retain_graph=True) for each in found]
    for expected, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=100 * rtol, atol=100 * rtol)
    # In x alone: cheaper formulas.
    pulled = [torch.autograd.grad((v * each.y.nan_to_num()).sum(), leaves[0])[0] for each in found]
    torch.testing.assert_close(pulled[1], pulled[0], rtol=100 * rtol, atol=100 * rtol)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("n", [1, 3, 40, 300, 1000])
def test_kernels_pool_as_blocks_do(penalty, n):
    assert_same(numbers(6, n), penalty)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_kernels_take_scales_weights_and_masks(penalty):
    x = numbers(5, 200)
    generator = torch.Generator().manual_seed(2)
    scales = 0.5 + torch.rand(5, dtype=D, generator=generator)
    weights = torch.rand(5, 200, dtype=D, generator=generator)
    assert_same(x, penalty, scales, weights=weights, mask=torch.rand(5, 200, generator=generator) < 0.8)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_kernels_pool_in_single_precision(penalty):
    assert_same(numbers(8, 600, dtype=torch.float32), penalty, rtol=2e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_rows_that_are_not_finite_harm_no_other(penalty):
    x = numbers(6, 100)
    x[1, 3], x[4, 0] = torch.nan, torch.inf
    assert_same(x, penalty, on_failure="ignore")


@pytest.mark.parametrize("penalty", PENALTIES)
def test_kernels_pool_at_every_scale(penalty):
    for scale in (1e-12, 1e8):
        assert_same(scale * numbers(4, 100), penalty, scale)
    assert_same(torch.zeros(3, 80, dtype=D), penalty)
    assert_same(1e6 + 1e-3 * numbers(3, 80), penalty, 1e-3, rtol=1e-9)


def test_few_rows_that_need_more_looks_are_looked_at_alone():
    x = numbers(64, 300)
    x[7] = torch.linspace(-1e6, 1e6, 300, dtype=D)
    assert_same(x, "pseudo_huber")
    assert_same(x, "welsch")


def test_a_number_does_not_choose_the_kernel(monkeypatch):
    made = []
    monkeypatch.setattr(kernels, "_compile", lambda graph, tensors: made.append(graph) or graph)
    x = numbers(3, 50)
    for alpha in (1.0, 1.1, 1.2):
        y = robust_pool(x, "pseudo_huber", alpha, compile=True)
        torch.testing.assert_close(y, robust_pool(x, "pseudo_huber", alpha))
    assert len(made) == 1


def test_higher_orders_and_transforms_run_without_kernels():
    x = numbers(2, 6).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return robust_pool(x, "pseudo_huber", compile=True)

    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)
    torch.testing.assert_close(torch.func.vmap(pool)(x), robust_pool(x, "pseudo_huber"))
    torch.testing.assert_close(
        torch.func.jacfwd(pool)(x.detach()), torch.func.jacrev(lambda x: robust_pool(x, "pseudo_huber"))(x.detach())
    )


def test_modules_hand_the_word_on():
    x = numbers(2, 3, 4, 5)
    for layer, plain in (
        (nn.RobustPool("huber", dim=(1, 2), compile=True), nn.RobustPool("huber", dim=(1, 2))),
        (nn.RobustPool2d("welsch", kernel_size=2, compile=True), nn.RobustPool2d("welsch", kernel_size=2)),
        (nn.RobustVectorPool("huber", compile=True), nn.RobustVectorPool("huber")),
        (nn.RobustVectorPool2d("huber", compile=True), nn.RobustVectorPool2d("huber")),
    ):
        torch.testing.assert_close(layer(x), plain(x))
        torch.testing.assert_close(layer.solve(x).y, plain.solve(x).y)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("penalty", ["pseudo_huber", pytest.param("welsch", marks=pytest.mark.slow)])
def test_compiled_kernels_pool_as_blocks_do(penalty, monkeypatch):
    monkeypatch.setattr(kernels, "_compile", COMPILE)
    assert_same(numbers(6, 100), penalty)


def points(batch: int = 4, n: int = 60, m: int = 30, dtype: torch.dtype = D) -> Tensor:
    """On all sides of a place, with a tenth of outliers far away on one side."""
    x = torch.randn(batch, n, m, generator=torch.Generator().manual_seed(3), dtype=D)
    x[:, ::10] += 3
    return x.to(dtype)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("n", "m"), [(60, 30), (20, 30), (1, 25), (60, 3)])
def test_kernels_pool_points_as_products_do(penalty, n, m):
    assert_same(points(n=n, m=m), penalty, 6.0, rtol=1e-9, pool=robust_vector_pool)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_kernels_of_points_take_scales_weights_and_masks(penalty):
    x, generator = points(), torch.Generator().manual_seed(2)
    scales = 4 + torch.rand(4, dtype=D, generator=generator)
    weights = torch.rand(4, 60, dtype=D, generator=generator)
    mask = torch.rand(4, 60, generator=generator) < 0.8
    assert_same(x, penalty, scales, rtol=1e-9, pool=robust_vector_pool, weights=weights, mask=mask)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_points_that_are_not_finite_harm_no_other(penalty):
    x = points()
    x[1, 3, 2], x[2, 0, 0] = torch.nan, torch.inf
    assert_same(x, penalty, 6.0, rtol=1e-9, pool=robust_vector_pool, on_failure="ignore")


@pytest.mark.parametrize("penalty", PENALTIES[:2])
def test_items_on_which_reweighted_steps_are_slow_are_pooled_beside_kernels(penalty):
    x = points()
    x[1, :, 1:] *= 1e-3
    x[2] = x[2, :1]
    assert_same(x, penalty, 1.0, rtol=1e-9, pool=robust_vector_pool)


@pytest.mark.parametrize("penalty", PENALTIES[:2])
def test_kernels_take_points_in_any_layout_and_at_any_place(penalty):
    assert_same(points().mT.contiguous().mT, penalty, 6.0, rtol=1e-9, pool=robust_vector_pool)
    assert_same(1e5 + points(), penalty, 6.0, rtol=1e-9, pool=robust_vector_pool)
    assert_same(points(dtype=torch.float32), penalty, 6.0, rtol=2e-6, pool=robust_vector_pool)


def test_kernels_of_points_are_used_forward_and_backward(monkeypatch):
    made = []
    monkeypatch.setattr(kernels, "_compile", lambda graph, tensors: made.append(graph) or graph)
    x = points().requires_grad_()
    for alpha in (5.0, 6.0):
        robust_vector_pool(x, "pseudo_huber", alpha, compile=True).sum().backward()
    assert len(made) == 4  # a look, the scales of the gradient, a product, and dx


def test_higher_orders_of_points_run_without_kernels():
    x = points(1, 5, 25).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return robust_vector_pool(x, "pseudo_huber", 5.0, compile=True)

    def some(x_some: Tensor) -> Tensor:
        return pool(torch.cat([x_some, x.detach()[..., 2:]], dim=2))

    given = x.detach()[..., :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(some, given)
    assert torch.autograd.gradgradcheck(some, given)
    torch.testing.assert_close(torch.func.vmap(pool)(x.unsqueeze(1))[:, 0], pool(x))
    forward, reverse = (transform(pool)(x.detach()) for transform in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(forward, reverse)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_kernels_pool_points_as_products_do(monkeypatch):
    monkeypatch.setattr(kernels, "_compile", COMPILE)
    assert_same(points(), "huber", 6.0, rtol=1e-9, pool=robust_vector_pool)
