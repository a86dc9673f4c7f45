"""Projections onto cones, and their derivatives, against what defines them."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchddn.cones import ProductCone, dense
from torchddn.functional.programs.cone import slack

D = torch.float64

CONES = {
    "zero": ProductCone(zero=2),
    "nonnegative": ProductCone(nonnegative=3),
    "second-order": ProductCone(second_order=(4,)),
    "second-order of length one": ProductCone(second_order=(1, 1)),
    "semidefinite": ProductCone(semidefinite=(3,)),
    "exponential": ProductCone(exponential=1),
    "power": ProductCone(power=((0.3, 0.7),)),
    "power of four": ProductCone(power=((0.2, 0.5, 0.3),)),
    "all": ProductCone(1, 2, (3, 3, 2), (2, 1), 2, ((0.5, 0.5), (0.1, 0.9), (0.2, 0.2, 0.6))),
}


def points(cone: ProductCone, count: int, seed: int = 0) -> Tensor:
    """Of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(count, 1, dtype=D, generator=generator).mul(2).exp()
    return size * torch.randn(count, cone.size, dtype=D, generator=generator)


def slope(cone: ProductCone, w: Tensor) -> Tensor:
    return dense(*cone.slope(w, cone.project(w)), (cone.size, cone.size))


def violation(cone: ProductCone, s: Tensor) -> Tensor:
    """How far each point is from the cone at most, from its definition."""
    parts = [s[:, : cone.zero].abs()]
    start = cone.zero
    parts.append(-s[:, start : start + cone.nonnegative])
    start += cone.nonnegative
    for length in cone.second_order:
        t, u = s[:, start : start + 1], s[:, start + 1 : start + length]
        parts.append(u.norm(dim=1, keepdim=True) - t)
        start += length
    for k in cone.semidefinite:
        rows, columns = torch.tril_indices(k, k)
        X = s.new_zeros(len(s), k, k)
        X[:, rows, columns] = s[:, start : start + len(rows)] / torch.where(rows == columns, 1, 2).to(D).sqrt()
        parts.append(-torch.linalg.eigvalsh(X, UPLO="L")[:, :1])
        start += len(rows)
    for _ in range(cone.exponential):
        x, y, z = s[:, start : start + 3].unbind(1)
        on_face = torch.maximum(x, -z)
        curved = torch.where(y > 0, y * torch.exp(x / torch.where(y > 0, y, 1)) - z, on_face)
        parts.append(torch.maximum(curved, -y).unsqueeze(1))
        start += 3
    for exponents in cone.power:
        d = len(exponents)
        x, z = s[:, start : start + d], s[:, start + d]
        mean = (x.clamp(min=0) ** torch.tensor(exponents, dtype=D)).prod(1)
        parts += [-x, (z.abs() - mean).unsqueeze(1)]
        start += d + 1
    return torch.cat(parts, dim=1).clamp(min=0).amax(1)


@pytest.mark.parametrize("name", CONES)
def test_a_projection_is_in_the_cone_and_leaves_a_multiplier_at_right_angles(name):
    cone = CONES[name]
    w = points(cone, 500)
    s = cone.project(w)
    z, size = s - w, 1 + w.norm(dim=1)
    assert (violation(cone, s) / size).max() < 1e-13
    assert ((s * z).sum(1).abs() / size**2).max() < 1e-14
    # z is in the dual cone: no point of the cone makes an obtuse angle with it.
    others = cone.project(points(cone, 300, seed=1))
    angles = z @ others.mT / (size.unsqueeze(1) * (1 + others.norm(dim=1)))
    assert angles.min() > -1e-12


@pytest.mark.parametrize("name", CONES)
def test_a_slope_is_the_derivative_of_the_projection(name):
    cone = CONES[name]
    w = points(cone, 400)
    D_w = slope(cone, w)
    h = 1e-6 * (1 + w.abs().amax(1, keepdim=True))
    eye = torch.eye(cone.size, dtype=D)
    numeric = [(cone.project(w + h * e) - cone.project(w - h * e)) / (2 * h) for e in eye]
    error = (D_w - torch.stack(numeric, dim=2)).abs().amax((1, 2))
    # A kink within h of the point, or curvature on its scale, spoils differences.
    assert error.quantile(0.95) < 1e-6
    assert error.max() < 1e-2
    assert torch.allclose(D_w, D_w.mT, atol=1e-12)
    values = torch.linalg.eigvalsh(D_w)
    assert values.min() > -1e-12 and values.max() < 1 + 1e-12


@pytest.mark.parametrize("name", [name for name in CONES if name not in ("zero", "nonnegative", "all")])
def test_a_projection_is_a_node_with_derivatives_of_every_order(name):
    cone = CONES[name]
    w = points(cone, 3, seed=2).requires_grad_()
    project = lambda w: slack(cone, w)  # noqa: E731
    assert gradcheck(project, w, check_forward_ad=True, atol=1e-6)
    assert gradgradcheck(project, w, atol=1e-5)
    mapped = torch.func.vmap(lambda row: slack(cone, row.unsqueeze(0)).squeeze(0))(w.detach())
    assert torch.allclose(mapped, project(w.detach()), atol=1e-13)


def test_closed_forms():
    def project(cone: ProductCone, *w: float) -> list[float]:
        return cone.project(torch.tensor([w], dtype=D))[0].tolist()

    half = math.sqrt(0.5)
    assert project(ProductCone(second_order=(3,)), 0.0, 3.0, 4.0) == pytest.approx([2.5, 1.5, 2.0])
    # [[0, 1], [1, 0]] projects onto [[1, 1], [1, 1]] / 2.
    assert project(ProductCone(semidefinite=(2,)), 0.0, 2 * half, 0.0) == pytest.approx([0.5, half, 0.5])
    # The normal of the boundary at (0, 1, 1) is (1, 1, -1).
    assert project(ProductCone(exponential=1), 2.0, 3.0, -1.0) == pytest.approx([0.0, 1.0, 1.0])
    # Likewise at (1, 1, 1) of the symmetric power cone: (-1, -1, 2).
    assert project(ProductCone(power=((0.5, 0.5),)), 0.0, 0.0, 3.0) == pytest.approx([1.0, 1.0, 1.0])
    assert project(ProductCone(power=((0.5, 0.5),)), 0.0, 0.0, -3.0) == pytest.approx([1.0, 1.0, -1.0])


FLAT = {
    "inside": ((-1.0, 1.0, 5.0), (-1.0, 1.0, 5.0)),
    "polar": ((1.0, -1.0, -5.0), (0.0, 0.0, 0.0)),
    "above the face": ((-1.0, -2.0, 3.0), (-1.0, 0.0, 3.0)),
    "below the face": ((-1.0, -2.0, -3.0), (-1.0, 0.0, 0.0)),
    "apex": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "almost the face": ((1e-4, -1.0, 2.0), (0.0, 0.0, 2.0)),
}


@pytest.mark.parametrize("name", FLAT)
def test_the_exponential_cone_has_faces(name):
    w, s = (torch.tensor([point], dtype=D) for point in FLAT[name])
    cone = ProductCone(exponential=1)
    assert torch.allclose(cone.project(w), s, atol=1e-14)
    assert slope(cone, w).isfinite().all()


def test_the_plane_of_a_power_cone_is_a_kink_or_not_as_its_exponents_say():
    cone = ProductCone(power=((0.3, 0.7),))
    for pushed, z in ((0, 1e-9), (1, 1e-9), (0, 0.0), (1, 0.0)):
        w = torch.tensor([[1.0, 1.0, z]], dtype=D)
        w[0, pushed] = -1.0
        # With less than half of the weight below zero, z is left alone; with more, it is pushed to zero.
        kept = z if pushed == 0 else 0.0
        expected = w.clamp(min=0)
        expected[0, 2] = kept
        s = cone.project(w)
        assert torch.allclose(s, expected, atol=1e-6 * max(z, 1e-9) + 1e-11)
        assert slope(cone, w)[0, 2, 2].item() == pytest.approx(1.0 if pushed == 0 else 0.0, abs=1e-2)


def test_entropies_of_tiny_weights_keep_their_digits():
    # s = (-t, x, 1) with t = x log x, and z at right angles: their sum must come apart again to all digits.
    for x in (1e-3, 1e-6, 1e-9):
        r = -math.log(x)
        s = torch.tensor([[x * r, x, 1.0]], dtype=D)
        z = -torch.tensor([[1.0, 1 - r, -math.exp(-r)]], dtype=D)
        found = ProductCone(exponential=1).project(s - z)
        assert torch.allclose(found, s, rtol=1e-8, atol=1e-14)


def test_repeated_eigenvalues_have_second_derivatives():
    cone = ProductCone(semidefinite=(2,))
    w = torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0], [1.0, 0.0, -1.0]], dtype=D, requires_grad=True)
    assert gradgradcheck(lambda w: slack(cone, w), w, atol=1e-5)


def test_a_slack_that_is_zero_stays_zero():
    cone = ProductCone(nonnegative=3)
    w = torch.tensor([[1e-16, 1.0, -1.0]], dtype=D)
    assert slope(cone, w)[0].diagonal().tolist() == [0.0, 1.0, 0.0]


def test_a_point_with_nan_spoils_only_itself():
    cone = CONES["all"]
    w = points(cone, 3)
    w[1] = torch.nan
    w.requires_grad_()
    s = slack(cone, w)
    assert s[1].isnan().all()
    s.nan_to_num().sum().backward()
    assert (w.grad[1] == 0).all()
    alone = slack(cone, w.detach()[2:])
    assert torch.equal(s[2:].detach(), alone)
