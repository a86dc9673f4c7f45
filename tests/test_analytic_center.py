"""Analytic centers: the start is found, sets without one are told apart, and the gradients are exact."""

import re

import cvxpy as cp
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.functional import analytic_center

D = torch.float64
SQUARE = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=D)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def polytopes(B: int, q: int, m: int, p: int = 0, far: float = 0.0) -> tuple[Tensor, ...]:
    """Bounded sets around random points, ``far`` from the origin."""
    G, inside = randn(B, q, m), far + randn(B, m, seed=1)
    G = torch.cat([G, -G.sum(1, keepdim=True)], dim=1)
    A = randn(B, p, m, seed=2)
    slack = 0.01 + torch.rand(B, q + 1, dtype=D, generator=torch.Generator().manual_seed(3))
    data = (G, (G @ inside.unsqueeze(2)).squeeze(2) + slack, A, (A @ inside.unsqueeze(2)).squeeze(2))
    return data if p else data[:2]


@pytest.mark.parametrize("q, m, p, far", [(8, 3, 0, 0.0), (8, 3, 1, 30.0), (40, 10, 3, 5.0), (5, 1, 0, -20.0)])
def test_the_center_is_that_of_cvxpy(q, m, p, far):
    data = polytopes(2, q, m, p, far)
    found = analytic_center(*data, solution=True)
    for i in range(2):
        G, h, *rest = (part[i].numpy() for part in data)
        y = cp.Variable(m)
        problem = cp.Problem(cp.Minimize(-cp.sum(cp.log(h - G @ y))), [rest[0] @ y == rest[1]] if p else [])
        problem.solve(solver="CLARABEL")
        torch.testing.assert_close(found.y[i], torch.from_numpy(y.value), rtol=1e-4, atol=1e-5)
        assert found.objective[i].item() == pytest.approx(problem.value, abs=1e-5)
    assert found.stationarity.max() < 1e-10
    assert found.feasibility.max() < 1e-9


def test_the_multipliers_balance():
    G, h, A, b = polytopes(3, 8, 3, 1)
    found = analytic_center(G, h, A, b, solution=True)
    d, nu = found.inequality_multipliers, found.equality_multipliers
    pull = (G.mT @ d.unsqueeze(2) + A.mT @ nu.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(pull, torch.zeros_like(pull), rtol=0, atol=1e-9)
    torch.testing.assert_close(d * (h - (G @ found.y.unsqueeze(2)).squeeze(2)), torch.ones_like(d))


@pytest.mark.parametrize("p", [0, 1])
def test_derivatives_of_the_center_and_its_multipliers(p):
    def outputs(*data):
        found = analytic_center(*data, solution=True)
        parts = (found.y, found.inequality_multipliers, found.equality_multipliers)
        return tuple(part for part in parts if part is not None)

    inputs = [part.requires_grad_() for part in polytopes(1 + (p == 0), 3, 2, p)]
    assert gradcheck(outputs, inputs, check_forward_ad=True)
    assert gradgradcheck(outputs, inputs)


def test_shared_data_get_the_sum_of_the_gradients():
    G, h = polytopes(1, 6, 3)
    G, h = G[0].requires_grad_(), h + torch.rand(4, 1, dtype=D)
    (whole,) = torch.autograd.grad(analytic_center(G, h).sin().sum(), G)
    parts = [torch.autograd.grad(analytic_center(G, row).sin().sum(), G)[0] for row in h]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0))


def test_redundant_equalities_change_nothing():
    G, h, A, b = polytopes(2, 6, 3, 1)
    twice = torch.cat([A, 2 * A], dim=1).requires_grad_(), torch.cat([b, 2 * b], dim=1)
    y = analytic_center(G, h, *twice)
    torch.testing.assert_close(y, analytic_center(G, h, A, b))
    leaf = h.clone().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(analytic_center(G, leaf, *rows).sum(), leaf)[0] for rows in ((twice[0], twice[1]), (A, b))
    )
    torch.testing.assert_close(ours, theirs)


def test_a_face_without_an_offset_does_not_count():
    G, h = polytopes(2, 6, 3)
    more = torch.cat([G, randn(2, 1, 3, seed=5)], dim=1).requires_grad_()
    y = analytic_center(more, torch.cat([h, torch.full((2, 1), torch.inf, dtype=D)], dim=1))
    torch.testing.assert_close(y, analytic_center(G, h))
    (gradient,) = torch.autograd.grad(y.sum(), more)
    assert gradient.isfinite().all() and (gradient[:, -1] == 0).all()


def test_every_way_to_have_no_center_has_its_status_and_harms_nobody():
    G, h = SQUARE.repeat(7, 1, 1), torch.tensor([1.0, 1.0, 2.0, 0.5], dtype=D).repeat(7, 1)
    h[1, 0] = -2.0  # empty
    h[2, :2] = torch.tensor([1.0, -1.0])  # flat
    h[3, 0] = torch.inf  # a half strip
    h[4, 1] = torch.nan
    G[5, 2] = torch.tensor([1.0, 1.0])
    G.requires_grad_()
    with pytest.warns(ddn.ConvergenceWarning, match="4 of 7 items"):
        y = analytic_center(G, h)
    found = analytic_center(G, h, on_failure="ignore", solution=True)
    names = [ddn.Status(code).name for code in found.status.tolist()]
    assert names == ["CONVERGED", "INFEASIBLE", "INFEASIBLE", "UNBOUNDED", "NON_FINITE", "CONVERGED", "CONVERGED"]
    rest = [0, 5, 6]
    assert y[1:5].isnan().all()
    torch.testing.assert_close(y[rest], torch.stack([analytic_center(G[i], h[i]) for i in rest]))
    (gradient,) = torch.autograd.grad(y.nansum(), G)
    assert gradient.isfinite().all() and (gradient[1:5] == 0).all()


def test_contradicting_equalities_are_infeasible():
    A, b = torch.ones(2, 2, dtype=D), torch.tensor([0.0, 0.1], dtype=D)
    with pytest.raises(ddn.InfeasibleError):
        analytic_center(SQUARE, torch.ones(4, dtype=D), A, b, on_failure="raise")
    with pytest.raises(ddn.UnboundedError):
        analytic_center(SQUARE[:3], torch.ones(3, dtype=D), on_failure="raise")


def test_a_strip_has_many_centers_and_says_so():
    h = torch.tensor([1.0, 3.0], dtype=D, requires_grad=True)
    y = analytic_center(SQUARE[:2], h)
    torch.testing.assert_close(y.detach(), torch.tensor([-1.0, 0.0], dtype=D))
    torch.testing.assert_close(torch.autograd.grad(y[0], h)[0], torch.tensor([0.5, -0.5], dtype=D))
    with pytest.warns(ddn.DegenerateGradientWarning, match="the set is a line in some directions"):
        torch.autograd.grad(analytic_center(SQUARE[:2], h)[1], h)


def test_items_alone_or_mapped_are_those_of_the_batch():
    G, h = polytopes(4, 8, 3, far=10.0)
    found = analytic_center(G, h, solution=True)
    alone = [analytic_center(*item, solution=True) for item in zip(G, h, strict=True)]
    torch.testing.assert_close(found.y, torch.stack([one.y for one in alone]), rtol=1e-11, atol=1e-11)
    assert found.num_steps.tolist() == [one.num_steps.item() for one in alone]
    gradient = torch.func.grad(lambda h, G: analytic_center(G, h).sin().sum())
    looped = torch.stack([gradient(a, b) for a, b in zip(h, G, strict=True)])
    torch.testing.assert_close(torch.func.vmap(gradient)(h, G), looped)


def test_single_precision_agrees():
    data = polytopes(3, 8, 3, 1)
    y = analytic_center(*(part.float() for part in data))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), analytic_center(*data), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale):
    G, h = polytopes(2, 8, 3)
    torch.testing.assert_close(analytic_center(G, scale * h), scale * analytic_center(G, h))


WRONG = {
    "no faces": ({"G": SQUARE[:0]}, "must have faces and variables"),
    "offsets that do not fit": ({"h": torch.ones(3, dtype=D)}, "(h=...)` must have shape (*B, q) = (*B, 4)"),
    "another dtype": ({"h": torch.ones(4)}, "must have the dtype and device of `G`"),
    "rows alone": ({"A": SQUARE[:1]}, "(b=...)` is missing"),
    "right-hand sides alone": ({"b": torch.ones(1, dtype=D)}, "(A=...)` is missing"),
    "batches that do not fit": ({"G": SQUARE.repeat(2, 1, 1), "h": torch.ones(3, 4, dtype=D)}, "batch axes"),
    "no steps": ({"max_steps": 0}, "(max_steps=...)` must be an integer of at least 1"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        analytic_center(**{"G": SQUARE, "h": torch.ones(4, dtype=D), **changes})


def test_empty_batches_and_the_module():
    assert analytic_center(SQUARE, torch.ones(0, 4, dtype=D)).shape == (0, 2)
    center = ddn.nn.AnalyticCenter(torch.nn.Parameter(SQUARE.clone()), torch.ones(1, 2, dtype=D))
    h, b = torch.tensor([[1.0, 1.0, 2.0, 0.5]], dtype=D), torch.zeros(1, dtype=D)
    center(h, b).sum().backward()
    assert center.G.grad.isfinite().all()
    torch.testing.assert_close(center(h, b), analytic_center(SQUARE, h, torch.ones(1, 2, dtype=D), b))
    assert "A=tensor of shape (1, 2)" in repr(center)
