"""Quadratic programs: exact answers, proofs where there is none, and gradients of every argument."""

import re
import warnings

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.functional import project_ball, quadratic_program
from torchddn.functional.programs import saddle
from torchddn.linear import solve_certified
from torchddn.nn import QuadraticProgram

D = torch.float64
INF = float("inf")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def program(
    B: int, m: int, p: int = 2, q: int | None = None, rank: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """A program with all kinds of constraints that has a point inside."""
    q = m if q is None else q
    V, inside = randn(B, m, m if rank is None else rank, seed=seed), 0.5 * randn(B, m, seed=seed + 1)
    A, G = randn(B, p, m, seed=seed + 2), randn(B, q, m, seed=seed + 3)
    return {
        "Q": V @ V.mT / m,
        "q": randn(B, m, seed=seed + 4),
        "A": A,
        "b": times(A, inside),
        "G": G,
        "h": times(G, inside) + rand(B, q, seed=seed + 5),
        "lower": inside - rand(B, m, seed=seed + 6),
        "upper": inside + rand(B, m, seed=seed + 7),
    }


def pick(given: dict[str, Tensor], names: str) -> dict[str, Tensor | None]:
    return {name: given[name] for name in names.split()}


BAD = 10 ** (12 * rand(8, 12, seed=9) - 6)


def scaled_variables(given: dict[str, Tensor]) -> dict[str, Tensor]:
    s = BAD[:, : given["q"].shape[1]]
    Q = s.unsqueeze(2) * given["Q"] * s.unsqueeze(1)
    return given | {
        "Q": 0.5 * (Q + Q.mT), "q": given["q"] * s, "A": given["A"] * s.unsqueeze(1), "G": given["G"] * s.unsqueeze(1),
        "lower": given["lower"] / s, "upper": given["upper"] / s,
    }  # fmt: skip


def scaled_lengths(given: dict[str, Tensor], length: float) -> dict[str, Tensor]:
    changed = {name: length * given[name] for name in ("b", "h", "lower", "upper")}
    return given | changed | {"q": given["q"] / length, "Q": given["Q"] / length**2}


def scaled_rows(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {"G": BAD.unsqueeze(2) * given["G"], "h": BAD * given["h"]}


def duplicated(given: dict[str, Tensor]) -> dict[str, Tensor]:
    twice = {name: torch.cat([given[name], given[name]], dim=1) for name in "AbGh"}
    return given | twice


EVERYTHING = "Q q A b G h lower upper"
WITHOUT_Q = ("q", "A", "b", "G", "h", "lower", "upper")
FAMILIES = {
    "all kinds": (program(8, 12), EVERYTHING),
    "one variable": (program(8, 1, p=0), "Q q lower upper"),
    "unconstrained": (program(8, 6), "Q q"),
    "equalities": (program(8, 12), "Q q A b"),
    "inequalities": (program(8, 12), "Q q G h"),
    "bounds": (program(8, 12), "Q q lower upper"),
    "lower bounds": (program(8, 12), "Q q lower"),
    "duplicated rows": (duplicated(program(8, 12)), EVERYTHING),
    "singular": (program(8, 12, rank=5), EVERYTHING),
    "linear": (program(8, 12, rank=0), EVERYTHING),
    "more rows than variables": (program(8, 5, q=40), "Q q G h"),
    "scales of variables": (scaled_variables(program(8, 12)), EVERYTHING),
    "tiny": (scaled_lengths(program(8, 12), 1e-6), EVERYTHING),
    "huge": (scaled_lengths(program(8, 12), 1e6), EVERYTHING),
    "scales of rows": (scaled_rows(program(8, 12)), EVERYTHING),
    # From 32 variables on the first steps are in single precision.
    "all kinds, larger": (program(4, 40), EVERYTHING),
    "bounds, larger": (program(4, 40), "Q q lower upper"),
    "duplicated rows, larger": (duplicated(program(4, 40)), EVERYTHING),
    "singular, larger": (program(4, 40, rank=15), EVERYTHING),
    "linear, larger": (program(4, 40, rank=0), EVERYTHING),
    "tiny, larger": (scaled_lengths(program(4, 40), 1e-6), EVERYTHING),
    "huge, larger": (scaled_lengths(program(4, 40), 1e6), EVERYTHING),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_optimality_conditions_hold(family, dtype):
    given, names = FAMILIES[family]
    given = {name: tensor.to(dtype) for name, tensor in pick(given, names).items()}
    found = quadratic_program(**given, solution=True)
    assert (found.status == ddn.Status.CONVERGED).all()
    given = {name: tensor.to(D) for name, tensor in given.items()}
    y, q = found.y.to(D), given["q"]
    force, length = times(given["Q"], y) + q, y.abs().amax(1, keepdim=True)
    sizes = [force.abs(), q.abs(), (given["Q"].abs() @ y.abs().unsqueeze(2)).squeeze(2)]
    parts = {"A": found.equality_multipliers, "G": found.inequality_multipliers}
    small = 1e-10 if dtype == D else 2e-4
    for (matrix, multipliers), right in zip(parts.items(), "bh", strict=True):
        if matrix not in given:
            continue
        multipliers, rows = multipliers.to(D), given[matrix]
        force = force + times(rows.mT, multipliers)
        sizes.append((rows.abs().mT @ multipliers.abs().unsqueeze(2)).squeeze(2))
        slack = given[right] - times(rows, y)
        size = (rows.abs() @ y.abs().unsqueeze(2)).squeeze(2) + given[right].abs()
        assert (slack.abs() <= small * size).all() if matrix == "A" else (slack >= -small * size).all()
        if matrix == "G":
            assert (multipliers >= -small * multipliers.abs().amax()).all()
            assert (torch.minimum(slack / size, multipliers / (1e-300 + multipliers.abs().amax())) <= small).all()
    if "lower" in given:
        upper = given.get("upper", torch.full_like(y, INF))
        z_lower, z_upper = found.lower_multipliers.to(D), found.upper_multipliers.to(D)
        force = force - z_lower + z_upper
        size = torch.maximum(length, y.abs())
        assert (y >= given["lower"] - small * size).all() and (y <= upper + small * size).all()
        assert ((z_lower == 0) | ((y - given["lower"]).abs() <= small * size)).all()
        assert all((z >= -small * z.abs().amax()).all() for z in (z_lower, z_upper))
    total = torch.stack([size.to(D) for size in sizes]).sum(0)
    assert (force.abs() <= small * total.amax(1, keepdim=True).clamp(min=1e-300)).all()


def test_a_linear_program_has_the_optimum_of_another_solver():
    given = program(5, 8, rank=0)
    y = quadratic_program(None, *(given[name] for name in WITHOUT_Q))
    for i in range(5):
        q, A, b, G, h, lower, upper = (given[name][i].numpy() for name in WITHOUT_Q)
        best = linprog(q, G, h, A, b, list(zip(lower, upper, strict=True)))
        assert abs(float(given["q"][i] @ y[i]) - best.fun) < 1e-9


def test_a_projection_is_the_closed_form():
    x = randn(6, 4, seed=3)
    box = quadratic_program(torch.eye(4, dtype=D), -x, lower=-0.5, upper=0.5)
    assert torch.allclose(box, x.clamp(-0.5, 0.5), atol=1e-14)
    ones = torch.ones(1, 4, dtype=D)
    simplex = quadratic_program(torch.eye(4, dtype=D), -x.abs(), ones, torch.ones(1, dtype=D), lower=0.0)
    outside = x.abs().sum(1) > 1
    assert torch.allclose(simplex[outside], project_ball(x.abs(), p=1)[outside], atol=1e-13)


SMALL = program(3, 4, p=1, q=3)


def tensors(given: dict[str, Tensor], names: str = EVERYTHING) -> list[Tensor]:
    return [given[name].clone().requires_grad_() for name in names.split()]


def multipliers(*data: Tensor) -> tuple[Tensor, ...]:
    found = quadratic_program(*data, check=False, solution=True)
    return found.equality_multipliers, found.inequality_multipliers, found.lower_multipliers, found.upper_multipliers


def solution(*data: Tensor) -> Tensor:
    return quadratic_program(*data, check=False)  # differences leave Q unsymmetric


@pytest.mark.parametrize("function", [solution, multipliers])
def test_first_derivatives_are_those_of_differences(function):
    assert gradcheck(function, tensors(SMALL), check_forward_ad=True, atol=1e-6)


@pytest.mark.parametrize("function", [solution, multipliers])
def test_second_derivatives_are_those_of_differences(function):
    assert gradgradcheck(function, tensors(program(1, 3, p=1, q=2)), atol=1e-5)


@pytest.mark.parametrize("names", ["Q q", "Q q A b", "Q q A b G h"])
def test_derivatives_where_arguments_are_left_out(names):
    assert gradcheck(solution, tensors(SMALL, names), check_forward_ad=True, atol=1e-6)


def test_derivatives_at_a_vertex_are_those_of_the_rows():
    given = program(3, 4, rank=0)
    data = tensors(given, "q A b G h lower upper")
    assert gradcheck(lambda *rest: quadratic_program(None, *rest), data, atol=1e-6)
    y = quadratic_program(None, *data)
    assert torch.autograd.grad(y.sum(), data[0])[0].abs().max() < 1e-20


def test_smoothing_gives_a_linear_program_a_gradient():
    given = program(3, 4, rank=0)
    data = tensors(given, "q A b G h lower upper")
    y = quadratic_program(None, *data, smoothing=5.0)
    again = quadratic_program(5 * torch.eye(4, dtype=D), *data)
    assert torch.allclose(y, again, atol=1e-13)
    assert torch.autograd.grad(y[:, 0].sum(), data[0])[0].abs().max() > 0.01


def test_the_gradient_of_a_shared_argument_is_the_sum():
    given = program(4, 5)
    shared = {name: given[name][0].clone() for name in "QAG"}
    feasible = {"b": times(shared["A"], given["b"].new_zeros(4, 5)), "h": given["h"].abs()}
    limits = {"lower": given["lower"] - 2, "upper": given["upper"] + 2}
    alone = {name: tensor.clone().requires_grad_() for name, tensor in shared.items()}
    y = quadratic_program(**alone, q=given["q"], **feasible, **limits)
    total = torch.autograd.grad(y[:, 1].sum(), list(alone.values()))
    each = {name: tensor.expand(4, *tensor.shape).clone().requires_grad_() for name, tensor in shared.items()}
    y = quadratic_program(**each, q=given["q"], **feasible, **limits)
    for one, many in zip(total, torch.autograd.grad(y[:, 1].sum(), list(each.values())), strict=True):
        assert torch.allclose(one, many.sum(0), atol=1e-12)


def test_a_weakly_active_row_counts_as_the_option_says():
    # Nearest point to x with y <= 0 at x = 0: on the edge, without a force.
    x = torch.zeros(1, 1, dtype=D, requires_grad=True)
    one = torch.ones(1, 1, dtype=D)
    slope = {}
    for side in ("active", "inactive"):
        y = quadratic_program(one, -x, G=one, h=torch.zeros(1, dtype=D), weakly_active=side)
        slope[side] = torch.autograd.grad(y.sum(), x)[0].item()
    assert slope == {"active": 0.0, "inactive": 1.0}


def mixed(m: int = 6) -> dict[str, Tensor]:
    """64 items; number 5 is infeasible, 17 unbounded, 40 has a NaN."""
    given = pick(program(64, m, p=1, q=m), "Q q A b G h")
    given["G"][5, 1], given["h"][5, 1] = -given["G"][5, 0], -given["h"][5, 0] - 1
    given["Q"][17], given["G"][17], given["h"][17] = 0, 0, 1
    given["q"][40, 2] = torch.nan
    return given


@pytest.mark.parametrize("m", [6, 40])
def test_bad_items_leave_their_batch_mates_alone(m):
    given = {name: tensor.requires_grad_() for name, tensor in mixed(m).items()}
    with pytest.warns(ddn.ConvergenceWarning):
        found = quadratic_program(**given, solution=True, infeasible="nan")
    wrong = {5: ddn.Status.INFEASIBLE, 17: ddn.Status.UNBOUNDED, 40: ddn.Status.NON_FINITE}
    good = [i for i in range(64) if i not in wrong]
    assert {i: found.status[i].item() for i in wrong} == wrong
    assert (found.status[good] == ddn.Status.CONVERGED).all()
    grads = torch.autograd.grad(found.y[good].square().sum(), list(given.values()))
    for i in good:
        alone = {name: tensor.detach()[i : i + 1].requires_grad_() for name, tensor in given.items()}
        y = quadratic_program(**alone)
        assert (y[0] - found.y[i]).abs().max() <= 1e-12 * y.abs().max()
        for mine, whole in zip(torch.autograd.grad(y.square().sum(), list(alone.values())), grads, strict=True):
            assert (mine[0] - whole[i]).abs().max() <= 1e-12 * mine.abs().max()
    assert all(grad[list(wrong)].abs().max() == 0 for grad in grads)


def test_an_infeasible_item_gets_what_the_policy_says():
    # y <= -1 and y >= 1 in the first coordinate: least squares meets in the middle, the second is free to be optimal.
    x = torch.tensor([[3.0, 4.0]], dtype=D, requires_grad=True)
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=D)
    h = torch.tensor([[-1.0, -3.0]], dtype=D, requires_grad=True)
    arguments = torch.eye(2, dtype=D), -x, None, None, G, h
    y = quadratic_program(*arguments, infeasible="closest")
    assert torch.allclose(y, torch.tensor([[1.0, 4.0]], dtype=D), atol=1e-7)
    d_x, d_h = torch.autograd.grad(y.sum(), (x, h))
    assert torch.allclose(d_x, torch.tensor([[0.0, 1.0]], dtype=D), atol=1e-7)
    assert torch.allclose(d_h, torch.tensor([[0.5, -0.5]], dtype=D), atol=1e-7)
    with pytest.warns(ddn.ConvergenceWarning, match=re.escape("1 of 1 items contradict each other (0)")):
        assert torch.equal(quadratic_program(*arguments), y)
    assert quadratic_program(*arguments, infeasible="nan").isnan().all()
    with pytest.raises(ddn.InfeasibleError, match="infeasible='closest'"):
        quadratic_program(*arguments, infeasible="raise")


@pytest.mark.parametrize("m", [3, 10, 40])
def test_random_programs_without_solution_are_proved_to_have_none(m):
    given = program(32, m)
    twice = {"A": torch.cat([given["A"]] * 2, 1), "b": torch.cat([given["b"], given["b"] + 1], 1)}
    crossed = {"G": torch.cat([given["G"], -given["G"]], 1), "h": torch.cat([given["h"], -given["h"] - 0.1], 1)}
    flat = program(32, m, rank=m // 3)["Q"]
    ignored = {"on_failure": "ignore", "infeasible": "nan", "solution": True}
    for change in (twice, crossed):
        found = quadratic_program(**pick(given | change, "Q q A b G h"), **ignored)
        assert (found.status == ddn.Status.INFEASIBLE).all()
    for Q in (flat, None):
        found = quadratic_program(Q, given["q"], **ignored)
        assert (found.status == ddn.Status.UNBOUNDED).all()


def test_mapped_and_transformed_calls_agree_with_the_batch():
    given = program(4, 5)
    data = tuple(given[name] for name in EVERYTHING.split())
    y = quadratic_program(*data)
    assert torch.allclose(torch.func.vmap(quadratic_program)(*data), y, atol=1e-12)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda q, *rest: quadratic_program(rest[0], q, *rest[1:])))
    rows = jacobian(given["q"], given["Q"], *data[2:])
    q = given["q"].clone().requires_grad_()
    whole = torch.autograd.functional.jacobian(lambda q: quadratic_program(data[0], q, *data[2:]), q)
    assert torch.allclose(rows, torch.stack([whole[i, :, i] for i in range(4)]), atol=1e-11)


def test_batch_axes_of_any_number_and_none():
    given = program(6, 4)
    y = quadratic_program(*given.values())
    folded = quadratic_program(*(tensor.unflatten(0, (2, 3)) for tensor in given.values()))
    assert torch.allclose(folded.flatten(0, 1), y, atol=1e-14)
    alone = quadratic_program(*(tensor[2] for tensor in given.values()))
    assert alone.shape == (4,) and torch.allclose(alone, y[2], atol=1e-12)
    empty = quadratic_program(*(tensor[:0] for tensor in given.values()), solution=True)
    assert empty.y.shape == (0, 4) and empty.status.shape == (0,)


def test_half_precision_computes_in_float32():
    given = {name: tensor.bfloat16() for name, tensor in pick(program(4, 5), "Q q lower upper").items()}
    given["Q"] = (given["Q"] + given["Q"].mT) / 2
    y = quadratic_program(**given, check=False)
    exact = quadratic_program(**{name: tensor.float() for name, tensor in given.items()}, check=False)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())


def test_a_call_leaves_a_record():
    with ddn.diagnostics() as seen:
        quadratic_program(*program(4, 5).values())
    assert seen.records[0].statuses == {"CONVERGED": 4} and seen.records[0].num_steps > 0


I2, Q2 = torch.eye(2, dtype=D), torch.zeros(2, dtype=D)
MISTAKES = {
    "`q=...)` must be a tensor": {"q": [0.0, 0.0]},
    "`Q=...)` must have shape (*B, m, m) with m = 2": {"Q": torch.eye(3, dtype=D)},
    "must be symmetric": {"Q": torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=D)},
    "must be positive semidefinite": {"Q": torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D)},
    "`b=...)` is missing": {"A": torch.ones(1, 2, dtype=D)},
    "`G=...)` is missing": {"h": torch.ones(1, dtype=D)},
    "must have an entry for each row of `A`": {"A": torch.ones(2, 2, dtype=D), "b": torch.ones(1, dtype=D)},
    "must have the dtype and device of `q`": {"Q": torch.eye(2)},
    "must not exceed `upper`, but does for a variable of item 0": {"lower": 1.0, "upper": 0.0},
    "must broadcast to one shape": {"Q": torch.eye(2, dtype=D).expand(3, 2, 2), "q": torch.zeros(2, 2, dtype=D)},
    "`q=...)` must have variables": {"q": torch.zeros(2, 0, dtype=D), "Q": torch.zeros(0, 0, dtype=D)},
    "`smoothing=...)` must be a number that is not negative": {"smoothing": -1.0},
    "`max_steps=...)` must be a positive integer": {"max_steps": 0},
    "`infeasible=...)` must be one of": {"infeasible": "explode"},
    "`weakly_active=...)` must be one of": {"weakly_active": "maybe"},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_refused_at_the_door(said):
    with pytest.raises(ddn.InvalidInputError) as error:
        quadratic_program(**{"Q": I2, "q": Q2, **MISTAKES[said]})
    assert said.replace("`q=", "(q=").replace("`Q=", "(Q=").lstrip("`") in str(error.value) or said.lstrip("`") in str(
        error.value
    )


def test_without_a_check_nothing_is_looked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quadratic_program(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D), Q2 + 1, lower=-1.0, upper=1.0, check=False)


def test_a_module_learns_what_it_was_given_as_parameters():
    x = randn(16, 2, seed=5)
    center = torch.nn.Parameter(torch.tensor([0.4], dtype=D))
    layer = QuadraticProgram(Q=I2, A=torch.ones(1, 2, dtype=D), b=center, lower=0.0)
    target = quadratic_program(I2, -x, torch.ones(1, 2, dtype=D), torch.ones(1, dtype=D), lower=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        (layer(q=-x) - target).square().mean().backward()
        optimizer.step()
    assert abs(center.item() - 1) < 1e-3
    assert layer.double().solve(q=-x).equality_multipliers.shape == (16, 1)
    with pytest.raises(ddn.InvalidInputError, match="must not be given: the module has a `Q` of its own"):
        layer(Q=I2, q=-x)
    assert repr(layer) == "QuadraticProgram(learned: b; kept: Q, A, lower)"


def test_backward_pass_reuses_the_factor_of_the_forward_pass(monkeypatch):
    methods = []

    def spied(*args, **options):
        certified = solve_certified(*args, **options)
        methods.extend(certified.method)
        return certified

    monkeypatch.setattr(saddle, "solve_certified", spied)
    generator = torch.Generator().manual_seed(0)
    root, q, G = (torch.randn(shape, dtype=D, generator=generator) for shape in ((16, 8, 8), (16, 8), (16, 5, 8)))
    A, h = torch.ones(1, 8, dtype=D), torch.rand(16, 5, dtype=D, generator=generator)
    q.requires_grad_()
    data = (root @ root.mT + 0.1 * torch.eye(8, dtype=D), q, A, torch.zeros(1, dtype=D), G, h, -0.5, 0.5)
    found = quadratic_program(*data, solution=True)
    assert (found.lower_multipliers > 0).any() and (found.inequality_multipliers > 0).any()
    found.y.sum().backward()
    assert methods == ["KnownFactor"] * 16
