"""Convex programs of cvxpy as layers: exact answers and gradients for every cone, and a status for every item."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.cones import system
from torchddn.functional import project_simplex, quadratic_program, top_eigenvectors
from torchddn.nn import ConvexProgram

cp = pytest.importorskip("cvxpy")
pytest.importorskip("clarabel")

D = torch.float64
NAN = float("nan")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


class Case(NamedTuple):
    """A problem, values for two items, and what cvxpy's cone program of it must contain."""

    problem: Any
    parameters: list[Any]
    variables: list[Any]
    values: list[Tensor]
    cone: str
    gp: bool = False

    def layer(self, **options: Any) -> ConvexProgram:
        return ConvexProgram(self.problem, self.parameters, self.variables, self.gp, **options)


def lasso() -> Case:
    x, A, b, weight = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * cp.norm1(x)))
    values = [randn(2, 3, 2), randn(2, 3, seed=1), torch.tensor(0.7, dtype=D)]
    return Case(problem, [A, b, weight], [x], values, "nonnegative")


def least_norm() -> Case:
    x, A, b = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.norm(x)), [A @ x == b])
    return Case(problem, [A, b], [x], [randn(2, 2, 3), randn(2, 2, seed=1)], "second_order")


def robust_fit() -> Case:
    x, A, b, radius = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3), cp.Parameter(nonneg=True)
    objective = cp.Minimize(cp.norm(A @ x - b) + 0.1 * cp.sum_squares(x))
    problem = cp.Problem(objective, [cp.norm(x) <= radius, x[0] >= -0.1])
    values = [randn(2, 3, 2), randn(2, 3, seed=1), torch.tensor([0.3, 4.0], dtype=D)]
    return Case(problem, [A, b, radius], [x], values, "second_order")


def nearest_semidefinite() -> Case:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0])
    return Case(problem, [C], [X], [randn(2, 3, 3)], "semidefinite")


def spectrahedron() -> Case:
    X, C = cp.Variable((2, 2), PSD=True), cp.Parameter((2, 2), symmetric=True)
    problem = cp.Problem(cp.Maximize(cp.trace(C @ X) - cp.sum_squares(X)), [cp.trace(X) == 1])
    C_value = randn(2, 2, 2)
    return Case(problem, [C], [X], [C_value + C_value.mT], "semidefinite")


def entropy() -> Case:
    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Maximize(c @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return Case(problem, [c], [x], [3 * randn(2, 3)], "exponential")


def logistic() -> Case:
    w, Z, weight = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(pos=True)
    signs = np.array([1.0, -1.0, -1.0])
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(cp.multiply(-signs, Z @ w))) + weight * cp.sum_squares(w)))
    return Case(problem, [Z, weight], [w], [randn(2, 3, 2), torch.tensor(0.5, dtype=D)], "exponential")


def power_cone() -> Case:
    x, c = cp.Variable(3), cp.Parameter(3, pos=True)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.PowCone3D(x[0], x[1], x[2], 0.3), x[2] >= 1])
    return Case(problem, [c], [x], [0.5 + rand(2, 3)], "power")


def long_power_cone() -> Case:
    u, v, c = cp.Variable(3), cp.Variable(), cp.Parameter(3, pos=True)
    problem = cp.Problem(cp.Maximize(v), [cp.PowConeND(u, v, np.array([0.2, 0.3, 0.5])), c @ u <= 1])
    return Case(problem, [c], [u, v], [0.5 + rand(2, 3)], "power")


def geometric() -> Case:
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    a, b, power = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(1 / (x * y * z)), [a * (x * y + x * z + y * z) <= b, x >= y**power])
    values = [torch.tensor(v, dtype=D) for v in ([2.0, 1.5], [1.0, 1.2], 0.5)]
    return Case(problem, [a, b, power], [x, y, z], values, "exponential", gp=True)


CASES = {
    make.__name__: make
    for make in (
        lasso,
        least_norm,
        robust_fit,
        nearest_semidefinite,
        spectrahedron,
        entropy,
        logistic,
        power_cone,
        long_power_cone,
        geometric,
    )
}


def solved_by_cvxpy(case: Case, item: int, **options: Any) -> tuple[list[Tensor], float]:
    for parameter, value in zip(case.parameters, case.values, strict=True):
        parameter.value = (value[item] if value.dim() > len(parameter.shape) else value).numpy()
    case.problem.solve("CLARABEL", gp=case.gp, **options)
    return [torch.as_tensor(np.asarray(variable.value)) for variable in case.variables], case.problem.value


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_cvxpy_with_more_digits(name):
    case = CASES[name]()
    layer = case.layer()
    assert getattr(layer._canonical.cone, case.cone)
    found = layer.solve(*case.values)
    assert found.status.tolist() == [0, 0]
    assert (found.solver == "PrimalDual") == (name == "lasso")
    for numbers in (found.stationarity, found.feasibility, found.complementarity):
        assert numbers.max() < 1e-13
    for item in range(2):
        theirs, value = solved_by_cvxpy(case, item)
        # At a smooth optimum of value known to 1e-8, the point is known to 1e-4.
        assert all(torch.allclose(y[item], x, atol=3e-4) for y, x in zip(found.y, theirs, strict=True))
        assert found.objective[item].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences_in_every_mode(name):
    case = CASES[name]()
    values = [value.clone().requires_grad_() for value in case.values]
    assert gradcheck(case.layer(check=False), values, atol=1e-6, rtol=1e-5, check_forward_ad=True)


@pytest.mark.parametrize("name", ["least_norm", "spectrahedron", "entropy", "power_cone", "long_power_cone"])
def test_second_derivatives_are_those_of_finite_differences(name):
    case = CASES[name]()
    values = [value[:1].clone().requires_grad_() for value in case.values]
    assert gradgradcheck(case.layer(check=False), values, atol=1e-4, rtol=1e-4)


def test_closed_forms():
    A, b = least_norm().values
    (x,) = least_norm().layer()(A, b)
    assert torch.allclose(x, (torch.linalg.pinv(A) @ b.unsqueeze(2)).squeeze(2), atol=1e-14)
    (c,) = entropy().values
    assert torch.allclose(entropy().layer()(c)[0], c.softmax(1), atol=1e-15)
    (C,) = nearest_semidefinite().values
    values, vectors = torch.linalg.eigh((C + C.mT) / 2)
    expected = (vectors * values.clamp(min=0).unsqueeze(1)) @ vectors.mT
    assert torch.allclose(nearest_semidefinite().layer()(C)[0], expected, atol=1e-13)
    # Of c'u <= 1 the weighted geometric mean gives each entry its exponent's share.
    (c,) = long_power_cone().values
    share = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    u, v = long_power_cone().layer()(c)
    assert torch.allclose(u, share / c, atol=1e-14)
    assert torch.allclose(v, ((share / c) ** share).prod(1), atol=1e-14)
    # min c'x with x0^0.3 x1^0.7 = x2 = 1, and its gradient.
    c = power_cone().values[0].requires_grad_()
    ratio = 0.3 * c[:, 1] / (0.7 * c[:, 0])
    expected = torch.stack([ratio**0.7, ratio**-0.3, torch.ones_like(ratio)], dim=1)
    (x,) = power_cone().layer()(c)
    assert torch.allclose(x, expected, atol=1e-13)
    mine, exact = (torch.autograd.grad(part.sin().sum(), c)[0] for part in (x, expected))
    assert torch.allclose(mine, exact, atol=1e-13)


def test_the_largest_eigenvalue_has_its_eigenvector_as_gradient():
    t, C = cp.Variable(), cp.Parameter((3, 3), symmetric=True)
    layer = ConvexProgram(cp.Problem(cp.Minimize(t), [t * np.eye(3) >> C]), [C], [t])
    X = randn(4, 3, 3)
    X = (X + X.mT).requires_grad_()
    (value,) = layer(X)
    assert torch.allclose(value, torch.linalg.eigvalsh(X)[:, -1], atol=1e-13)
    (gradient,) = torch.autograd.grad(value.sum(), X)
    vector = top_eigenvectors(X.detach())
    assert torch.allclose(gradient, vector @ vector.mT, atol=1e-12)


def test_a_quadratic_program_goes_to_the_batched_solver_and_gets_the_same_from_clarabel():
    case = lasso()
    layer = case.layer()
    by_clarabel = case.layer(solver_args={"tol_gap_rel": 1e-10})
    values = [value.clone().requires_grad_() for value in case.values]
    ours, theirs = layer.solve(*values), by_clarabel.solve(*values)
    assert (ours.solver, theirs.solver) == ("PrimalDual", "Clarabel")
    assert torch.allclose(ours.y[0], theirs.y[0], atol=1e-12)
    assert torch.allclose(ours.inequality_multipliers, theirs.inequality_multipliers, atol=1e-11)
    assert torch.allclose(ours.objective, theirs.objective)
    gradients = [torch.autograd.grad(found.y[0].sin().sum(), values) for found in (ours, theirs)]
    assert all(torch.allclose(g, h, atol=1e-11) for g, h in zip(*gradients, strict=True))
    assert layer.solve(*case.values, solver_args={"max_iter": 50}).solver == "Clarabel"


def test_a_projection_onto_the_simplex_is_that_of_its_own_node():
    x, a = cp.Variable(5), cp.Parameter(5)
    layer = ConvexProgram(cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [cp.sum(x) == 1, x >= 0]), [a], [x])
    values = randn(6, 5).requires_grad_()
    v = randn(6, 5, seed=1)
    mine, theirs = layer(values)[0], project_simplex(values)
    assert torch.allclose(mine, theirs, atol=1e-13)
    assert torch.allclose(*(torch.autograd.grad((v * y).sum(), values)[0] for y in (mine, theirs)), atol=1e-12)


def test_multipliers_and_signs_are_those_of_the_problem():
    case = entropy()
    found = case.layer().solve(*case.values)
    _, value = solved_by_cvxpy(case, 0)
    assert found.objective[0].item() == pytest.approx(value, abs=1e-7)
    # The maximum is logsumexp(c), and c'x + H(x) has the gradient (logsumexp(c) - 1) 1 there; the zero cone holds
    # 1 - sum(x) or its negative.
    expected = (case.values[0].logsumexp(1) - 1).abs()
    assert torch.allclose(found.equality_multipliers[:, 0].abs(), expected, atol=1e-12)
    c = case.values[0].clone().requires_grad_()
    assert gradcheck(lambda c: case.layer().solve(c).inequality_multipliers, c, atol=1e-6)


def test_a_batch_is_its_items():
    case = robust_fit()
    A, b, radius = randn(7, 3, 2), randn(7, 3, seed=1), 0.1 + rand(7)
    values = [part.requires_grad_() for part in (A, b, radius)]
    v = randn(7, 2, seed=3)
    layer = case.layer()
    found = layer.solve(*values)
    gradients = torch.autograd.grad((v * found.y[0]).sum(), values)
    for i in range(7):
        item = [value.detach()[i].requires_grad_() for value in values]
        alone = layer.solve(*item)
        assert torch.allclose(alone.y[0], found.y[0][i], atol=1e-14)
        assert alone.status.item() == found.status[i] and alone.num_steps.item() == found.num_steps[i]
        for g, h in zip(torch.autograd.grad((v[i] * alone.y[0]).sum(), item), gradients, strict=True):
            assert torch.allclose(g, h[i], atol=1e-12)


def test_parameters_without_batch_axes_are_shared_and_get_the_sum():
    case = robust_fit()
    layer = case.layer()
    A, b, radius = randn(3, 2), randn(5, 3, seed=1), torch.tensor(0.4, dtype=D)
    shared = [part.clone().requires_grad_() for part in (A, b, radius)]
    repeated = [part.clone().requires_grad_() for part in (A.expand(5, 3, 2), b, radius.expand(5))]
    sums, parts = (
        torch.autograd.grad(layer(*values)[0].square().sum(), values, retain_graph=True)
        for values in (shared, repeated)
    )
    assert torch.allclose(sums[0], parts[0].sum(0), atol=1e-13) and torch.allclose(sums[2], parts[2].sum(), atol=1e-13)
    assert torch.allclose(sums[1], parts[1], atol=1e-14)
    assert layer(A, b[0], radius)[0].shape == (2,)
    assert layer(A, b.reshape(5, 1, 3), radius.expand(2))[0].shape == (5, 2, 2)
    assert layer(A, b[:0], radius)[0].shape == (0, 2)


@pytest.mark.parametrize("norm", [cp.norm, cp.norm1])
def test_bad_items_leave_their_mates_alone(norm):
    x, y, c, radius = cp.Variable(2), cp.Variable(), cp.Parameter(2), cp.Parameter()
    z, slope = cp.Variable(), cp.Parameter()
    objective = cp.Minimize(c @ x + y + slope * z)
    layer = ConvexProgram(cp.Problem(objective, [norm(x) <= radius, y >= -radius, z >= 0]), [c, radius, slope], [x, y])
    layer.on_failure = "ignore"
    c_value = randn(6, 2)
    c_value[3, 0] = NAN
    values = [c_value, torch.tensor([1, -1, 2, 1, 3, 1], dtype=D), torch.tensor([1, 1, 1, 1, 1, -1], dtype=D)]
    values = [value.requires_grad_() for value in values]
    found = layer.solve(*values)
    words = ["CONVERGED", "INFEASIBLE", "CONVERGED", "NON_FINITE", "CONVERGED", "UNBOUNDED"]
    assert [ddn.Status(code).name for code in found.status.tolist()] == words
    bad, good = [1, 3, 5], [0, 2, 4]
    assert found.y[0][bad].isnan().all() and found.y[1][bad].isnan().all()
    assert found.objective[bad].isnan().all() and found.inequality_multipliers[bad].isnan().all()
    loss = found.y[0].nan_to_num().square().sum() + found.y[1].nan_to_num().sum()
    gradients = torch.autograd.grad(loss, values)
    assert all((g[bad] == 0).all() for g in gradients)
    alone = [value.detach()[good].requires_grad_() for value in values]
    x_alone, y_alone = layer(*alone)
    assert torch.allclose(x_alone, found.y[0][good], atol=1e-14)
    for g, h in zip(torch.autograd.grad(x_alone.square().sum() + y_alone.sum(), alone), gradients, strict=True):
        assert torch.allclose(g, h[good], atol=1e-12)


def test_a_failure_is_told_as_on_failure_says():
    x, radius = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.norm(x) <= radius])
    values = torch.tensor([1.0, -1.0], dtype=D)
    with pytest.warns(ddn.ConvergenceWarning, match=r"`ConvexProgram`: 1 of 2 items .*INFEASIBLE"):
        ConvexProgram(problem, [radius], [x])(values)
    with pytest.raises(ddn.InfeasibleError):
        ConvexProgram(problem, [radius], [x], on_failure="raise")(values)


def test_an_answer_that_is_none_is_kept_or_not_as_on_failure_says():
    # From a worse start, or with a nicer problem, Newton's method would end it all the same.
    case = robust_fit()
    options = {"solver_args": {"max_iter": 1}}
    found = case.layer(on_failure="nan", **options).solve(*case.values)
    assert (found.status == ddn.Status.MAX_STEPS).all() and found.y[0].isnan().all()
    assert case.layer(on_failure="ignore", **options)(*case.values)[0].isfinite().all()


def test_steps_that_end_on_a_solution_make_a_rough_answer_exact():
    case = robust_fit()
    rough = case.layer(solver_args={"tol_gap_rel": 1e-3, "tol_gap_abs": 1e-3, "tol_feas": 1e-3})
    exact = case.layer()
    found = rough.solve(*case.values)
    assert found.stationarity.max() < 1e-13
    assert torch.allclose(found.y[0], exact(*case.values)[0], atol=1e-12)


def test_what_is_active_is_found_where_slacks_and_multipliers_are_both_small():
    x, a = cp.Variable(300), cp.Parameter(300)
    problem = cp.Problem(cp.Minimize(cp.norm(x - a) + 0.05 * cp.norm1(cp.diff(x))))
    value = randn(16, 300).cumsum(1)[2]
    # At the solver's usual tolerance there are rows of which neither is small enough to be dropped, and the answer is
    # not taken for one.
    rough = ConvexProgram(problem, [a], [x], solver_args={"tol_gap_abs": 1e-8}, on_failure="ignore").solve(value)
    assert rough.status == ddn.Status.STALLED and rough.stationarity > 1e-6
    found = ConvexProgram(problem, [a], [x]).solve(value)
    assert found.status == ddn.Status.CONVERGED and found.stationarity < 1e-13
    assert torch.allclose(found.y[0], rough.y[0], atol=1e-3)


@pytest.mark.parametrize("name", ["least_norm", "spectrahedron", "entropy", "power_cone", "robust_fit"])
def test_large_systems_are_sparse_and_give_the_same(name, monkeypatch):
    case = CASES[name]()
    values = [value.clone().requires_grad_() for value in case.values]

    def derivatives() -> list[Tensor]:
        y = case.layer()(*values)
        first = torch.autograd.grad(sum(part.sin().sum() for part in y), values, create_graph=True)
        second = torch.autograd.grad(sum(part.sin().sum() for part in first), values)
        tangent = torch.func.jvp(lambda last: case.layer()(*values[:-1], last)[0], (values[-1],), (values[-1] + 1,))[1]
        return [*y, *first, *second, tangent]

    by_blocks = derivatives()
    monkeypatch.setattr(system, "_DENSE_SIZE", 0)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-11) for a, b in zip(by_blocks, derivatives(), strict=True))


def test_a_softmax_of_hundreds_is_one():
    x, c = cp.Variable(400), cp.Parameter(400)
    problem = cp.Problem(cp.Maximize(c @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    value = randn(2, 400).requires_grad_()
    (y,) = ConvexProgram(problem, [c], [x])(value)
    assert torch.allclose(y, value.softmax(1), atol=1e-13)
    mine, theirs = (torch.autograd.grad(p.sin().sum(), value)[0] for p in (y, value.softmax(1)))
    assert torch.allclose(mine, theirs, atol=1e-13)


def test_an_auxiliary_variable_that_is_not_determined_does_no_harm():
    # The bound of a norm that is not reached is anything between the two.
    case = robust_fit()
    A, b, _ = (value.requires_grad_() for value in case.values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (x,) = case.layer()(A, b, torch.tensor(100.0, dtype=D))
        loose = torch.autograd.grad(x.sum(), b)[0]
    y, C, c = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    objective = cp.Minimize(cp.norm(C @ y - c) + 0.1 * cp.sum_squares(y))
    without = ConvexProgram(cp.Problem(objective, [y[0] >= -0.1]), [C, c], [y])
    assert torch.allclose(loose, torch.autograd.grad(without(A, b)[0].sum(), b)[0], atol=1e-12)


def test_a_gradient_that_is_not_determined_is_reported():
    x, c = cp.Variable(2), cp.Parameter(2)
    layer = ConvexProgram(cp.Problem(cp.Minimize(cp.norm(x[0] - c[0])), [cp.norm(x) <= 5]), [c], [x])
    value = torch.tensor([[1.0, 2.0]], dtype=D, requires_grad=True)
    (y,) = layer(value)
    assert y[0, 0].item() == pytest.approx(1)
    with pytest.warns(ddn.DegenerateGradientWarning, match="`ConvexProgram`"):
        y.sum().backward()
    assert torch.allclose(value.grad, torch.tensor([[1.0, 0.0]], dtype=D), atol=1e-9)


def test_redundant_rows_are_none():
    x, a = cp.Variable(3), cp.Parameter(3)
    rows = [cp.sum(x) == 1, 2 * cp.sum(x) == 2, x[0] <= 0.2, 3 * x[0] <= 0.6]
    redundant, lean = (
        ConvexProgram(cp.Problem(cp.Minimize(cp.norm(x - a)), some), [a], [x]) for some in (rows, [rows[0], rows[2]])
    )
    value = torch.tensor([[2.0, 0.5, 0.1], [-2.0, 0.3, 1.0]], dtype=D, requires_grad=True)
    v = randn(2, 3)
    ours, theirs = redundant(value)[0], lean(value)[0]
    assert torch.allclose(ours, theirs, atol=1e-12)
    gradients = [torch.autograd.grad((v * y).sum(), value)[0] for y in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_answers_have_the_dtype_of_the_values(dtype):
    case = robust_fit()
    values = [value.to(dtype).requires_grad_() for value in case.values]
    (x,) = case.layer()(*values)
    (exact,) = case.layer()(*(value.double() for value in values))
    assert x.dtype == dtype and torch.equal(x, exact.to(dtype))
    assert torch.autograd.grad(x.sum(), values)[0].dtype == dtype


@pytest.mark.parametrize("make", [least_norm, entropy, lasso])
def test_it_maps_and_composes_with_transforms(make):
    case = make()
    layer = case.layer(check=False)
    values = [value.expand(2, *parameter.shape) for value, parameter in zip(case.values, case.parameters, strict=True)]
    mapped = torch.func.vmap(lambda *values: layer(*values)[0])(*values)
    assert torch.allclose(mapped, layer(*values)[0], atol=1e-13)
    first = [value[0] for value in values]
    reverse = torch.func.jacrev(lambda last: layer(*first[:-1], last)[0])(first[-1])
    forward = torch.func.jacfwd(lambda last: layer(*first[:-1], last)[0])(first[-1])
    assert torch.allclose(reverse, forward, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("make", [robust_fit, lasso])
def test_it_compiles_into_one_graph(make):
    case = make()
    layer = case.layer()
    values = [value.clone().requires_grad_() for value in case.values]
    compiled = torch.compile(lambda *values: layer(*values)[0], fullgraph=True)
    mine, theirs = (torch.autograd.grad(f(*values).sin().sum(), values) for f in (compiled, lambda *v: layer(*v)[0]))
    assert all(torch.allclose(g, h, atol=1e-14) for g, h in zip(mine, theirs, strict=True))


def test_threads_give_the_same_answers():
    case = entropy()
    c = randn(9, 3)
    one, three = (case.layer(num_workers=workers)(c)[0] for workers in (1, 3))
    assert torch.equal(one, three)


def test_variables_and_parameters_keep_their_shapes():
    X, y, s = cp.Variable((2, 3)), cp.Variable((2, 2), diag=True), cp.Variable()
    A, d = cp.Parameter((2, 3)), cp.Parameter((2, 2), diag=True)
    problem = cp.Problem(cp.Minimize(cp.norm(X - A, "fro") + cp.norm(y - d, "fro") + (s - A[0, 1]) ** 2))
    layer = ConvexProgram(problem, [A, d], [s, y, X])
    A_value, d_value = randn(4, 2, 3), torch.diag_embed(randn(4, 2, seed=1))
    found = layer(A_value, d_value)
    for mine, expected in zip(found, (A_value[:, 0, 1], d_value, A_value), strict=True):
        assert mine.shape == expected.shape and torch.allclose(mine, expected, atol=1e-9)


def test_a_sparse_parameter_counts_where_it_is_not_zero():
    x, S = cp.Variable(3), cp.Parameter((2, 3), sparsity=[(0, 1), (1, 2)])
    layer = ConvexProgram(cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.norm(S @ x - 1))), [S], [x])
    value = torch.zeros(2, 3, dtype=D)
    value[0, 1], value[1, 2] = 0.4, -0.3
    value.requires_grad_()
    dense = cp.Parameter((2, 3))
    reference = ConvexProgram(cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.norm(dense @ x - 1))), [dense], [x])
    mine, theirs = layer(value)[0], reference(value)[0]
    assert torch.allclose(mine, theirs, atol=1e-12)
    gradients = [torch.autograd.grad(y.sum(), value)[0] for y in (mine, theirs)]
    assert torch.allclose(gradients[0], gradients[1] * (value != 0), atol=1e-11)
    with pytest.raises(ddn.InvalidInputError, match="must be zero where its sparsity says so"):
        layer(torch.ones(2, 3, dtype=D))


def test_a_problem_without_parameters_has_its_one_answer():
    x = cp.Variable(2)
    layer = ConvexProgram(cp.Problem(cp.Minimize(cp.norm(x - 1))), [], [x])
    assert torch.allclose(layer()[0], torch.ones(2)) and layer()[0].dtype == torch.get_default_dtype()


def test_a_problem_can_be_canonicalized_again():
    case = geometric()
    one, two = case.layer(), case.layer()
    assert torch.equal(one(*case.values)[0], two(*case.values)[0])


def test_it_learns():
    case = entropy()
    layer = case.layer()
    c = torch.nn.Parameter(torch.zeros(3, dtype=D))
    target = torch.tensor([0.7, 0.2, 0.1], dtype=D)
    optimizer = torch.optim.SGD([c], lr=4.0)
    for _ in range(30):
        optimizer.zero_grad()
        (layer(c)[0] - target).square().sum().backward()
        optimizer.step()
    assert torch.allclose(layer(c)[0], target, atol=1e-2)
    assert repr(layer) == (
        "ConvexProgram(parameters=1, variables=1, cone=ProductCone(zero=1, nonnegative=0, second_order=(), "
        "semidefinite=(), exponential=3, power=()))"
    )


def test_a_call_leaves_a_record():
    case = least_norm()
    with ddn.diagnostics() as seen:
        case.layer()(*case.values)
    assert seen.records[0].call == "ConvexProgram" and seen.records[0].statuses == {"CONVERGED": 2}


def refused(problem: Any, parameters: Sequence[Any], variables: Sequence[Any], said: str, **options: Any) -> None:
    with pytest.raises(ddn.InvalidInputError) as error:
        ConvexProgram(problem, parameters, variables, **options)
    assert said in str(error.value)


def test_a_problem_that_cannot_be_a_layer_is_refused_by_name():
    x, a, b = cp.Variable(2, name="x"), cp.Parameter(2, name="a"), cp.Parameter(name="b")
    fine = cp.Problem(cp.Minimize(cp.norm(x - a)))
    refused("a problem", [], [x], "must be a `cvxpy.Problem`, got str")
    refused(cp.Problem(cp.Maximize(cp.norm(x))), [], [x], "must be convex, by the rules of DCP, but the objective")
    refused(cp.Problem(cp.Minimize(cp.sum(x)), [x >= 0, cp.norm(x) >= 1]), [], [x], "but constraint 1, 1.0 <= Pnorm")
    products = cp.Problem(cp.Minimize(cp.norm(x - a)), [x >= 0, b * (a @ x) <= 1])
    refused(products, [a, b], [x], "must be DPP, which is DCP also in the parameters, but constraint 1")
    refused(cp.Problem(cp.Minimize(x[0] * x[1])), [], [x], "must be convex")
    positive = cp.Variable(2, pos=True)
    refused(cp.Problem(cp.Minimize(positive[0] / positive[1])), [], [positive], "pass `gp=True`")
    refused(cp.Problem(cp.Minimize(cp.sum(positive) - 1)), [], [positive], "must be geometric", gp=True)
    whole = cp.Variable(integer=True)
    refused(cp.Problem(cp.Minimize(whole)), [], [whole], "boolean or integer variables")
    imaginary = cp.Variable(complex=True)
    refused(cp.Problem(cp.Minimize(cp.abs(imaginary))), [], [imaginary], "complex leaves")
    refused(fine, [], [x], "must be all of the problem, but 'a' is missing")
    refused(fine, [a, b], [x], "must be of the problem, which has no 'b'")
    refused(fine, [a, a], [x], "must name each one once")
    refused(fine, [a], [a], "must be a list of `cvxpy.Variable`, got Parameter")
    refused(fine, a, [x], "`ConvexProgram(parameters=...)` must be a list of `cvxpy.Parameter`, got Parameter")
    refused(fine, [a], [], "must name at least one variable")
    refused(fine, [a], [x], "has no option 'eps'", solver_args={"eps": 1e-8})
    refused(fine, [a], [x], "does not take 'many'", solver_args={"max_iter": "many"})
    refused(fine, [a], [x], "must be a dict", solver_args=3)
    refused(fine, [a], [x], "must be a positive integer", num_workers=0)
    refused(fine, [a], [x], "must be one of", on_failure="explode")
    refused(fine, [a], [x], "must be True or False", check=1)


def test_values_that_do_not_fit_are_refused_by_name():
    x, a, n = cp.Variable(2), cp.Parameter(2, name="a"), cp.Parameter(nonneg=True, name="n")
    P = cp.Parameter((2, 2), PSD=True, name="P")
    problem = cp.Problem(cp.Minimize(cp.norm(x - a) + n * cp.norm1(x) + cp.trace(P) * cp.norm(x)))
    layer = ConvexProgram(problem, [a, n, P], [x])
    eye = torch.eye(2, dtype=D)
    fine = [torch.zeros(3, 2, dtype=D), torch.ones(3, dtype=D), eye]
    layer(*fine)
    for index, value, said in (
        (0, torch.zeros(3, dtype=D), "`ConvexProgram(a=...)` must have shape (*B, *(2,)), as in cvxpy, got (3,)"),
        (0, [1.0, 2.0], "`ConvexProgram(a=...)` must be a tensor"),
        (1, torch.ones(3), "`ConvexProgram(n=...)` must have the dtype and device of the first value"),
        (1, torch.ones(4, dtype=D), "the batch axes of the values must broadcast to one shape"),
        (1, torch.tensor([1.0, 2.0, -1.0], dtype=D), "must not be negative, as it is declared in cvxpy, but is not in"),
        (2, -eye, "`ConvexProgram(P=...)` must be symmetric positive semidefinite"),
        (2, torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=D), "must be symmetric positive semidefinite"),
    ):
        with pytest.raises(ddn.InvalidInputError) as error:
            layer(*fine[:index], value, *fine[index + 1 :])
        assert said in str(error.value)
    with pytest.raises(ddn.InvalidInputError, match="takes 3 values, one for each parameter of the problem, got 1"):
        layer(fine[0])


@pytest.mark.parametrize(
    ("word", "value"), [("nonneg", -1.0), ("nonpos", 1.0), ("pos", 0.0), ("neg", 1.0), ("symmetric", 0.0), ("NSD", 1.0)]
)
def test_a_parameter_is_as_it_is_declared(word, value):
    matrix = word in ("symmetric", "NSD")
    x, a = cp.Variable(), cp.Parameter((2, 2) if matrix else (), name="a", **{word: True})
    layer = ConvexProgram(cp.Problem(cp.Minimize((x - cp.sum(a)) ** 2)), [a], [x])
    given = torch.tensor([[value, 1.0], [0.0, value]] if matrix else value, dtype=D)
    with pytest.raises(ddn.InvalidInputError, match=r"`ConvexProgram\(a=...\)` must"):
        layer(given)
    unchecked = ConvexProgram(cp.Problem(cp.Minimize((x - cp.sum(a)) ** 2)), [a], [x], check=False)
    assert unchecked(given)[0].item() == pytest.approx(given.sum().item())


def test_a_missing_library_is_named(monkeypatch):
    import importlib

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'torchddn\[convex\]'"):
        ConvexProgram(None, [], [])


def test_a_program_of_matrices_is_that_of_the_functional():
    m = 4
    x, q = cp.Variable(m), cp.Parameter(m)
    root, G = randn(m, m), randn(3, m, seed=1)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root.numpy() @ x) + q @ x), [G.numpy() @ x <= 1])
    value = randn(5, m, seed=2).requires_grad_()
    mine = ConvexProgram(problem, [q], [x])(value)[0]
    theirs = quadratic_program(root.mT @ root, value, G=G, h=torch.ones(3, dtype=D))
    assert torch.allclose(mine, theirs, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), value)[0] for y in (mine, theirs)]
    assert torch.allclose(*gradients, atol=1e-11)
