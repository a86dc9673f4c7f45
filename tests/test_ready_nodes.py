"""Ready nodes against the engine: the same problem, stated and differentiated in general, must give the same."""

import pytest
import torch
from problems import randn

import torchddn as ddn
from torchddn.functional import project_ball, project_sphere, robust_pool, robust_vector_pool

PENALTIES = ["quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic"]


def derivatives(node, x, scale):
    """Value, gradient and Hessian product of a loss of the node, in ``x`` and ``scale``."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = node(x, scale)
    first = torch.autograd.grad(y.pow(3).sum(), (x, scale), create_graph=True)
    second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), (x, scale), allow_unused=True)
    return y, *first, *(torch.zeros_like(t) if g is None else g for g, t in zip(second, (x, scale), strict=True))


def assert_same(ready, engine, x, scale):
    for ours, theirs in zip(derivatives(ready, x, scale), derivatives(engine, x, scale), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


class Pooled(ddn.Problem):
    """A robust mean whose answer is handed over, so that only the derivative is the engine's."""

    def __init__(self, penalty, ready):
        super().__init__()
        self.penalty, self.ready = ddn.penalties.get(penalty), ready

    def objective(self, y, x, alpha):
        offset = y - x
        z = offset if y.dim() == 0 else (offset.square().sum(-1) + 1e-300).sqrt()
        return self.penalty.phi(z, alpha).sum()

    def solve(self, x, alpha):
        return self.ready(x, alpha)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_scalar_pooling_has_the_engines_derivatives(penalty):
    def ready(x, alpha):
        return robust_pool(x, penalty, alpha)

    engine = ddn.DeclarativeNode(Pooled(penalty, ready), on_failure="raise")
    x = torch.cat([randn(3, 9), 6 + randn(3, 2, seed=1)], dim=1)
    assert_same(ready, engine, x, torch.tensor([0.8, 1.0, 1.5], dtype=torch.float64))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_vector_pooling_has_the_engines_derivatives(penalty):
    def ready(points, alpha):
        return robust_vector_pool(points, penalty, alpha)

    engine = ddn.DeclarativeNode(Pooled(penalty, ready), on_failure="raise")
    points = torch.cat([randn(3, 9, 2), 6 + randn(3, 2, 2, seed=1)], dim=1)
    assert_same(ready, engine, points, torch.tensor([1.3, 1.6, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("penalty", ["pseudo_huber", "huber"])
def test_convex_pooling_is_what_the_engine_finds_by_itself(penalty):
    phi = ddn.penalties.get(penalty).phi
    x = torch.cat([randn(3, 9), 6 + randn(3, 2, seed=1)], dim=1)
    found = ddn.argmin(lambda y, x: phi(y - x, 1.0).sum(), torch.zeros((), dtype=torch.float64), x)
    torch.testing.assert_close(robust_pool(x, penalty), found, rtol=1e-9, atol=1e-9)
    points = randn(3, 9, 2)
    found = ddn.argmin(
        lambda y, x: phi((y - x).square().sum(-1).sqrt(), 1.0).sum(), torch.full((2,), 0.1, dtype=torch.float64), points
    )
    torch.testing.assert_close(robust_vector_pool(points, penalty), found, rtol=1e-8, atol=1e-8)


class OnSphere(ddn.Problem):
    """Projection as the paper states it; where the norm has kinks, autograd picks a subgradient."""

    def __init__(self, p, ready):
        super().__init__()
        self.p, self.ready = p, ready

    def objective(self, y, x, radius):
        return 0.5 * (y - x).square().sum()

    def equality(self, y, x, radius):
        return torch.linalg.vector_norm(y, self.p) - radius

    def solve(self, x, radius):
        return self.ready(x, radius)


@pytest.mark.parametrize("project", [project_sphere, project_ball])
@pytest.mark.parametrize("p", [2, 1.5, 3])
def test_projection_from_outside_has_the_engines_derivatives(project, p):
    def ready(x, radius):
        return project(x, p, radius)

    engine = ddn.DeclarativeNode(OnSphere(p, ready), on_failure="raise")
    assert_same(ready, engine, 2 * randn(3, 4), torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64))


@pytest.mark.parametrize("p", [1, float("inf")])
def test_projection_onto_a_sphere_with_faces_has_the_engines_generalized_gradient(p):
    def ready(x, radius):
        return project_sphere(x, p, radius, plateau="clarke")

    # The engine sees a kink as a point that is not stationary: it is the gradient that is compared.
    engine = ddn.DeclarativeNode(OnSphere(p, ready), on_failure="ignore")
    x = 2 * randn(4, 5)
    v = randn(4, 5, seed=1)
    radius = torch.ones(4, dtype=torch.float64)
    grads = [
        torch.autograd.grad(node(at, radius), at, v)[0]
        for node in (ready, engine)
        for at in [x.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    zero = project_sphere(x.requires_grad_(), p)
    masked = torch.autograd.grad(zero, x, v)[0]
    clipped = (zero == 0) if p == 1 else (zero.abs() == 1)
    assert clipped.any()
    assert not masked[clipped].any() and grads[0][clipped].any()


def test_ready_nodes_leave_records_too():
    x = randn(4, 5)
    with ddn.diagnostics() as seen:
        robust_pool(x, "huber")
        robust_vector_pool(x[None], "welsch")
        torch.func.vmap(project_sphere)(x)
        project_ball(x[:0], on_failure="ignore")
    assert [record.call for record in seen.records] == [
        "robust_pool",
        "robust_vector_pool",
        "project_sphere",
        "project_ball",
    ]
    assert [record.method for record in seen.records] == ["Huber", "Welsch", "L2", "L2"]
    assert [record.statuses for record in seen.records] == [{"CONVERGED": n} for n in (4, 1, 4)] + [{}]
    assert seen.records[0].num_steps > 0 and all(record.seconds > 0 for record in seen.records)
