"""Newton steps with the structure that gradients have found: as good as dense ones, item by item, and no matrix."""

import pytest
import torch
from problems import randn

import torchddn as ddn
from torchddn import Status, solvers, structure
from torchddn.door import prepare
from torchddn.linear import Banded, BlockDiagonal, Diagonal, LowRank
from torchddn.solvers import active_set_newton
from torchddn.solvers.active_set_newton import ActiveSetNewton

M = 40
SHUFFLED = tuple(torch.randperm(M, generator=torch.Generator().manual_seed(0)).tolist())
PAIRS = tuple(i for j in range(M // 2) for i in (j, j + M // 2))


def separable(y, x):
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()


def chained(y):
    return 0.2 * (1 + (y[1:] - y[:-1]).square()).sqrt().sum()


SHAPES = {
    "diagonal": (Diagonal(), separable),
    "one band": (Banded(1), lambda y, x: separable(y, x) + chained(y)),
    "one band, reordered": (Banded(1, SHUFFLED), lambda y, x: separable(y, x) + chained(y[list(SHUFFLED)])),
    "two bands": (Banded(2), lambda y, x: separable(y, x) + 0.2 * (y[2:] - y[:-2]).cosh().sum()),
    "blocks": (
        BlockDiagonal(4),
        lambda y, x: separable(y, x) + 0.3 * torch.logsumexp(y.view(-1, 4), 1).sum(),
    ),
    "blocks, reordered": (
        BlockDiagonal(2, PAIRS),
        lambda y, x: separable(y, x) + 0.3 * torch.logsumexp(y.view(2, -1), 0).sum(),
    ),
    "concave rank 1": (LowRank(1), lambda y, x: separable(y, x) + 0.3 * torch.logsumexp(y, 0)),
    "convex rank 1": (LowRank(1), lambda y, x: separable(y, x) + 0.05 * y.sum().pow(4)),
    "rank 2": (LowRank(2), lambda y, x: separable(y, x) + 0.1 * (y[::2].sum() ** 2 + (1 + y[1::2].sum() ** 2).sqrt())),
}
KINDS = {
    "none": {},
    "equality": {"equality": lambda y, x: torch.stack([y[::2].sum() - 1.0, (y[::3] + 1).square().sum() - 16.0])},
    "inequality": {"inequality": lambda y, x: torch.stack([y.sum() - 0.5, -y.sum() - 10.0])},
    "bounds": {"bounds": (-0.5, 0.8)},
    "all": {
        "equality": lambda y, x: y[0] - y[1] - 0.1,
        "inequality": lambda y, x: torch.stack([y.sum() - 0.5, -y.sum() - 10.0]),
        "bounds": lambda x: (None, 0.2 + x.square()),
    },
}


@pytest.fixture(autouse=True)
def nothing_is_known():
    structure.forget()


def problem(f, kind: str = "none") -> ddn.Problem:
    return ddn.Problem.from_functions(f, initial=torch.zeros_like, **KINDS[kind])


def run(problem: ddn.Problem, x, declaration=None) -> solvers.base.Result:
    batched, x, *_ = prepare("test", problem, (x,), "auto")
    with torch.no_grad():
        return solvers.solve(ActiveSetNewton(curvature=declaration), batched, x, x[-1])


def no_matrix(*args):
    raise AssertionError("a Hessian was formed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_finds_what_dense_steps_find(shape, kind, dtype, monkeypatch):
    declaration, f = SHAPES[shape]
    x = randn(16, M).to(dtype)
    dense = run(problem(f, kind), x)
    monkeypatch.setattr(active_set_newton, "hessian", no_matrix)
    found = run(problem(f, kind), x, declaration)
    took = dense.status == Status.CONVERGED
    assert took.float().mean() > 0.7
    assert (found.status[took] == Status.CONVERGED).all()
    tolerance = torch.finfo(dtype).eps ** 0.8
    torch.testing.assert_close(found.y[took], dense.y[took], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.dual[took], dense.dual[took], atol=10 * tolerance, rtol=10 * tolerance)
    assert (found.num_steps <= dense.num_steps + 1)[took].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_item_of_another_structure_is_left_to_others_and_harms_nobody(shape):
    declaration, f = SHAPES[shape]
    x, W = randn(8, M), randn(M, M, seed=1) / M**0.5
    mixed = torch.arange(8) % 3 == 1

    def also_mixed(y, x, weight):
        return f(y, x) + weight * (W @ y).cosh().log().sum()

    node = ddn.Problem.from_functions(also_mixed, initial=lambda x, weight: torch.zeros_like(x))
    batched, inputs, *_ = prepare("test", node, (x, mixed.to(x)), "auto")
    with torch.no_grad():
        found = solvers.solve(ActiveSetNewton(curvature=declaration), batched, inputs, inputs[-1])
    alone = run(problem(f), x, declaration)
    assert torch.equal(found.status == Status.CONVERGED, ~mixed)
    torch.testing.assert_close(found.y[~mixed], alone.y[~mixed], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("declaration", "f"),
    [
        (Diagonal(), lambda y, x: (y - x).square().sum() - 2 * y[0] ** 2),
        (Banded(1), lambda y, x: (y - x).square().sum() - 2 * (y[1:] * y[:-1]).sum()),
        (Banded(2), lambda y, x: (y - x).square().sum() - 2 * (y[2:] * y[:-2]).sum()),
        (BlockDiagonal(2), lambda y, x: (y - x).square().sum() + 3 * y.view(-1, 2).prod(1).sum()),
        (LowRank(1), lambda y, x: (y - x).square().sum() - 0.1 * y.sum().square()),
        (LowRank(2), lambda y, x: (y - x).square().sum() - 0.1 * y[::2].sum() ** 2 + 0.3 * y[1::2].sum() ** 2),
    ],
)
def test_a_saddle_is_not_taken_for_a_minimum(declaration, f):
    assert (run(problem(f), randn(4, M), declaration).status == Status.STALLED).all()


def solved(node, x):
    x = x.clone().requires_grad_()
    y = node(x)
    return y, torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))[0]


@pytest.mark.parametrize(
    ("shape", "kind", "compile"),
    [(shape, "all", False) for shape in SHAPES]
    + [("diagonal", "bounds", True), ("one band", "all", True), ("concave rank 1", "equality", True)],
)
def test_what_a_gradient_finds_serves_the_next_forward_pass(shape, kind, compile, monkeypatch):
    node = ddn.DeclarativeNode(problem(SHAPES[shape][1], kind), compile=compile)
    first = [solved(node, randn(6, M, seed=i)) for i in range(3)]
    monkeypatch.setattr(active_set_newton, "hessian", no_matrix)
    again = [solved(node, randn(6, M, seed=i)) for i in range(3)]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_what_is_declared_serves_as_soon_as_it_is_examined(monkeypatch):
    adjoint = ddn.Implicit(structure=Diagonal())
    node = ddn.DeclarativeNode(problem(separable, "equality"), adjoint=adjoint)
    first = solved(node, randn(5, M))
    monkeypatch.setattr(active_set_newton, "hessian", no_matrix)
    torch.testing.assert_close(solved(node, randn(5, M)), first, rtol=1e-12, atol=1e-12)


def test_a_declaration_that_is_wrong_is_not_used_again():
    f = SHAPES["one band"][1]
    wrong, right = (
        ddn.DeclarativeNode(problem(f, "equality"), adjoint=ddn.Implicit(structure=s)) for s in (Diagonal(), "dense")
    )
    for seed in range(3):
        x = randn(5, M, seed=seed)
        torch.testing.assert_close(solved(wrong, x), solved(right, x), rtol=1e-9, atol=1e-9)


def test_a_structure_that_is_of_no_use_is_not_tried_for_ever(monkeypatch):
    # Diagonal at the solution, and nowhere else.
    W = randn(M, M) / M**0.5
    node = ddn.DeclarativeNode(problem(lambda y, x: (y - x).square().sum() + (W @ (y - x)).pow(4).sum(), "bounds"))
    tried = []
    factorize = active_set_newton.factorize_structured
    monkeypatch.setattr(active_set_newton, "factorize_structured", lambda *args: tried.append(1) or factorize(*args))
    for seed in range(6):
        x = 0.1 * randn(4, M, seed=seed)
        y, _ = solved(node, x)
        torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)
    assert len(tried) == 3


def test_an_item_that_is_not_finite_harms_nobody():
    node = ddn.DeclarativeNode(problem(separable, "all"), on_failure="ignore")
    x = randn(6, M)
    clean = [solved(node, x) for _ in range(2)][1]
    x[2, 3] = torch.nan
    y, slope = solved(node, x)
    others = torch.arange(6) != 2
    torch.testing.assert_close(y[others], clean[0][others], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope[others], clean[1][others], rtol=1e-12, atol=1e-12)
    assert y[2].isnan().all()


def test_forward_mode_and_second_derivatives_are_those_of_dense_steps():
    f = SHAPES["concave rank 1"][1]
    node = ddn.DeclarativeNode(problem(f, "equality"))
    x, t = randn(3, M), randn(3, M, seed=1)
    before = torch.func.jvp(node, (x,), (t,)), torch.func.grad(lambda x: (node(x) ** 3).sum())(x)
    solved(node, x)
    after = torch.func.jvp(node, (x,), (t,)), torch.func.grad(lambda x: (node(x) ** 3).sum())(x)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradgradcheck(lambda x: node(x)[:, :3], (x[:1, :].requires_grad_(),), atol=1e-6)


# Of problems that are too large for a matrix the structure is looked for before the first solve.


def is_solved_without_another(node, *x, max_steps=20, tolerance=1e-10):
    solution = node.solve(*x)
    assert (solution.status == Status.CONVERGED).all()
    assert solution.num_steps.max() <= max_steps
    assert torch.stack([solution.stationarity, solution.feasibility, solution.complementarity]).max() < tolerance
    return solution


@pytest.fixture
def alone(monkeypatch):
    def another(*args):
        raise AssertionError("another solver was asked")

    monkeypatch.setattr(solvers.AugmentedLagrangian, "init", another)
    monkeypatch.setattr(solvers.LBFGS, "init", another)
    monkeypatch.setattr(active_set_newton, "hessian", no_matrix)


@pytest.mark.parametrize("shape", ["diagonal", "one band", "two bands", "concave rank 1"])
def test_a_large_problem_with_constraints_is_solved_at_the_first_call(shape, alone):
    x = randn(3, 800)
    f = SHAPES[shape][1]
    solution = is_solved_without_another(ddn.DeclarativeNode(problem(f, "equality")), x)
    y, nu = solution.y, solution.equality_multipliers
    f_y = torch.func.vmap(torch.func.grad(f))(y, x)
    h_y = torch.func.vmap(torch.func.jacrev(KINDS["equality"]["equality"]))(y, x)
    torch.testing.assert_close(f_y, -(nu[:, None] @ h_y)[:, 0], rtol=1e-10, atol=1e-10)


def test_a_large_problem_without_constraints_is_solved_at_the_first_call(alone):
    x = randn(3, 2000)
    solution = is_solved_without_another(ddn.DeclarativeNode(problem(SHAPES["one band"][1])), x)
    assert solution.solver == "ActiveSetNewton, LBFGS"


@pytest.mark.parametrize("compile", [False, True])
def test_total_variation_as_it_is_written_down(alone, compile):
    def dual(u, x):
        return 0.5 * (x + torch.nn.functional.pad(u, (0, 1)) - torch.nn.functional.pad(u, (1, 0))).square().sum()

    x = 0.3 * randn(3, 600).cumsum(1)
    denoising = ddn.Problem.from_functions(dual, bounds=(-1.0, 1.0), initial=lambda x: torch.zeros_like(x[1:]))
    node = ddn.DeclarativeNode(denoising, compile=compile)
    for _ in range(2):
        u = node(x)
        y = x + torch.nn.functional.pad(u, (0, 1)) - torch.nn.functional.pad(u, (1, 0))
        torch.testing.assert_close(y, ddn.functional.total_variation(x, 1.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("scale", "max_steps"), [(1, 6), (5, 20), (20, 60)])
def test_entropic_transport_as_it_is_written_down(alone, scale, max_steps):
    # The larger the costs, the more full steps would lead to where there is no logarithm.
    n = 24
    M, r, c = scale * randn(2, n, n).sigmoid(), randn(2, n, seed=1).softmax(1), randn(2, n, seed=2).softmax(1)
    transport = ddn.Problem.from_functions(
        lambda P, M, r, c: (P * M).sum() + (P * (P.log() - 1)).sum(),
        lambda P, M, r, c: torch.cat([P.sum(1) - r, (P.sum(0) - c)[:-1]]),
        initial=lambda M, r, c: r[:, None] * c,
    )
    # The logarithm of the smallest entries is known to fewer digits.
    solution = is_solved_without_another(
        ddn.DeclarativeNode(transport), M, r, c, max_steps=max_steps, tolerance=1e-10 if scale == 1 else 1e-3
    )
    torch.testing.assert_close(solution.y, ddn.functional.optimal_transport(M, r, c), rtol=1e-8, atol=1e-12)


def test_an_item_that_leaves_the_domain_harms_nobody():
    n = 20
    M, r, c = randn(3, n, n).sigmoid(), randn(3, n, seed=1).softmax(1), randn(3, n, seed=2).softmax(1)
    M[1] *= 20
    M[2, 0, 0] = torch.nan
    transport = ddn.Problem.from_functions(
        lambda P, M, r, c: (P * M).sum() + (P * (P.log() - 1)).sum(),
        lambda P, M, r, c: torch.cat([P.sum(1) - r, (P.sum(0) - c)[:-1]]),
        initial=lambda M, r, c: r[:, None] * c,
    )
    node = ddn.DeclarativeNode(transport, on_failure="ignore")
    together, alone = node.solve(M, r, c), node.solve(M[:1], r[:1], c[:1])
    assert together.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NON_FINITE]
    assert together.num_steps[0] == alone.num_steps[0]
    torch.testing.assert_close(together.y[:1], alone.y, rtol=1e-12, atol=1e-14)


def test_a_large_problem_without_structure_is_looked_at_once(monkeypatch):
    W = randn(400, 400) / 20
    node = ddn.DeclarativeNode(problem(lambda y, x: (y - x).square().sum() + (W @ y).cosh().log().sum()))
    looked = []
    guess = structure.curvature.guess_curvature
    monkeypatch.setattr(structure.curvature, "guess_curvature", lambda *args: looked.append(1) or guess(*args))
    for _ in range(2):
        assert (node.solve(randn(2, 400)).status == Status.CONVERGED).all()
    assert len(looked) == 1


def test_a_term_that_hides_at_the_start_is_seen():
    # At zero the Hessian is diagonal, elsewhere it has a band.
    f = SHAPES["diagonal"][1]
    node = ddn.DeclarativeNode(problem(lambda y, x: f(y, x) + 0.1 * (y[1:] * y[:-1]).square().sum()))
    solution = node.solve(randn(2, 500))
    assert (solution.status == Status.CONVERGED).all() and solution.num_steps.max() <= 20
