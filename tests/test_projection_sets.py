"""Projections onto simplices, sets and orthogonal matrices: closed forms, brute force, and other libraries."""

import itertools
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.transform
import torch
from problems import randn
from torch.func import grad, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn import nn
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InfeasibleError, InvalidInputError
from torchddn.functional.projection import segments as _monotone
from torchddn.status import Status

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=10)


def nearest(x, bounds=None, **constraint):
    """The projection by SciPy's SLSQP, one vector after the other."""
    x = x.numpy()
    return torch.tensor(
        np.stack([
            scipy.optimize.minimize(
                lambda y, row=row: ((y - row) ** 2).sum() / 2,
                np.zeros_like(row) + 0.01,
                jac=lambda y, row=row: y - row,
                bounds=bounds,
                constraints=constraint,
                method="SLSQP",
                options={"ftol": 1e-16, "maxiter": 500},
            ).x
            for row in x
        ])
    )  # fmt: skip


def assert_near(y, expected, atol=1e-6):
    torch.testing.assert_close(y, expected, rtol=0, atol=atol)


# Simplices


def test_known_simplex():
    x = torch.tensor([0.5, -2.0, 1.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(F.project_simplex(x), torch.tensor([0.25, 0.0, 0.75, 0.0], dtype=torch.float64))
    torch.testing.assert_close(F.sparsemax(x), F.project_simplex(x), rtol=0, atol=0)


@pytest.mark.parametrize("m", [1, 2, 5, 9])
def test_simplex_is_the_best_of_all_supports(m):
    for seed in range(8):
        x = randn(m, seed=seed)
        best, answer = math.inf, x
        for kept in itertools.product((False, True), repeat=m):
            if any(kept):
                support = torch.tensor(kept)
                y = torch.where(support, x - (x[support].sum() - 0.7) / support.sum(), 0)
                if (y >= 0).all() and (y - x).square().sum() < best:
                    best, answer = (y - x).square().sum(), y
        torch.testing.assert_close(F.project_simplex(x, 0.7), answer)


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 300), radius=st.sampled_from([1e-6, 0.1, 1.0, 30.0, 1e5]))
def test_simplex_agrees_with_the_sort(seed, m, radius):
    x = torch.randn(4, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[1] = x[1].round()
    x[2] = -(2.0 ** torch.arange(m, dtype=torch.float64).clamp(max=60))  # a step drops few of these
    descending = x.sort(dim=1, descending=True).values
    level = (descending.cumsum(dim=1) - radius) / torch.arange(1, m + 1)
    k = (descending > level).sum(dim=1, keepdim=True).clamp(min=1)
    expected = (x - level.gather(1, k - 1)).clamp(min=0)
    found = F.project_simplex(x, radius, solution=True)
    torch.testing.assert_close(found.y, expected, rtol=1e-9, atol=1e-9 * radius)
    assert (found.num_steps <= 40).all()


def test_simplex_far_from_the_origin_has_its_sum():
    x = torch.tensor([1e8, 1e8 - 8, 3.0])
    assert F.project_simplex(x, 10.0).tolist() == [9.0, 1.0, 0.0]
    assert F.project_ball(-x, 1, 10.0).tolist() == [-9.0, -1.0, 0.0]


def test_simplex_multipliers_satisfy_the_optimality_conditions():
    x = randn(5, 8)
    found = F.project_simplex(x, 0.9, solution=True)
    y, nu, lam = found.y, found.equality_multipliers, found.inequality_multipliers
    torch.testing.assert_close(y - x + nu - lam, torch.zeros_like(x))
    assert (lam >= 0).all() and (lam * y == 0).all()


@pytest.mark.parametrize("function", ["sparsemax", "entmax15"])
def test_sparse_probabilities_agree_with_the_package_of_their_authors(function):
    entmax = pytest.importorskip("entmax")
    for m in (1, 2, 10, 100):
        x, v = (3 * randn(6, m)).requires_grad_(), randn(6, m, seed=1)
        ours, theirs = getattr(F, function)(x), getattr(entmax, function)(x, dim=-1)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        pulled = [torch.autograd.grad(y, x, v)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*pulled, rtol=1e-7, atol=1e-8)


def test_entmax_is_optimal():
    x = 2 * randn(20, 7)
    found = F.entmax15(x, solution=True)
    y = found.y
    torch.testing.assert_close(y.sum(dim=1), torch.ones(20, dtype=torch.float64))
    # The gradient of the objective is one number on the support, and not below it elsewhere.
    slope = -x + 2 * y.sqrt()
    level = (slope * y).sum(dim=1, keepdim=True)
    support = y > 0
    torch.testing.assert_close(slope[support], level.expand_as(slope)[support])
    assert (slope >= level - 1e-12).all()
    other = torch.softmax(randn(20, 7, seed=1), dim=1)
    entropy = 4 / 3 * (other - other.pow(1.5)).sum(dim=1)
    assert (found.objective <= -(other * x).sum(dim=1) - entropy).all()


def test_capped_simplex_is_the_nearest_point():
    x, upper = 2 * randn(6, 5), 0.3 + 0.2 * randn(5, seed=1).abs()
    y = F.project_capped_simplex(x, 0.9, upper)
    total = {"type": "eq", "fun": lambda y: y.sum() - 0.9, "jac": np.ones_like}
    assert_near(y, nearest(x, bounds=[(0, u) for u in upper.tolist()], **total))
    torch.testing.assert_close(F.project_capped_simplex(x, 0.9, math.inf), F.project_simplex(x, 0.9))


def test_capped_simplex_without_room_is_infeasible():
    x = randn(2, 3)
    upper = torch.tensor([[0.2], [2.0]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match=r"1 of 2 items .* 1 x INFEASIBLE"):
        y = F.project_capped_simplex(x, 1.0, upper)
    assert (y[0] == 0.2).all()
    torch.testing.assert_close(y[1], F.project_simplex(x[1]))
    with pytest.raises(InfeasibleError):
        F.project_capped_simplex(x, 1.0, 0.2, on_failure="raise")
    full = F.project_capped_simplex(x, 0.6, 0.2)
    torch.testing.assert_close(full, torch.full_like(x, 0.2))


# Balls of other norms, boxes, halfspaces, affine sets


@pytest.mark.parametrize("size", [0.1, 2.0], ids=["inside", "outside"])
def test_weighted_l1_ball_is_the_nearest_point(size):
    x, w = size * randn(6, 4), torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    ball = {
        "type": "ineq",
        "fun": lambda y: 1.0 - w.numpy() @ np.abs(y),
        "jac": lambda y: -w.numpy() * np.sign(y),
    }
    y = F.project_weighted_l1_ball(x, w)
    assert ((y - x).norm(dim=1) <= (nearest(x, **ball) - x).norm(dim=1) + 1e-6).all()
    assert (w * y.abs()).sum(dim=1).max() <= 1 + 1e-12
    assert (y[:, 3] == x[:, 3]).all()
    torch.testing.assert_close(F.project_weighted_l1_ball(x, 1.0, 0.5), F.project_ball(x, 1, 0.5))
    torch.testing.assert_close(F.project_weighted_l1_ball(x, 0.0), x)


def test_l21_ball_is_the_ball_of_lengths():
    x = randn(5, 4, 3)
    y = F.project_l21_ball(x, 0.8)
    assert (y.norm(dim=2).sum(dim=1) <= 0.8 + 1e-12).all()
    torch.testing.assert_close(y.norm(dim=2), F.project_ball(x.norm(dim=2), 1, 0.8))
    torch.testing.assert_close(F.project_l21_ball(x.movedim(1, 2), 0.8, dim=1, group_dim=2), y.movedim(1, 2))
    torch.testing.assert_close(F.project_l21_ball(x[..., :1], 0.8).squeeze(2), F.project_ball(x[..., 0], 1, 0.8))
    torch.testing.assert_close(F.project_l21_ball(x, 100.0), x)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert (torch.autograd.functional.hessian(lambda x: F.project_l21_ball(x).pow(3).sum(), zero) == 0).all()


def test_box_clips():
    x = randn(4, 3)
    torch.testing.assert_close(F.project_box(x, -0.1, 0.3), x.clamp(-0.1, 0.3), rtol=0, atol=0)
    torch.testing.assert_close(F.project_box(x), x, rtol=0, atol=0)
    low = randn(3)
    torch.testing.assert_close(F.project_box(x, lower=low), torch.maximum(x, low), rtol=0, atol=0)
    slope = torch.autograd.functional.jacobian(lambda low: F.project_box(x, low).sum(), low)
    torch.testing.assert_close(slope, (x < low).sum(dim=0).double())


def test_halfspace_is_the_nearest_point():
    x, a = randn(6, 4), randn(4, seed=1)
    half = {"type": "ineq", "fun": lambda y: 0.2 - a.numpy() @ y, "jac": lambda y: -a.numpy()}
    found = F.project_halfspace(x, a, 0.2, solution=True)
    assert_near(found.y, nearest(x, **half))
    torch.testing.assert_close(found.y - x + found.inequality_multipliers * a, torch.zeros_like(x))
    huge = F.project_halfspace(x.float(), 1e30 * a.float(), 2e29)
    torch.testing.assert_close(huge.double(), found.y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 9])
def test_known_hyperplane(size):
    jacobian = torch.autograd.functional.jacobian(
        lambda x: F.project_affine(x, torch.ones(1, size, dtype=torch.float64), 1.0), randn(size)
    )
    expected = torch.eye(size, dtype=torch.float64) - 1 / size
    torch.testing.assert_close(jacobian, expected)


def test_affine_set_is_the_textbook_formula():
    x, A, b = randn(7, 5), randn(3, 5, seed=1), randn(3, seed=2)
    inverse = torch.linalg.pinv(A)
    expected = x - (x @ A.mT - b) @ inverse.mT
    found = F.project_affine(x, A, b, solution=True)
    torch.testing.assert_close(found.y, expected)
    torch.testing.assert_close(found.y - x + found.equality_multipliers @ A, torch.zeros_like(x))
    each = F.project_affine(x, A.expand(7, 3, 5), b)
    torch.testing.assert_close(each, expected)
    # Known answer 6: where x is zero, the derivative in b is the pseudo-inverse.
    slope = torch.autograd.functional.jacobian(lambda b: F.project_affine(torch.zeros_like(x[0]), A, b), b)
    torch.testing.assert_close(slope, inverse)


def test_redundant_rows_change_nothing():
    x, A, b = randn(4, 5), randn(2, 5, seed=1), randn(2, seed=2)
    mix = randn(4, 2, seed=3)
    v = randn(4, 5, seed=4)

    def project(x, A, b):
        return (F.project_affine(x, A, b) * v).sum()

    slopes = grad(project, (0, 1, 2))(x, A, b)
    through = grad(lambda x, A, b: project(x, mix @ A, mix @ b), (0, 1, 2))(x, A, b)
    for ours, theirs in zip(through, slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_contradictory_rows_are_infeasible():
    A, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 3.0])
    with pytest.warns(ConvergenceWarning, match="INFEASIBLE"):
        y = F.project_affine(torch.tensor([7.0, 5.0]), A, b)
    torch.testing.assert_close(y, torch.tensor([2.0, 5.0]))
    assert F.project_affine(torch.ones(2), A, b, on_failure="ignore", solution=True).status == Status.INFEASIBLE


# The monotone cone


@few
@hypothesis.given(seed=SEEDS, m=st.integers(1, 70), kind=st.sampled_from(["noise", "walk", "ties", "falling", "chain"]))
def test_monotone_agrees_with_pooling_one_after_the_other(seed, m, kind):
    isotonic = pytest.importorskip("sklearn.isotonic").isotonic_regression
    x = torch.randn(4, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = {
        "noise": x,
        "walk": x.cumsum(dim=1),
        "ties": x.round(),
        "falling": -torch.arange(m, dtype=torch.float64).expand(4, m) + 0.1 * x,
        "chain": torch.arange(m, dtype=torch.float64).expand(4, m) - 1e4 * torch.eye(1, m).flip(1),
    }[kind]
    expected = torch.tensor(np.stack([isotonic(row) for row in x.numpy()])).reshape(4, m)
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * (1 + x.abs().max().item())}
    torch.testing.assert_close(F.project_monotone(x), expected, **tolerance)
    torch.testing.assert_close(F.project_monotone(-x, increasing=False), -expected, **tolerance)
    torch.testing.assert_close(_monotone._merged(x), expected, **tolerance)


def test_long_chains_are_merged_by_halves():
    x = torch.arange(3000, dtype=torch.float64).repeat(2, 1)
    x[0, -1] = -1e6
    found = F.project_monotone(x, solution=True)
    segment = (found.y[0] != found.y[0, -1]).sum()
    torch.testing.assert_close(found.y[0, segment:], x[0, segment:].mean().expand(3000 - segment))
    assert segment == 0 or x[0, segment - 1] <= found.y[0, -1]
    assert found.num_steps.tolist() == [_monotone._NUM_ROUNDS + 12, 0]


def test_monotone_gradient_is_the_mean_over_segments():
    x = torch.tensor([1.0, 3.0, 2.0, 4.0, 5.0, 4.5], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(F.project_monotone, x)
    expected = torch.block_diag(*(torch.full((k, k), 1 / k, dtype=torch.float64) for k in (1, 2, 1, 2)))
    torch.testing.assert_close(jacobian, expected)
    lam = F.project_monotone(x, solution=True).inequality_multipliers
    torch.testing.assert_close(lam, torch.tensor([0.0, 0.5, 0.0, 0.0, 0.25], dtype=torch.float64))


# Orthogonal matrices


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (5, 3), (4, 1)])
def test_orthogonal_is_the_polar_factor(shape):
    X = randn(6, *shape)
    Y = F.project_orthogonal(X)
    H = Y.mT @ X
    torch.testing.assert_close(Y.mT @ Y, torch.eye(shape[1], dtype=torch.float64).expand(6, -1, -1))
    torch.testing.assert_close(H, H.mT)
    assert (torch.linalg.eigvalsh(H) > 0).all()
    torch.testing.assert_close(Y @ H, X)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_rotation_is_the_best_of_all_sign_changes(n):
    X = randn(20, n, n)
    Y = F.project_rotation(X)
    torch.testing.assert_close(torch.linalg.det(Y), torch.ones(20, dtype=torch.float64))
    U, _, Vh = torch.linalg.svd(X)
    for signs in itertools.product((-1.0, 1.0), repeat=n):
        other = U @ torch.diag(torch.tensor(signs, dtype=torch.float64)) @ Vh
        right = torch.linalg.det(other) > 0
        gain = (Y * X).sum(dim=(1, 2)) - (other * X).sum(dim=(1, 2))
        assert (gain[right] > -1e-12).all()


def test_rotation_aligns_points_as_scipy_does():
    p, q = randn(10, 3), randn(10, 3, seed=1)
    expected = scipy.spatial.transform.Rotation.align_vectors(q.numpy(), p.numpy())[0].as_matrix()
    torch.testing.assert_close(F.project_rotation(q.mT @ p), torch.from_numpy(expected))


@pytest.mark.parametrize("function", [F.project_orthogonal, F.project_rotation])
@pytest.mark.parametrize("singular", [(2.0, 2.0, 2.0), (3.0, 1.0, 1.0), (1.0, 1.0, 1e-3)])
def test_repeated_singular_values_have_exact_gradients(function, singular):
    U, V = F.project_rotation(randn(2, 3, 3))
    X = (U @ torch.diag(torch.tensor(singular, dtype=torch.float64)) @ V).requires_grad_()
    assert torch.autograd.gradcheck(function, X, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, X)


def test_undetermined_gradients_are_reported():
    reflected = torch.diag(torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)).requires_grad_()
    for X, function in (
        (reflected, F.project_rotation),
        (torch.zeros(3, 3, dtype=torch.float64, requires_grad=True), F.project_orthogonal),
        (torch.eye(4, 2, dtype=torch.float64)[:, [0, 0]].requires_grad_(), F.project_orthogonal),
    ):
        Y = function(X)
        with pytest.warns(DegenerateGradientWarning, match=rf"^`{function.__name__}`: the gradient of 1 of 1 items"):
            slope = torch.autograd.grad((Y * randn(*Y.shape)).sum(), X)[0]
        assert slope.isfinite().all()


def test_one_zero_singular_value_leaves_a_square_matrix_its_gradient():
    X = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)).requires_grad_()
    Y = F.project_orthogonal(X)
    torch.testing.assert_close(
        torch.autograd.grad(Y[1, 0], X)[0], torch.tensor([[0.0, -0.5], [0.5, 0.0]]).double() * Y[1, 1]
    )


def test_large_batches_of_rotations_do_not_hang():
    Y = F.project_rotation(randn(4, 160, 160))
    torch.testing.assert_close(Y.mT @ Y, torch.eye(160, dtype=torch.float64).expand(4, -1, -1))


# Centers


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("project", [F.project_sphere, F.project_ball])
def test_center_moves_the_sphere(project, p):
    x, c = randn(3, 4, 2), randn(4, 2, seed=1)
    torch.testing.assert_close(project(x, p, 0.7, 1, center=c), c + project(x - c, p, 0.7, 1))
    torch.testing.assert_close(project(x, p, center=0.5), 0.5 + project(x - 0.5, p))
    found = project(x, p, 0.7, center=c, solution=True)
    assert (found.feasibility < 1e-13).all()
    slopes = grad(lambda x, c: (project(x, p, 0.7, center=c) * x.cos()).sum(), 1)(x, c)
    moved = grad(lambda c: ((c + project(x - c, p, 0.7)) * x.cos()).sum())(c)
    torch.testing.assert_close(slopes, moved)


# Modules


MODULES = [
    (nn.ProjectSphere(2, 0.5, center=torch.ones(4)), lambda x: F.project_sphere(x, 2, 0.5, center=torch.ones(4))),
    (nn.ProjectBall(1, 0.5, center=0.1), lambda x: F.project_ball(x, 1, 0.5, center=0.1)),
    (nn.ProjectSimplex(0.5, dim=1), lambda x: F.project_simplex(x, 0.5, 1)),
    (nn.Sparsemax(dim=1), lambda x: F.sparsemax(x, 1)),
    (nn.Entmax15(dim=1), lambda x: F.entmax15(x, 1)),
    (nn.ProjectCappedSimplex(1.5, 0.7), lambda x: F.project_capped_simplex(x, 1.5, 0.7)),
    (nn.SoftTopK(1.5, 2.0, dim=1), lambda x: F.soft_top_k(x, 1.5, 2.0, 1)),
    (nn.ProjectWeightedL1Ball(torch.arange(4.0), 0.3), lambda x: F.project_weighted_l1_ball(x, torch.arange(4.0), 0.3)),
    (nn.ProjectL21Ball(0.3, dim=1, group_dim=2), lambda x: F.project_l21_ball(x, 0.3, 1, 2)),
    (nn.ProjectBox(-0.1, torch.full((4,), 0.2)), lambda x: F.project_box(x, -0.1, 0.2)),
    (nn.ProjectHalfspace(torch.ones(4), -1.0), lambda x: F.project_halfspace(x, torch.ones(4), -1.0)),
    (nn.ProjectAffine(torch.ones(1, 4), 2.0), lambda x: F.project_affine(x, torch.ones(1, 4), 2.0)),
    (nn.ProjectMonotone(increasing=False), lambda x: F.project_monotone(x, increasing=False)),
    (nn.ProjectOrthogonal(), lambda x: F.project_orthogonal(x.mT).mT),
    (nn.ProjectRotation(), lambda x: F.project_rotation(x[..., :3])),
]


@pytest.mark.parametrize("module, function", MODULES, ids=lambda part: type(part).__name__)
def test_modules_are_the_functions(module, function):
    x = torch.randn(2, 3, 4)
    of = {"ProjectOrthogonal": x.mT, "ProjectRotation": x[..., :3]}.get(type(module).__name__, x)
    y = module(of)
    expected = function(x)
    torch.testing.assert_close(y.mT if isinstance(module, nn.ProjectOrthogonal) else y, expected)
    assert (module.solve(of).status == Status.CONVERGED).all()
    assert repr(module).startswith(type(module).__name__ + "(")
    module.on_failure = "raise"
    with pytest.raises(ddn.SolveError):
        module(of * math.nan)


def test_modules_learn_what_is_a_parameter():
    x = torch.randn(5, 3)
    normal = torch.nn.Parameter(torch.ones(3))
    project = nn.ProjectHalfspace(normal, torch.tensor(-1.0))
    assert dict(project.named_parameters()) == {"normal": normal} and list(project.state_dict()) == ["normal", "offset"]
    project(x).sum().backward()
    assert normal.grad.isfinite().all()
    radius = nn.ProjectSimplex(2.0, learnable_radius=True)
    radius(x).square().sum().backward()
    assert radius.scale.log.grad > 0
    assert "learnable_radius=True" in repr(radius) and "tensor of shape (3,)" in repr(project)


# Mistakes


X = torch.zeros(2, 3)
MISTAKES = [
    (lambda: F.project_simplex(X, 0.0), "`project_simplex(radius=...)` must be positive and finite, got 0.0."),
    (lambda: F.sparsemax(X[:, :0]), "`sparsemax(x=...)` must have coordinates along dim=-1, got shape (2, 0)."),
    (lambda: F.entmax15(3.0), "`entmax15(x=...)` must be a tensor, got float. Wrap it in `torch.as_tensor`."),
    (lambda: F.entmax15(X, (0, 1)),
     "`entmax15(dim=...)` must be one integer, got (0, 1). Flatten the axes of the vector."),
    (lambda: F.project_capped_simplex(X, upper=-1), "`project_capped_simplex(upper=...)` must be positive, got -1."),
    (lambda: F.soft_top_k(X, -1), "`soft_top_k(k=...)` must be non-negative and finite, got -1."),
    (lambda: F.soft_top_k(X, 4), "`soft_top_k(k=...)` must be at most the number of coordinates, got 4."),
    (lambda: F.soft_top_k(X, torch.tensor([1.0, 3.5])),
     "`soft_top_k(k=...)` must be at most the number of coordinates, got 3.5 among its entries."),
    (lambda: F.soft_top_k(X, torch.ones(3)),
     "`soft_top_k(k=...)` must have a shape that broadcasts to (2,), got (3,). Reshape it, or pass one number for "
     "all."),
    (lambda: F.soft_top_k(X, 1, 0.0), "`soft_top_k(gamma=...)` must be positive and finite, got 0.0."),
    (lambda: F.project_box(X, math.nan), "`project_box(lower=...)` must be not NaN, got nan."),
    (lambda: F.project_box(X, 1.0, 0.0),
     "`project_box(lower=...)` must not be above `upper`, but is for 6 coordinates. Swap the bounds there."),
    (lambda: F.project_box(X, torch.zeros(2)),
     "`project_box(lower=...)` must have a shape that broadcasts to (2, 3), got (2,). Reshape it, or pass one "
     "number for all."),
    (lambda: F.project_weighted_l1_ball(X, torch.tensor([1.0, -1.0, 0.0])),
     "`project_weighted_l1_ball(weights=...)` must be non-negative and finite, got -1 among its entries."),
    (lambda: F.project_weighted_l1_ball(X, torch.tensor(1)),
     "`project_weighted_l1_ball(weights=...)` must be a real floating-point tensor, got torch.int64. Convert it with "
     "`.float()`."),
    (lambda: F.project_l21_ball(X[0]), "`project_l21_ball(x=...)` must have shape (*B, g, m), got (3,)."),
    (lambda: F.project_l21_ball(X, dim=0),
     "`project_l21_ball(dim=...)` must name each axis once, got (-2, 0). Use integers from -2 to 1, each axis once."),
    (lambda: F.project_l21_ball(X[:0].T),
     "`project_l21_ball(x=...)` must have groups with coordinates, got shape (3, 0)."),
    (lambda: F.project_halfspace(X, torch.zeros(3)),
     "`project_halfspace(normal=...)` must not be zero. Leave out vectors without a constraint."),
    (lambda: F.project_halfspace(X, torch.ones(3), "0"),
     "`project_halfspace(offset=...)` must be a number or a tensor, got str."),
    (lambda: F.project_affine(X, torch.ones(2, 4)),
     "`project_affine(A=...)` must have shape (*B, p, m) with p > 0 and m = 3, got (2, 4)."),
    (lambda: F.project_affine(X, torch.ones(3, 2, 3)),
     "`project_affine(A=...)` must have a shape that broadcasts to (2, 2, 3), got (3, 2, 3). Reshape it, or pass one "
     "number for all."),
    (lambda: F.project_affine(X, torch.ones(2, 3), torch.ones(3, device="meta")),
     "`project_affine(b=...)` must be on the device of the data, cpu, got meta. Move it with `.to('cpu')`."),
    (lambda: F.project_monotone(X, increasing="up"),
     "`project_monotone(increasing=...)` must be True or False, got 'up'."),
    (lambda: F.project_orthogonal(X),
     "`project_orthogonal(X=...)` must have at least as many rows as columns, got shape (2, 3). Transpose it."),
    (lambda: F.project_orthogonal(X[:, :0]), "`project_orthogonal(X=...)` must have entries, got shape (2, 0)."),
    (lambda: F.project_rotation(X), "`project_rotation(X=...)` must be square matrices, got shape (2, 3)."),
    (lambda: F.project_sphere(X, center=math.inf), "`project_sphere(center=...)` must be finite, got inf."),
    (lambda: nn.ProjectSimplex(-1.0), "`ProjectSimplex(radius=...)` must be positive and finite, got -1.0."),
    (lambda: nn.ProjectBox(on_failure="stop"),
     "`ProjectBox(on_failure=...)` must be one of 'warn', 'raise', 'nan', 'ignore', got 'stop'."),
]  # fmt: skip


@pytest.mark.parametrize("call, message", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told(call, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        call()


def test_values_are_checked_under_vmap_too():
    with pytest.raises(InvalidInputError, match="non-negative"):
        vmap(lambda x, w: F.project_weighted_l1_ball(x, w))(X, torch.tensor([1.0, -1.0]))
