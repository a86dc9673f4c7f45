"""The penalties are those of the papers, accurate from zero to huge residuals."""

import dataclasses
import math
import re

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from torchddn import penalties
from torchddn.errors import InvalidInputError
from torchddn.penalties import Huber, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch

WORDS = {
    "quadratic": Quadratic,
    "pseudo_huber": PseudoHuber,
    "huber": Huber,
    "welsch": Welsch,
    "truncated_quadratic": TruncatedQuadratic,
}
ALL = [kind() for kind in WORDS.values()]

# phi, kappa1 and kappa2 as the papers print them, for |z| <= alpha and beyond.
TABLE = {
    "quadratic": (lambda z, a: z**2 / 2, lambda z, a: 1, lambda z, a: 0),
    "pseudo_huber": (
        lambda z, a: a**2 * (math.sqrt(1 + (z / a) ** 2) - 1),
        lambda z, a: (1 + (z / a) ** 2) ** -0.5,
        lambda z, a: -1 / a**2 * (1 + (z / a) ** 2) ** -1.5,
    ),
    "huber": (
        lambda z, a: z**2 / 2 if abs(z) <= a else a * (abs(z) - a / 2),
        lambda z, a: 1 if abs(z) <= a else a / abs(z),
        lambda z, a: 0 if abs(z) <= a else -a / abs(z) ** 3,
    ),
    "welsch": (
        lambda z, a: 1 - math.exp(-(z**2) / (2 * a**2)),
        lambda z, a: math.exp(-(z**2) / (2 * a**2)) / a**2,
        lambda z, a: -math.exp(-(z**2) / (2 * a**2)) / a**4,
    ),
    "truncated_quadratic": (
        lambda z, a: z**2 / 2 if abs(z) <= a else a**2 / 2,
        lambda z, a: 1 if abs(z) <= a else 0,
        lambda z, a: 0,
    ),
}

residuals = st.floats(-20, 20)
scales = st.floats(0.1, 10)


def name_of(penalty):
    return type(penalty).__name__


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_formulas_are_those_of_the_papers(word, alpha):
    z = torch.tensor([-7.0, -1.1, -0.5, 0.3, 0.5, 1.0, 2.9, 3.0, 8.0], dtype=torch.float64)
    penalty = penalties.get(word)
    for method, formula in zip((penalty.phi, penalty.kappa1, penalty.kappa2), TABLE[word], strict=True):
        expected = torch.tensor([formula(value, alpha) for value in z.tolist()], dtype=torch.float64)
        torch.testing.assert_close(method(z, alpha), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
@hypothesis.given(z=residuals, alpha=scales)
@hypothesis.settings(max_examples=50)
def test_derivatives_belong_to_each_other(penalty, z, alpha):
    z = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(penalty.phi(z, alpha) + 0 * z, z)
    torch.testing.assert_close(slope, penalty.dphi(z, alpha).detach(), rtol=1e-12, atol=1e-14)
    (curvature,) = torch.autograd.grad(penalty.dphi(z, alpha) + 0 * z, z)
    torch.testing.assert_close(curvature, penalty.ddphi(z, alpha).detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(penalty.kappa1(z, alpha) * z, penalty.dphi(z, alpha), rtol=1e-12, atol=1e-14)
    together = penalty.kappa1(z, alpha) + penalty.kappa2(z, alpha) * z * z
    torch.testing.assert_close(together, penalty.ddphi(z, alpha), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
@hypothesis.given(z=residuals, start=residuals, alpha=scales)
@hypothesis.settings(max_examples=50)
def test_touching_parabola_lies_above(penalty, z, start, alpha):
    z, start = torch.tensor([z, start], dtype=torch.float64)
    parabola = penalty.phi(start, alpha) + penalty.kappa1(start, alpha) * (z * z - start * start) / 2
    assert penalty.phi(z, alpha) <= parabola + 1e-10 * (1 + parabola.abs())


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
@hypothesis.given(z=residuals, alpha=scales)
@hypothesis.settings(max_examples=30)
def test_penalty_is_even_and_not_negative(penalty, z, alpha):
    z = torch.tensor(z, dtype=torch.float64)
    assert penalty.phi(z, alpha) == penalty.phi(-z, alpha) >= 0
    assert penalty.dphi(z, alpha) == -penalty.dphi(-z, alpha)
    assert 0 <= penalty.kappa1(z, alpha) == penalty.kappa1(-z, alpha)


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_huge_residuals_give_finite_numbers(penalty, dtype):
    far = 1e18 if dtype == torch.float32 else 1e150
    z = torch.tensor([0.0, 1e-30, 1e3, far, -far], dtype=dtype, requires_grad=True)
    for method in (penalty.phi, penalty.dphi, penalty.ddphi, penalty.kappa1, penalty.kappa2, penalty.weights):
        values = method(z, 1.0)
        assert values.isfinite().all(), method
        if values.requires_grad:
            (slope,) = torch.autograd.grad(values.sum(), z)
            assert slope.isfinite().all(), method


def test_outliers_have_no_pull_under_the_redescending_penalties():
    z = torch.tensor([14.0, 1e5, 1e18])
    for penalty in (Welsch(), TruncatedQuadratic()):
        assert (penalty.dphi(z, 1.0) == 0).all()


def test_pseudo_huber_does_not_cancel():
    z = torch.tensor([1e-9, 1e-3], dtype=torch.float64)
    expected = z * z / 2 * (1 - z * z / 4)
    torch.testing.assert_close(PseudoHuber().phi(z, 1.0), expected, rtol=1e-11, atol=0)


def test_welsch_does_not_cancel():
    z = torch.tensor([1e-9], dtype=torch.float64)
    torch.testing.assert_close(Welsch().phi(z, 1.0), z * z / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_point_at_the_kink_is_an_inlier(penalty):
    z, alpha = torch.tensor([2.0, -2.0]), 2.0
    if isinstance(penalty, Huber | TruncatedQuadratic):
        assert (penalty.ddphi(z, alpha) == 1).all()
        assert (penalty.kappa1(z, alpha) == 1).all()
        assert (penalty.kappa2(z, alpha) == 0).all()


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_weights_are_normalized_kappa1(penalty):
    z = torch.tensor([[0.1, 0.9, 1.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    kappa1 = penalty.kappa1(z, 1.0)
    torch.testing.assert_close(penalty.weights(z, 1.0), kappa1 / kappa1.sum(dim=-1, keepdim=True))


def test_weights_of_points_that_are_all_far_away():
    z = torch.tensor([100.0, 101.0, 300.0])
    torch.testing.assert_close(Welsch().weights(z, 1.0), torch.tensor([1.0, 0.0, 0.0]))
    assert (TruncatedQuadratic().weights(z, 1.0) == 0).all()


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_alpha_broadcasts(penalty):
    z, alpha = torch.rand(4, dtype=torch.float64), torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    for method in (penalty.phi, penalty.dphi, penalty.ddphi, penalty.kappa1, penalty.kappa2):
        expected = torch.stack([method(z, 0.5), method(z, 2.0)])
        torch.testing.assert_close(method(z, alpha).expand(2, 4), expected)
        assert method(z, alpha).shape in ((2, 4), (4,))


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_nan_stays_nan(penalty):
    z = torch.tensor(torch.nan)
    assert penalty.phi(z, 1.0).isnan()
    assert penalty.dphi(z, 1.0).isnan()


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_convex_and_isotropic_say_what_is_so(penalty):
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert bool((penalty.ddphi(z, 1.0) >= 0).all()) or not penalty.convex
    assert penalty.convex == (not isinstance(penalty, Welsch | TruncatedQuadratic))
    assert penalty.isotropic == bool((penalty.kappa2(z, 1.0) == 0).all())


@pytest.mark.parametrize("penalty", ALL, ids=name_of)
def test_penalty_has_no_state(penalty):
    assert penalty == type(penalty)()
    assert hash(penalty) == hash(type(penalty)())
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.alpha = 1.0


@pytest.mark.parametrize(("word", "kind"), WORDS.items())
def test_get_knows_words_and_objects(word, kind):
    assert penalties.get(word) == kind()
    penalty = kind()
    assert penalties.get(penalty) is penalty


@pytest.mark.parametrize("wrong", ["l2", "", None, 3, Huber])
def test_get_refuses_other_things(wrong):
    message = (
        "`penalties.get(penalty=...)` must be one of 'quadratic', 'pseudo_huber', 'huber', 'welsch', "
        f"'truncated_quadratic', or an object of `torchddn.penalties`, got {wrong!r}."
    )
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        penalties.get(wrong)
