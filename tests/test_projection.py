"""Projections onto spheres and balls: nearest points, exact derivatives, and mistakes that are told."""

import itertools
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, InvalidInputError, SolveError
from torchddn.functional import project_ball, project_sphere
from torchddn.status import Status

INF = float("inf")
NORMS = [1, 1.5, 2, 3, INF]
CALLS = {"project_sphere": project_sphere, "project_ball": project_ball}

every_norm = pytest.mark.parametrize("p", NORMS)
every_call = pytest.mark.parametrize("name", CALLS)
inside_and_outside = pytest.mark.parametrize("size", [0.2, 3.0], ids=["inside", "outside"])
seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=10)


def data(size=1.0, batch=4, m=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(batch, m, generator=generator, dtype=torch.float64)
    return x, 0.8 + 0.5 * torch.rand(batch, generator=generator, dtype=torch.float64)


def norm(y, p):
    return torch.linalg.vector_norm(y, p, dim=-1)


# Values


@every_call
def test_known_projections(name):
    x = torch.tensor([0.5, -2.0, 1.0, 0.1], dtype=torch.float64)
    known = {
        1: [0.0, -1.0, 0.0, 0.0],
        2: [0.21801036, -0.87204144, 0.43602072, 0.04360207],
        INF: [0.5, -1.0, 1.0, 0.1],
    }
    for p, y in known.items():
        expected = torch.tensor(y, dtype=torch.float64)
        torch.testing.assert_close(CALLS[name](x, p), expected, rtol=0, atol=1e-8 if p == 2 else 1e-12)


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_jacobian(name, dtype):
    jacobian = torch.autograd.functional.jacobian(CALLS[name], torch.tensor([3.0, 4.0], dtype=dtype))
    expected = torch.tensor([[0.128, -0.096], [-0.096, 0.072]], dtype=dtype)
    torch.testing.assert_close(jacobian, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


@every_norm
def test_ball_is_the_identity_inside_and_so_is_its_derivative(p):
    x, radius = data(0.05)
    torch.testing.assert_close(project_ball(x, p, radius), x, rtol=0, atol=0)
    jacobian = vmap(jacrev(lambda x, radius: project_ball(x, p, radius)))(x, radius)
    torch.testing.assert_close(jacobian, torch.eye(5, dtype=x.dtype).expand(4, 5, 5), rtol=0, atol=0)
    slope = grad(lambda radius: project_ball(x, p, radius).sum())(radius)
    assert (slope == 0).all()


@every_norm
@inside_and_outside
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sphere_holds_its_points(p, size, dtype):
    x, radius = data(size, batch=200)
    y = project_sphere(x.to(dtype), p, radius.to(dtype))
    torch.testing.assert_close(norm(y.double(), p), radius, rtol=20 * torch.finfo(dtype).eps, atol=0)
    assert (norm(project_ball(x.to(dtype), p, radius.to(dtype)).double(), p) <= radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("p", [1, INF])
def test_polytope_projection_is_the_nearest_of_all_faces(p, m):
    # The boundary is the union of its faces: project onto each by an independent method, and take the nearest.
    for seed in range(12):
        x, _ = data(0.3 if seed % 2 else 1.5, batch=1, m=m, seed=seed)
        x = x[0].numpy()
        distances = []
        if p == 1:
            for signs in itertools.product((-1.0, 1.0), repeat=m):
                # Onto the simplex: some coordinates are zero, the others moved alike.
                a = x * np.array(signs)
                for kept in itertools.product((False, True), repeat=m):
                    if any(kept):
                        y = np.where(kept, a + (1 - a[list(kept)].sum()) / sum(kept), 0.0)
                        if (y >= 0).all():
                            distances.append(((y - a) ** 2).sum())
        else:
            for j, sign in itertools.product(range(m), (-1.0, 1.0)):
                y = x.clip(-1, 1)
                y[j] = sign
                distances.append(((y - x) ** 2).sum())
        y = project_sphere(torch.from_numpy(x), p).numpy()
        assert ((y - x) ** 2).sum() == pytest.approx(min(distances), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("p", [1.2, 1.8, 2.3, 3, 6])
@inside_and_outside
def test_general_norms_agree_with_scipy(p, size):
    rng = np.random.default_rng(0)
    for seed in range(6):
        x, _ = data(size, batch=1, m=3, seed=seed)
        x = x[0].numpy()
        best = INF
        for _ in range(12):
            start = rng.standard_normal(3) + x
            start /= (np.abs(start) ** p).sum() ** (1 / p)
            found = scipy.optimize.minimize(
                lambda y, x=x: ((y - x) ** 2).sum() / 2,
                start,
                jac=lambda y, x=x: y - x,
                constraints={
                    "type": "eq",
                    "fun": lambda y: (np.abs(y) ** p).sum() - 1,
                    "jac": lambda y: p * np.sign(y) * np.abs(y) ** (p - 1),
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 200},
            )
            if abs((np.abs(found.x) ** p).sum() - 1) < 1e-9:
                best = min(best, found.fun)
        found = project_sphere(torch.from_numpy(x), p, solution=True)
        assert found.objective.item() <= best + 1e-7
        assert found.status.item() == Status.CONVERGED
        assert found.feasibility.item() < 1e-14


@pytest.mark.parametrize("p", [1.01, 1.1, 2.001, 20, 100])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_extreme_norms_converge(p, size):
    x, _ = data(size, batch=100)
    found = project_sphere(x, p, solution=True)
    assert (found.status == Status.CONVERGED).all()
    assert (found.feasibility < 1e-12).all()


@pytest.mark.parametrize("p", [1, 2, 3, INF])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_scale_of_the_data_does_not_matter(p, scale):
    x, _ = data(3.0)
    x = x.float()
    y = project_sphere(scale * x, p, scale)
    assert y.isfinite().all()
    torch.testing.assert_close(y / scale, project_sphere(x, p), rtol=1e-5, atol=1e-6)


CENTERS = {1: [1 / 3] * 3, 1.5: [3 ** (-1 / 1.5)] * 3, 2: [1.0, 0.0, 0.0], 3: [1.0, 0.0, 0.0], INF: [1.0, 0.0, 0.0]}


@every_norm
def test_center_has_a_deterministic_answer_with_a_finite_gradient(p):
    x = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(project_sphere(x, p, 2.0), 2 * torch.tensor(CENTERS[p], dtype=torch.float64))
    assert torch.autograd.functional.jacobian(lambda x: project_sphere(x, p), x).isfinite().all()
    slope = grad(lambda radius: project_sphere(x, p, radius).sum())(torch.tensor(2.0, dtype=torch.float64))
    assert slope.item() == pytest.approx(sum(CENTERS[p]))


def test_gradient_at_the_center_of_the_l2_sphere_is_zero():
    jacobian = torch.autograd.functional.jacobian(project_sphere, torch.zeros(2, 3))
    assert (jacobian == 0).all()


def test_first_of_tied_coordinates_goes_to_the_face():
    x = torch.tensor([0.1, -0.3, 0.3, -0.3], dtype=torch.float64)
    expected = torch.tensor([0.1, -1.0, 0.3, -0.3], dtype=torch.float64)
    torch.testing.assert_close(project_sphere(x, INF), expected)


def test_zero_coordinates_move_outward_in_positive_direction():
    x = torch.tensor([0.0, -0.4], dtype=torch.float64)
    torch.testing.assert_close(project_sphere(x, 1), torch.tensor([0.3, -0.7], dtype=torch.float64))


# Derivatives


@every_call
@every_norm
@inside_and_outside
def test_gradients_are_exact_in_every_mode(name, p, size):
    x, radius = data(size, batch=2, m=4)
    inputs = (x.requires_grad_(), radius.requires_grad_())

    def project(x, radius):
        return CALLS[name](x, p, radius)

    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(project, inputs, **modes)
    assert torch.autograd.gradgradcheck(project, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_call
@every_norm
def test_forward_mode_is_the_transpose_of_reverse_mode(name, p):
    x, radius = data()
    dx, dradius = torch.randn_like(x), torch.randn_like(radius)
    y, dy = jvp(lambda x, radius: CALLS[name](x, p, radius), (x, radius), (dx, dradius))
    v = torch.randn_like(y)
    grad_x, grad_radius = vjp(lambda x, radius: CALLS[name](x, p, radius), x, radius)[1](v)
    torch.testing.assert_close((v * dy).sum(), (grad_x * dx).sum() + (grad_radius * dradius).sum())


@every_call
@every_norm
def test_vmap_is_a_loop_and_transforms_compose(name, p):
    x, radius = data()

    def project(x, radius):
        return CALLS[name](x, p, radius)

    def loss(x, radius):
        return project(x, radius).pow(3).sum()

    loop = torch.stack([project(x[i], radius[i]) for i in range(4)])
    torch.testing.assert_close(project(x, radius), loop)
    torch.testing.assert_close(vmap(project)(x, radius), loop)
    torch.testing.assert_close(vmap(project, (1, 0))(x.mT, radius), loop)
    alike = torch.stack([project(x[i], radius[0]) for i in range(4)])
    torch.testing.assert_close(vmap(project, (0, None))(x, radius[0]), alike)
    jacobians = [torch.autograd.functional.jacobian(lambda x, i=i: project(x, radius[i]), x[i]) for i in range(4)]
    hessians = [torch.autograd.functional.hessian(lambda x, i=i: loss(x, radius[i]), x[i]) for i in range(4)]
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(project))(x, radius), torch.stack(jacobians))
    for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        torch.testing.assert_close(vmap(transform(loss))(x, radius), torch.stack(hessians), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("p", [1, INF])
@every_call
def test_plateau_chooses_between_the_gradients_of_the_paper(name, p):
    x = torch.tensor([3.0, -2.5, 0.1, 0.0, -1.9], dtype=torch.float64)
    y = CALLS[name](x, p, 2.0)
    on_face = y != 0 if p == 1 else y.abs() == 2.0
    s = torch.where(on_face, y.sign(), 0.0)
    clarke = torch.eye(5, dtype=x.dtype) - torch.outer(s, s) / (s @ s)
    moving = s != 0 if p == 1 else s == 0
    masked = clarke * torch.outer(moving, moving)
    for plateau, expected in (("zero", masked), ("clarke", clarke)):
        jacobian = torch.autograd.functional.jacobian(lambda x, w=plateau: CALLS[name](x, p, 2.0, plateau=w), x)
        torch.testing.assert_close(jacobian, expected)
        forward = jacfwd(lambda x, w=plateau: CALLS[name](x, p, 2.0, plateau=w))(x)
        torch.testing.assert_close(forward, expected)
        torch.testing.assert_close(CALLS[name](x, p, 2.0, plateau=plateau), y, rtol=0, atol=0)


@every_call
@every_norm
@inside_and_outside
def test_multiplier_is_that_of_the_norm(name, p, size):
    x, radius = data(size)
    x.requires_grad_()
    found = CALLS[name](x, p, radius, solution=True)
    multiplier = found.equality_multipliers if name == "project_sphere" else found.inequality_multipliers
    assert multiplier.shape == (4, 1)
    if name == "project_ball":
        assert (multiplier >= 0).all()
        assert (found.complementarity < 1e-13).all()
    # By the envelope theorem the objective falls with the radius at the rate of the multiplier.
    distance = lambda radius: (CALLS[name](x, p, radius) - x).square().sum() / 2  # noqa: E731
    torch.testing.assert_close(grad(distance)(radius), -multiplier.detach().squeeze(1), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.objective.sum(), distance(radius).detach())
    assert torch.autograd.grad(multiplier.sum(), x)[0].isfinite().all()


# Invariance


@every_call
@every_norm
@few
@hypothesis.given(seed=seeds, scale=st.floats(0.1, 10))
def test_projection_scales_and_moves_with_the_data(name, p, seed, scale):
    x, radius = data(seed=seed)
    y = CALLS[name](x, p, radius)
    torch.testing.assert_close(CALLS[name](scale * x, p, scale * radius), scale * y, rtol=1e-9, atol=1e-9)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(5, generator=generator)
    signs = torch.randint(0, 2, (5,), generator=generator) * 2.0 - 1
    torch.testing.assert_close(CALLS[name](signs * x[:, order], p, radius), signs * y[:, order], rtol=1e-9, atol=1e-9)


@every_call
@every_norm
@few
@hypothesis.given(seed=seeds)
def test_projecting_twice_changes_nothing(name, p, seed):
    x, radius = data(seed=seed)
    y = CALLS[name](x, p, radius)
    torch.testing.assert_close(CALLS[name](y, p, radius), y, rtol=1e-12, atol=1e-12)


@every_norm
@few
@hypothesis.given(seed=seeds)
def test_ball_is_nonexpansive(p, seed):
    x, radius = data(2.0, seed=seed)
    z = x + data(0.5, seed=seed + 1)[0]
    apart = norm(project_ball(x, p, radius) - project_ball(z, p, radius), 2)
    assert (apart <= norm(x - z, 2) * (1 + 1e-12)).all()


@every_call
@every_norm
@few
@hypothesis.given(seed=seeds)
def test_batch_items_do_not_interact(name, p, seed):
    x, radius = data(seed=seed)
    x[1] *= 1e4
    x[2] = 0
    alone = [CALLS[name](x[i : i + 1], p, radius[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(CALLS[name](x, p, radius), torch.cat(alone))


# Vectors that fail


@every_call
@every_norm
def test_vector_that_is_not_finite_spoils_only_itself(name, p):
    x, radius = data()
    good = [0, 2, 3]

    def loss(x, radius):
        return torch.nan_to_num(CALLS[name](x, p, radius, on_failure="ignore")).pow(3).sum()

    expected, slopes = CALLS[name](x[good], p, radius[good]), grad(loss, (0, 1))(x[good], radius[good])
    for poison in (torch.nan, torch.inf):
        bad = x.clone()
        bad[1, 0] = poison
        with pytest.warns(
            ConvergenceWarning, match=rf"^`{name}`: 1 of 4 items did not converge \(items 1; .* NON_FINITE"
        ):
            y = CALLS[name](bad, p, radius)
        assert y[1].isnan().all()
        torch.testing.assert_close(y[good], expected)
        grad_x, grad_radius = grad(loss, (0, 1))(bad, radius)
        torch.testing.assert_close(grad_x[good], slopes[0])
        torch.testing.assert_close(grad_radius[good], slopes[1])
        assert (grad_x[1] == 0).all()
        assert grad_radius[1] == 0


@every_call
@every_norm
def test_on_failure_is_obeyed(name, p):
    x, radius = data()
    x[1] = torch.nan
    for policy in ("nan", "ignore"):
        assert CALLS[name](x, p, radius, on_failure=policy).isnan().any(dim=1).tolist() == [False, True, False, False]
    with pytest.raises(SolveError, match=rf"^`{name}`: .* NON_FINITE"):
        CALLS[name](x, p, radius, on_failure="raise")
    with pytest.raises(SolveError, match=rf"^`{name}`: .* NON_FINITE"):
        vmap(lambda x, radius: CALLS[name](x, p, radius, on_failure="raise"))(x, radius)


@every_call
def test_overflow_of_the_scale_is_reported(name):
    x = torch.tensor([[1e38, 1.0], [1.0, 2.0]])
    found = CALLS[name](x, 3, 1e-5, on_failure="ignore", solution=True)
    assert found.status.tolist() == [Status.STALLED, Status.CONVERGED]
    with pytest.warns(ConvergenceWarning, match="1 x STALLED"):
        CALLS[name](x, 3, 1e-5)


# Shapes and dtypes


@every_call
@every_norm
def test_any_axis_is_projected(name, p):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for dim in (0, 1, -1, -3):
        expected = CALLS[name](x.movedim(dim, -1).reshape(-1, x.shape[dim]), p)
        y = CALLS[name](x, p, dim=dim)
        torch.testing.assert_close(y.movedim(dim, -1).reshape(-1, x.shape[dim]), expected)


@every_call
def test_radius_broadcasts_to_the_batch(name):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    radius = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    y = CALLS[name](x, 2, radius)
    for i in range(3):
        torch.testing.assert_close(y[:, i], CALLS[name](x[:, i], 2, radius[i].item()))
    torch.testing.assert_close(CALLS[name](x.mT, 2, radius, dim=1), y.mT)


@every_call
@every_norm
def test_lower_precision_returns_its_dtype(name, p):
    x, radius = data()
    y = CALLS[name](x, p, radius)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        low = x.to(dtype).requires_grad_()
        found = CALLS[name](low, p, radius.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), y, rtol=0, atol=atol)
        assert torch.autograd.grad(found.sum(), low)[0].dtype == dtype


@every_call
@every_norm
def test_empty_batch_gives_an_empty_answer(name, p):
    x = torch.zeros(0, 5, requires_grad=True)
    y = CALLS[name](x, p, torch.ones(0))
    assert y.shape == (0, 5)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 5)


@every_call
@every_norm
def test_solution_tells_what_is_known(name, p):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    found = CALLS[name](x, p, solution=True)
    torch.testing.assert_close(found.y, CALLS[name](x, p))
    for field in ("objective", "status", "num_steps", "stationarity", "feasibility", "complementarity"):
        assert getattr(found, field).shape == (2, 3)
    assert (found.status == Status.CONVERGED).all()
    assert (found.feasibility < 1e-14).all()
    assert (found.equality_multipliers is None) == (name == "project_ball")
    assert (found.inequality_multipliers is None) == (name == "project_sphere")


# Modules


@pytest.mark.parametrize(
    ("module", "name"), [(ddn.nn.ProjectSphere, "project_sphere"), (ddn.nn.ProjectBall, "project_ball")]
)
def test_modules_are_the_functions(module, name):
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(module(INF, 0.5, dim=1)(x), CALLS[name](x, INF, 0.5, dim=1))
    assert (module(3).solve(x).status == Status.CONVERGED).all()
    slope = torch.autograd.functional.jacobian(module(1, plateau="clarke"), x[0, 0])
    torch.testing.assert_close(
        slope, torch.autograd.functional.jacobian(lambda x: CALLS[name](x, 1, plateau="clarke"), x[0, 0])
    )
    assert repr(module(1)).startswith(f"{module.__name__}(\n  p=1, radius=1.0, dim=-1, plateau='zero'")
    with pytest.raises(SolveError):
        module(on_failure="raise")(torch.tensor([torch.nan]))


@pytest.mark.parametrize("module", [ddn.nn.ProjectSphere, ddn.nn.ProjectBall])
def test_learned_radius_stays_positive(module):
    project = module(radius=0.3, learnable_radius=True)
    optimizer = torch.optim.SGD(project.parameters(), lr=30.0)
    for _ in range(3):
        optimizer.zero_grad()
        project(torch.ones(5)).square().sum().backward()
        optimizer.step()
    assert 0 < project.scale() < 0.3
    assert "radius=" in repr(project)
    assert "learnable_radius=True" in repr(project)


# Mistakes


def mistakes(call):
    for p in (0.5, -1, 0, math.nan):
        yield (
            {"p": p},
            f'`{call}(p=...)` must be at least 1, got {p}; use 1, 2, `float("inf")` or any number between.',
        )
    for p in ("fro", None, True):
        yield {"p": p}, f"`{call}(p=...)` must be a number, got {p!r}."
    for radius in (0.0, -1, math.inf, math.nan):
        yield {"radius": radius}, f"`{call}(radius=...)` must be positive and finite, got {radius}."
    yield {"radius": "1"}, f"`{call}(radius=...)` must be a number or a tensor, got str."
    yield (
        {"radius": torch.tensor(1)},
        f"`{call}(radius=...)` must be a real floating-point tensor, got torch.int64. Convert it with `.float()`.",
    )
    yield (
        {"radius": torch.tensor([1.0, 0.0])},
        f"`{call}(radius=...)` must be positive and finite, got 0.0 among its entries.",
    )
    yield (
        {"radius": torch.ones(3)},
        f"`{call}(radius=...)` must have a shape that broadcasts to (2,), got (3,). Reshape it, or pass one number for "
        "all.",
    )
    yield (
        {"radius": torch.ones(2, device="meta")},
        f"`{call}(radius=...)` must be on the device of the data, cpu, got meta. Move it with `.to('cpu')`.",
    )
    yield (
        {"dim": 2},
        f"`{call}(dim=...)` must name axes of a tensor with 2 of them, got 2. Use integers from -2 to 1, each axis "
        "once.",
    )
    yield {"dim": (0, 1)}, f"`{call}(dim=...)` must be one integer, got (0, 1). Flatten the axes of the vector."
    for dim in (None, 1.0, "0"):
        yield (
            {"dim": dim},
            f"`{call}(dim=...)` must be an integer or a tuple of integers, got {dim!r}. Use integers from -2 to 1, "
            "each axis once.",
        )
    yield {"plateau": "one"}, f"`{call}(plateau=...)` must be one of 'zero', 'clarke', got 'one'."
    yield {"on_failure": None}, f"`{call}(on_failure=...)` must be one of 'warn', 'raise', 'nan', 'ignore', got None."
    yield {"solution": "y"}, f"`{call}(solution=...)` must be True or False, got 'y'."
    yield {"x": 1.0}, f"`{call}(x=...)` must be a tensor, got float. Wrap it in `torch.as_tensor`."
    for dtype in (torch.int32, torch.complex128):
        yield (
            {"x": torch.zeros(2, 3, dtype=dtype)},
            f"`{call}(x=...)` must be a real floating-point tensor, got {dtype}. Convert it with "
            "`.to(torch.get_default_dtype())`.",
        )
    yield {"x": torch.tensor(1.0)}, f"`{call}(x=...)` must have shape (*B, m), got ()."
    yield {"x": torch.zeros(2, 0)}, f"`{call}(x=...)` must have coordinates along dim=-1, got shape (2, 0)."


@pytest.mark.parametrize(
    ("name", "wrong", "message"), [(name, *mistake) for name in CALLS for mistake in mistakes(name)]
)
def test_mistakes_are_told(name, wrong, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        CALLS[name](**({"x": torch.zeros(2, 3)} | wrong))


@pytest.mark.parametrize("module", [ddn.nn.ProjectSphere, ddn.nn.ProjectBall])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"p": 0}, '(p=...)` must be at least 1, got 0; use 1, 2, `float("inf")` or any number between.'),
        ({"radius": -1}, "(radius=...)` must be positive and finite, got -1."),
        ({"plateau": None}, "(plateau=...)` must be one of 'zero', 'clarke', got None."),
        ({"learnable_radius": "no"}, "(learnable_radius=...)` must be True or False, got 'no'."),
        ({"on_failure": 1}, "(on_failure=...)` must be one of 'warn', 'raise', 'nan', 'ignore', got 1."),
    ],
)
def test_modules_tell_mistakes_when_they_are_made(module, wrong, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape('`' + module.__name__ + message)}$"):
        module(**wrong)
