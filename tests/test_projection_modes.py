"""Every projection beside spheres and balls: all derivatives, all transforms, batches, failures, shapes and dtypes.

The answers themselves are looked at in the files of the sets.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from problems import randn
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchddn as ddn
from torchddn import functional as F
from torchddn.errors import ConvergenceWarning, SolveError
from torchddn.status import Status

BATCH, SIZE = 3, 5
SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=8)


class Case(NamedTuple):
    """A call on vectors ``(B, 5)`` with its differentiable arguments; ``x`` is the first."""

    name: str
    function: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Tensor, ...]]


def positive(*shape: int, seed: int) -> Tensor:
    return 0.5 + randn(*shape, seed=seed).abs()


def orthogonal(x: Tensor, **how: object) -> Tensor:
    """Vectors of six numbers as matrices of three rows, to have one shape for all cases."""
    return F.project_orthogonal(x.unflatten(-1, (3, 2)), **how)


def rotation(x: Tensor, **how: object) -> Tensor:
    return F.project_rotation(x.unflatten(-1, (2, 2)), **how)


CASES = [
    Case("sphere", lambda x, c, r, **how: F.project_sphere(x, 2, r, center=c, **how),
         lambda b: (2 * randn(b, SIZE), randn(b, SIZE, seed=1), positive(b, seed=2))),
    Case("ball", lambda x, c, r, **how: F.project_ball(x, 1, r, center=c, **how),
         lambda b: (2 * randn(b, SIZE), 0.3 * randn(b, SIZE, seed=1), positive(b, seed=2))),
    Case("simplex", F.project_simplex, lambda b: (randn(b, SIZE), positive(b, seed=1))),
    Case("sparsemax", F.sparsemax, lambda b: (randn(b, SIZE),)),
    Case("entmax15", F.entmax15, lambda b: (randn(b, SIZE),)),
    Case("capped_simplex", F.project_capped_simplex,
         lambda b: (randn(b, SIZE), 1 + 0.2 * randn(b, seed=1).abs(), 0.4 + 0.2 * randn(b, SIZE, seed=2).abs())),
    Case("soft_top_k", F.soft_top_k, lambda b: (randn(b, SIZE), 1 + positive(b, seed=1), positive(b, seed=2))),
    Case("box", F.project_box, lambda b: (2 * randn(b, SIZE), -positive(b, SIZE, seed=1), positive(b, SIZE, seed=2))),
    Case("weighted_l1_ball", F.project_weighted_l1_ball,
         lambda b: (2 * randn(b, SIZE), positive(b, SIZE, seed=1), positive(b, seed=2))),
    Case("halfspace", F.project_halfspace, lambda b: (randn(b, SIZE), randn(b, SIZE, seed=1), 0.2 * randn(b, seed=2))),
    Case("affine", F.project_affine, lambda b: (randn(b, SIZE), randn(b, 2, SIZE, seed=1), randn(b, 2, seed=2))),
    Case("monotone", F.project_monotone, lambda b: (randn(b, SIZE),)),
    Case("l21_ball", lambda x, r, **how: F.project_l21_ball(x.unflatten(-1, (3, 2)), r, **how).flatten(-2),
         lambda b: (randn(b, 6), positive(b, seed=1))),
    Case("orthogonal", lambda x, **how: orthogonal(x, **how).flatten(-2), lambda b: (randn(b, 6),)),
    Case("rotation", lambda x, **how: rotation(x, **how).flatten(-2), lambda b: (randn(b, 4),)),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def loss(case: Case) -> Callable[..., Tensor]:
    return lambda *inputs: case.function(*inputs).pow(3).sum()


@every_case
def test_gradients_are_exact_in_every_mode(case):
    inputs = tuple(t.requires_grad_() for t in case.inputs(2))
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(case.function, inputs, **modes)
    if case.name == "monotone":  # piecewise linear, and autograd knows: no second derivative
        return
    assert torch.autograd.gradgradcheck(case.function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_case
def test_forward_mode_is_the_transpose_of_reverse_mode(case):
    inputs = case.inputs(BATCH)
    tangents = tuple(randn(*t.shape, seed=9) for t in inputs)
    y, dy = jvp(case.function, inputs, tangents)
    v = randn(*y.shape, seed=10)
    gradients = vjp(case.function, *inputs)[1](v)
    pulled = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close((v * dy).sum(), pulled)


@every_case
def test_vmap_is_a_loop_and_transforms_compose(case):
    inputs = case.inputs(BATCH)
    items = list(zip(*inputs, strict=True))
    loop = torch.stack([case.function(*item) for item in items])
    torch.testing.assert_close(case.function(*inputs), loop, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vmap(case.function)(*inputs), loop, rtol=1e-12, atol=1e-12)
    shared = (None,) * (len(inputs) - 1)
    alike = torch.stack([case.function(x, *items[0][1:]) for x in inputs[0]])
    torch.testing.assert_close(vmap(case.function, (1, *shared))(inputs[0].mT, *items[0][1:]), alike)
    jacobians = torch.stack([torch.autograd.functional.jacobian(case.function, item)[0] for item in items])
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(case.function))(*inputs), jacobians, rtol=1e-9, atol=1e-10)
    f = loss(case)
    hessians = [hessian(f)(*item) for item in items]
    for transform in (lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        torch.testing.assert_close(vmap(transform(f))(*inputs), torch.stack(hessians), rtol=1e-7, atol=1e-9)


@every_case
@few
@hypothesis.given(seed=SEEDS)
def test_batch_items_do_not_interact(case, seed):
    inputs = case.inputs(4)
    x = randn(*inputs[0].shape, seed=seed % 1000)
    x[1] *= 1e4
    whole = case.function(x, *inputs[1:], on_failure="ignore")
    for i in range(4):
        alone = case.function(x[i : i + 1], *(t[i : i + 1] for t in inputs[1:]), on_failure="ignore")
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-11)


@every_case
def test_vector_that_is_not_finite_spoils_only_itself(case):
    inputs = case.inputs(4)
    good = torch.tensor([0, 2, 3])

    def finite_part(*inputs):
        return torch.nan_to_num(case.function(*inputs, on_failure="ignore")).pow(3).sum()

    which = tuple(range(len(inputs)))
    expected = case.function(*(t[good] for t in inputs))
    slopes = grad(finite_part, which)(*(t[good] for t in inputs))
    for poison in (math.nan, math.inf, -math.inf):
        bad = inputs[0].clone()
        bad[1, 0] = poison
        with pytest.warns(ConvergenceWarning, match=r"1 of 4 items did not converge \(items 1; .* NON_FINITE"):
            y = case.function(bad, *inputs[1:])
        assert y[1].isnan().all()
        torch.testing.assert_close(y[good], expected)
        found = grad(finite_part, which)(bad, *inputs[1:])
        # A loss that lets the NaN through leaves the gradients of other items alone.
        spoiled = grad(lambda *inputs: case.function(*inputs, on_failure="ignore").pow(3).sum(), which)(
            bad, *inputs[1:]
        )
        for mine, theirs, other in zip(found, slopes, spoiled, strict=True):
            torch.testing.assert_close(mine[good], theirs)
            torch.testing.assert_close(other[good], theirs)
            assert (mine[1] == 0).all() and (other[1] == 0).all()


@every_case
def test_on_failure_is_obeyed(case):
    x, *others = case.inputs(4)
    x[1] = math.nan
    for policy in ("nan", "ignore"):
        y = case.function(x, *others, on_failure=policy)
        assert y.isnan().any(dim=1).tolist() == [False, True, False, False]
    with pytest.raises(SolveError, match="NON_FINITE"):
        case.function(x, *others, on_failure="raise")


@every_case
def test_lower_precision_returns_its_dtype(case):
    inputs = case.inputs(BATCH)
    y = case.function(*inputs)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)):
        low = [t.to(dtype) for t in inputs]
        low[0].requires_grad_()
        found = case.function(*low)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), y, rtol=0, atol=atol)
        assert torch.autograd.grad(found.sum(), low[0])[0].dtype == dtype


@every_case
def test_empty_batch_gives_an_empty_answer(case):
    inputs = [t.requires_grad_() for t in case.inputs(0)]
    y = case.function(*inputs)
    assert y.shape[0] == 0
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


ALONG = {
    "sphere": F.project_sphere, "ball": F.project_ball, "simplex": F.project_simplex, "sparsemax": F.sparsemax,
    "entmax15": F.entmax15, "capped_simplex": F.project_capped_simplex, "monotone": F.project_monotone,
    "soft_top_k": lambda x, **how: F.soft_top_k(x, 0.7, **how),
    "box": lambda x, **how: F.project_box(x, -0.5, 0.5, **how),
    "weighted_l1_ball": lambda x, **how: F.project_weighted_l1_ball(x, 2.0, **how),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONG)
def test_any_axis_and_any_strides_are_projected(name):
    x = randn(2, 3, 4)
    for dim in (0, 1, -1, -3):
        expected = ALONG[name](x.movedim(dim, -1).reshape(-1, x.shape[dim]).contiguous())
        for seen in (x, x.clone(memory_format=torch.contiguous_format).mT.contiguous().mT, x.flip(0).flip(0)):
            y = ALONG[name](seen, dim=dim)
            torch.testing.assert_close(y.movedim(dim, -1).reshape(-1, x.shape[dim]), expected, rtol=1e-13, atol=1e-13)
    wide = randn(2, 8)[:, ::2]
    torch.testing.assert_close(ALONG[name](wide), ALONG[name](wide.contiguous()))


@pytest.mark.parametrize("name", ["affine", "halfspace"])
def test_sets_with_normals_take_any_axis(name):
    x, A = randn(2, 4, 3), randn(2, 4, seed=1)
    if name == "affine":
        y, expected = F.project_affine(x, A, 1.0, dim=1), F.project_affine(x.mT, A, 1.0).mT
    else:
        y, expected = F.project_halfspace(x, A[0][:, None], 0.1, dim=1), F.project_halfspace(x.mT, A[0], 0.1).mT
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", ALONG)
@few
@hypothesis.given(
    seed=SEEDS, scale=st.sampled_from([1e-12, 1e-6, 1e-3, 1.0, 1e4, 1e8]), m=st.integers(1, 12), ties=st.booleans()
)
def test_no_numbers_break_it(name, seed, scale, m, ties):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(3, m, generator=generator, dtype=torch.float64)
    if ties:
        x = (x / scale).round() * scale
    x[2] = scale
    for dtype in (torch.float32, torch.float64):
        at = x.to(dtype).requires_grad_()
        if name == "capped_simplex" and m < 2:
            return
        found = ALONG[name](at, solution=True)
        assert (found.status == Status.CONVERGED).all()
        bound = 1 + (scale if name == "monotone" else 0)
        assert (found.feasibility <= 1e2 * torch.finfo(dtype).eps * bound).all()
        (slope,) = torch.autograd.grad(found.y.sum(), at)
        assert slope.isfinite().all()
        # An answer is its own projection.
        if name not in ("entmax15", "soft_top_k"):
            torch.testing.assert_close(ALONG[name](found.y), found.y, rtol=1e-5, atol=1e-6 * bound)


@pytest.mark.parametrize("name", [name for name in ALONG if name not in ("sphere", "entmax15")])
@few
@hypothesis.given(seed=SEEDS)
def test_projections_onto_convex_sets_are_nonexpansive(name, seed):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    apart = (ALONG[name](x) - ALONG[name](z)).norm(dim=1)
    assert (apart <= (x - z).norm(dim=1) * (1 + 1e-12)).all()


@every_case
def test_solution_tells_what_is_known(case):
    inputs = case.inputs(BATCH)
    found = case.function(*inputs) if case.name in ("l21_ball", "orthogonal", "rotation") else None
    if found is not None:
        return
    found = case.function(*inputs, solution=True)
    torch.testing.assert_close(found.y, case.function(*inputs))
    for field in ("objective", "status", "num_steps", "stationarity", "feasibility", "complementarity"):
        assert getattr(found, field).shape == (BATCH,)
    assert (found.status == Status.CONVERGED).all()
    assert (found.feasibility < 1e-13).all()


def test_solutions_of_matrices_have_their_shape():
    X = randn(2, 3, 4, 2)
    for function in (F.project_orthogonal, F.project_l21_ball):
        found = function(X, solution=True)
        assert found.y.shape == X.shape
        assert found.status.shape == found.feasibility.shape == (2, 3)
        assert (found.feasibility < 1e-14).all()


def test_choices_are_told_in_the_record():
    with ddn.diagnostics() as seen:
        F.project_sphere(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
        F.project_sphere(torch.tensor([0.2, -0.2, 0.1]), math.inf)
        F.project_sphere(torch.tensor([0.2, 0.0]), 1)
        F.project_ball(torch.tensor([0.6, 0.8], dtype=torch.float64))
        F.project_simplex(torch.tensor([1.0, 0.0]))
        F.project_rotation(torch.zeros(2, 2))
        F.soft_top_k(torch.tensor([1.0, 0.0]), 1, 1e4)
        F.project_sphere(torch.tensor([1.0, 2.0]))
    notes = [record.notes for record in seen.records]
    expected = ("center", "largest", "zero", "on the sphere", "threshold", "several", "hard")
    for note, words in zip(notes, expected, strict=False):
        assert len(note) == 1 and words in note[0] and "items 0" in note[0]
    assert notes[-1] == ()
