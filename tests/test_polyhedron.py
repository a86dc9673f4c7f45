"""Projection onto polyhedra: other nodes and solvers, both ways to solve, derivatives, contradictions."""

import math
import re
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from problems import randn
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import ConvergenceWarning, InfeasibleError, InvalidInputError
from torchddn.status import Status

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=8)
EYE = torch.eye(5, dtype=torch.float64)
ONES = torch.ones(1, 5, dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


def rows(batch: int = 3) -> tuple[torch.Tensor, ...]:
    """``x, G, h, A, b`` in five dimensions, feasible."""
    G, A, point = randn(batch, 3, 5, seed=1), randn(1, 5, seed=2), randn(batch, 5, seed=3)
    h = (G @ point.unsqueeze(-1)).squeeze(-1) + 0.1
    return 3 * randn(batch, 5), G, h, A, point @ A[0].unsqueeze(-1)


@few
@hypothesis.given(seed=SEEDS, q=st.integers(1, 9), p=st.integers(0, 3), limited=st.booleans())
def test_it_is_the_quadratic_program_of_the_identity(seed, q, p, limited):
    """Of few rows, the program of multipliers; of many or with limits, that of y."""
    generator = torch.Generator().manual_seed(seed)
    G, A, x = (torch.randn(4, k, 5, generator=generator, dtype=torch.float64) for k in (q, p, 1))
    point = torch.rand(4, 5, 1, generator=generator, dtype=torch.float64)
    x, h, b = 3 * x.squeeze(1), (G @ point).squeeze(2) + 0.1, (A @ point).squeeze(2)
    limits = {"lower": -0.1, "upper": torch.ones(5, dtype=torch.float64)} if limited else {}
    given = {"G": G, "h": h, **({"A": A, "b": b} if p else {}), **limits}
    found = F.project_polyhedron(x, **given, solution=True)
    expected = F.quadratic_program(EYE, -x, **given, solution=True)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=1e-11)
    names = ("inequality_multipliers", *(("equality_multipliers",) if p else ()))
    for name in names if q + p <= 5 else ():
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-10)
    objective = expected.objective + x.square().sum(1) / 2
    torch.testing.assert_close(found.objective, objective, rtol=0, atol=1e-11)
    for name in ("feasibility", "stationarity", "complementarity"):
        assert (getattr(found, name) < 1e-10).all()


def test_it_is_the_projection_of_a_conic_solver():
    cp = pytest.importorskip("cvxpy")
    x, G, h, A, b = rows()
    for i, y in enumerate(F.project_polyhedron(x, G, h, A, b).numpy()):
        z = cp.Variable(5)
        constraints = [G[i].numpy() @ z <= h[i].numpy(), A.numpy() @ z == b[i].numpy()]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x[i].numpy())), constraints)
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(y, z.value, atol=1e-6)


def test_special_polyhedra_have_nodes_of_their_own():
    x = 2 * randn(4, 5)
    same = [
        (F.project_polyhedron(x, A=ONES, b=ONE, lower=0.0), F.project_simplex(x)),
        (F.project_polyhedron(x, lower=-0.5, upper=0.5), F.project_box(x, -0.5, 0.5)),
        (F.project_polyhedron(x, ONES, ONE), F.project_halfspace(x, ONES[0], 1.0)),
        (F.project_polyhedron(x, A=ONES, b=ONE), F.project_affine(x, ONES, ONE)),
        (F.project_polyhedron(x, EYE[:-1] - EYE[1:], 0 * EYE[1:, 0]), F.project_monotone(x)),
        (F.project_polyhedron(x), x),
    ]
    for ours, theirs in same:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# Derivatives


def test_gradients_are_exact_in_every_argument_and_mode():
    inputs = [t.requires_grad_() for t in rows(2)]

    def all_outputs(*inputs):
        found = F.project_polyhedron(*inputs, solution=True)
        return found.y, found.equality_multipliers, found.inequality_multipliers

    assert (all_outputs(*inputs)[2] > 0).any()
    assert torch.autograd.gradcheck(all_outputs, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(F.project_polyhedron, inputs, fast_mode=True)


def test_gradients_with_limits_are_exact():
    x, G, h, _, _ = rows(2)
    lower = torch.full((5,), -0.3, dtype=torch.float64)

    def project(x, G, h, lower, upper):
        return F.project_polyhedron(x, G, h, lower=lower, upper=upper)

    inputs = [t.requires_grad_() for t in (x, G, h.abs(), lower, lower + 0.9)]
    assert torch.autograd.gradcheck(project, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(project, inputs, fast_mode=True)


def test_forward_mode_is_the_transpose_of_reverse_mode():
    inputs = rows()
    tangents = tuple(randn(*t.shape, seed=9) for t in inputs)
    y, dy = jvp(F.project_polyhedron, inputs, tangents)
    v = randn(*y.shape, seed=10)
    gradients = vjp(F.project_polyhedron, *inputs)[1](v)
    torch.testing.assert_close((v * dy).sum(), sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))


def test_shared_rows_get_the_sum_over_the_batch():
    x, G, h, A, b = rows()
    G = G[0]
    h = (G @ randn(3, 5, seed=3).T).T + 0.1

    def loss(G):
        return F.project_polyhedron(x, G, h, A, b).pow(3).sum()

    each = grad(loss)(G.expand(3, 3, 5))
    torch.testing.assert_close(grad(loss)(G), each.sum(0))


def test_rows_that_depend_on_each_other_change_nothing():
    x, G, h, _, _ = rows()
    v = randn(3, 5, seed=5)
    more = torch.cat([G, 2 * G[:, :1]], dim=1), torch.cat([h, 2 * h[:, :1]], dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ((G, h), more):
            slope = grad(lambda x, given=given: (F.project_polyhedron(x, *given) * v).sum())(x)
            torch.testing.assert_close(F.project_polyhedron(x, *given), F.project_polyhedron(x, G, h))
            torch.testing.assert_close(slope, grad(lambda x: (F.project_polyhedron(x, G, h) * v).sum())(x))


@pytest.mark.parametrize("limits", [{}, {"lower": -10.0}], ids=["multipliers", "points"])
def test_a_weakly_active_row_counts_as_told(limits):
    x, G, h = torch.tensor([1.0, 0.0]).double(), torch.tensor([[1.0, 0.0]]).double(), ONE
    for side, expected in (("active", 0.0), ("inactive", 1.0)):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, side=side: F.project_polyhedron(x, G, h, weakly_active=side, **limits), x
        )
        torch.testing.assert_close(jacobian, torch.diag(torch.tensor([expected, 1.0]).double()), rtol=0, atol=1e-9)


def test_an_infinite_row_does_not_count():
    x, G, h, A, b = rows()
    without = F.project_polyhedron(x, G[:, [0, 2]], h[:, [0, 2]], A, b)
    h[:, 1] = math.inf
    inputs = [t.requires_grad_() for t in (x, G)]
    y = F.project_polyhedron(*inputs, h, A, b)
    torch.testing.assert_close(y, without)
    slopes = torch.autograd.grad(y.pow(3).sum(), inputs)
    assert all(slope.isfinite().all() for slope in slopes) and (slopes[1][:, 1] == 0).all()


def test_vmap_is_a_loop_and_transforms_compose():
    inputs = rows()[:3]
    loop = torch.stack([F.project_polyhedron(*item) for item in zip(*inputs, strict=True)])
    torch.testing.assert_close(vmap(F.project_polyhedron)(*inputs), loop)
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(F.project_polyhedron, item)[0] for item in zip(*inputs, strict=True)]
    )
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(F.project_polyhedron))(*inputs), jacobians)


# Contradictions, failures, dtypes


def contradictory() -> tuple[torch.Tensor, ...]:
    """Three items in the plane, of which the second must be below -1 and above 1."""
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    h = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 2.0]], dtype=torch.float64)
    return torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0]], dtype=torch.float64), G, h


@pytest.mark.parametrize("limits", [{}, {"lower": -10.0}], ids=["multipliers", "points"])
def test_contradictions_are_treated_as_told(limits):
    x, G, h = contradictory()
    closest = torch.tensor([[1.0, 4.0], [0.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match=r"^`project_polyhedron`: the constraints of 1 of 3 items .* \(1\)"):
        y = F.project_polyhedron(x, G, h, **limits)
    torch.testing.assert_close(y, closest, rtol=0, atol=1e-12)
    found = F.project_polyhedron(x, G, h, **limits, infeasible="closest", solution=True)
    torch.testing.assert_close(found.y, closest, rtol=0, atol=1e-12)
    assert found.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    y = F.project_polyhedron(x, G, h, **limits, infeasible="nan")
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    with pytest.raises(InfeasibleError, match="contradict each other"):
        F.project_polyhedron(x, G, h, **limits, infeasible="raise")
    jacobian = torch.autograd.functional.jacobian(
        lambda h: F.project_polyhedron(x, G, h, **limits, infeasible="closest")[1], h
    )
    torch.testing.assert_close(jacobian[:, 1], torch.tensor([[0.5, -0.5], [0.0, 0.0]]).double(), rtol=0, atol=1e-9)


def test_an_item_that_is_not_finite_spoils_only_itself():
    x, G, h, A, b = rows()
    expected = F.project_polyhedron(x, G, h, A, b)
    slopes = grad(lambda *t: F.project_polyhedron(*t).pow(3).sum(), (0, 1, 2, 3))(x, G, h, A, b)
    for at, poison in ((0, math.nan), (1, math.inf), (2, math.nan), (2, -math.inf)):
        bad = [x.clone(), G.clone(), h.clone(), A, b]
        bad[at][1].flatten()[0] = poison
        with pytest.warns(ConvergenceWarning, match=r"`project_polyhedron`: 1 of 3 items .* NON_FINITE"):
            y = F.project_polyhedron(*bad)
        assert y[1].isnan().all()
        torch.testing.assert_close(y[[0, 2]], expected[[0, 2]])
        found = grad(lambda *t: F.project_polyhedron(*t, on_failure="ignore").pow(3).sum(), (0, 1, 2))(*bad)
        for mine, theirs in zip(found, slopes[:3], strict=True):
            torch.testing.assert_close(mine[[0, 2]], theirs[[0, 2]])
            assert (mine[1] == 0).all()


@few
@hypothesis.given(seed=SEEDS)
def test_batch_items_do_not_interact(seed):
    x, G, h, A, b = rows(4)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[1] *= 1e3
    whole = F.project_polyhedron(x, G, h, A, b, solution=True)
    for i in range(4):
        alone = F.project_polyhedron(x[i], G[i], h[i], A, b[i], solution=True)
        torch.testing.assert_close(whole.y[i], alone.y, rtol=1e-11, atol=1e-11)
        assert whole.num_steps[i] == alone.num_steps


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.float16, 5e-2)])
def test_lower_precision_returns_its_dtype(dtype, atol):
    inputs = [t.to(dtype) for t in rows()]
    y = F.project_polyhedron(*inputs)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), F.project_polyhedron(*(t.double() for t in inputs)), rtol=0, atol=atol)


def test_empty_batches_and_batch_axes():
    x, G, h, A, b = rows()
    assert F.project_polyhedron(x[:0], G[:0], h[:0], A, b[:0]).shape == (0, 5)
    many = randn(2, 3, 5)
    y = F.project_polyhedron(many, G, h)
    torch.testing.assert_close(y[1], F.project_polyhedron(many[1], G, h))
    one = many[0, 0]
    torch.testing.assert_close(F.project_polyhedron(one, G, h), F.project_polyhedron(one.expand(3, 5), G, h))


def test_the_module_learns_what_is_a_parameter():
    x, G, h, _, _ = rows()
    G, h = G[0], h[0]
    module = nn.ProjectPolyhedron(torch.nn.Parameter(G), h)
    torch.testing.assert_close(module(x), F.project_polyhedron(x, G, h))
    assert list(dict(module.named_parameters())) == ["G"]
    assert "h" in module.state_dict()
    module(x).pow(2).sum().backward()
    assert module.G.grad.abs().max() > 0
    assert (module.solve(x).status == Status.CONVERGED).all()
    assert repr(module).startswith("ProjectPolyhedron(G=tensor of shape (3, 5), h=tensor of shape (3,), A=None")
    module.on_failure = "raise"
    with pytest.raises(ddn.SolveError):
        module(x * math.nan)


X = torch.zeros(2, 3)
MISTAKES = [
    (lambda: F.project_polyhedron(X[:, :0]), "`project_polyhedron(x=...)` must have coordinates, got shape (2, 0)."),
    (lambda: F.project_polyhedron(X, torch.ones(2, 4), torch.ones(2)),
     "`project_polyhedron(G=...)` must have shape (*B, q, m) with m = 3, as `x` says, got (2, 4)."),
    (lambda: F.project_polyhedron(X, torch.ones(2, 3).double(), torch.ones(2).double()),
     "`project_polyhedron(G=...)` must have the dtype and device of `x`, torch.float32 on cpu, got torch.float64 on "
     "cpu. Convert it with `.to(x)`."),
    (lambda: F.project_polyhedron(X, torch.ones(2, 3), torch.ones(3)),
     "`project_polyhedron(h=...)` must have an entry for each row of `G`, 2, got shape (3,)."),
    (lambda: F.project_polyhedron(X, lower=1.0, upper=0.0),
     "`project_polyhedron(lower=...)` must not exceed `upper`, but does for a variable of item 0."),
    (lambda: F.project_polyhedron(X, torch.ones(2, 3)),
     "`project_polyhedron(h=...)` is missing: `G` and `h` belong together, and `G` is given."),
    (lambda: F.project_polyhedron(X, max_steps=True),
     "`project_polyhedron(max_steps=...)` must be a positive integer, got True."),
]  # fmt: skip


@pytest.mark.parametrize("call, message", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told(call, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        call()
