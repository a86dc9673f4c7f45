"""Quadratic programs by solvers of other packages, and sparse ones: the same answers, statuses and gradients."""

import sys
import warnings

import pytest
import torch
from test_quadratic_program import BAD, FAMILIES, mixed, pick, program, randn
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.functional import quadratic_program
from torchddn.functional.programs import sparse_solver as _sparse_solver
from torchddn.nn import QuadraticProgram
from torchddn.quadratic import backends

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports all solvers there are
    import qpsolvers

# What torch says of every sparse tensor.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

D = torch.float64
INF = float("inf")
SOLVERS = [
    name
    for name in ("clarabel", "daqp", "highs", "osqp", "piqp", "proxqp", "quadprog", "scs")
    if name in qpsolvers.available_solvers
]
SPARSE_SOLVERS = [name for name in SOLVERS if name in qpsolvers.sparse_solvers]
MATRICES = "QAG"
LAYOUTS = {"coo": Tensor.to_sparse_coo, "csr": Tensor.to_sparse_csr, "csc": Tensor.to_sparse_csc}
QUIET = {"on_failure": "ignore", "infeasible": "nan", "solution": True}


def sparse(given: dict[str, Tensor], layout: str = "csr") -> dict[str, Tensor]:
    """The same with sparse matrices, ready for gradients."""
    changed = {name: LAYOUTS[layout](part) if name in MATRICES else part.clone() for name, part in given.items()}
    return {name: part.detach().requires_grad_() for name, part in changed.items()}


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def item(given: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: part[i].clone() for name, part in given.items()}


def thinned(B: int, m: int, **sizes: int) -> dict[str, Tensor]:
    """A program whose matrices have zeros; those of the first item, and vectors for all."""
    given = program(B, m, **sizes)
    alike = {name: given[name][0] * (randn(*given[name][0].shape, seed=11) > -0.3) for name in "AG"}
    diagonal = torch.diag_embed(given["Q"][0].diagonal())
    inside = 0.5 * randn(B, m, seed=1)
    right = {"b": inside @ alike["A"].mT, "h": inside @ alike["G"].mT + 0.3}
    return given | alike | right | {"Q": diagonal}


# Solvers of other packages.


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_gives_the_answer_of_our_own_method(family):
    given = pick(*FAMILIES[family])
    own = quadratic_program(**given, solution=True)
    size = own.y.abs().amax(1, keepdim=True)
    for name in SOLVERS:
        found = quadratic_program(**given, backend=f"qpsolvers:{name}", solution=True)
        assert found.solver == f"qpsolvers:{name}"
        assert (found.status == ddn.Status.CONVERGED).all(), name
        assert ((found.y - own.y).abs() <= 1e-9 * size).all(), name


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_and_multipliers_are_those_of_our_own_method(name):
    grads = []
    for backend in ("torchddn", f"qpsolvers:{name}"):
        given = {key: part.clone().requires_grad_() for key, part in program(4, 8).items()}
        found = quadratic_program(**given, backend=backend, solution=True)
        loss = found.y.square().sum() + found.inequality_multipliers.sum() + found.upper_multipliers.sum()
        grads.append(torch.autograd.grad(loss, list(given.values())))
    for own, other in zip(*grads, strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-10)


def test_bad_items_end_as_with_our_own_method():
    given = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ddn.ConvergenceWarning)
        own = quadratic_program(**given, **QUIET)
        for name in SOLVERS:
            found = quadratic_program(**given, **QUIET, backend=f"qpsolvers:{name}")
            assert torch.equal(found.status, own.status), name
            good = own.status == ddn.Status.CONVERGED
            assert torch.allclose(found.y[good], own.y[good], atol=1e-11), name


def lie(claim: ddn.Status):
    def call_backend(backend: str, item: backends.Matrices) -> backends.Guess:
        sizes = (0 if part is None else len(part) for part in (item.c, item.b, item.h, item.c))
        y, nu, lam, bounds = (1e3 * randn(size).numpy() for size in sizes)
        return backends.Guess(y, nu, lam, bounds, int(claim))

    return call_backend


CLAIMS = [ddn.Status.CONVERGED, ddn.Status.STALLED]


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_solver_says_is_not_believed(claim, monkeypatch):
    given = program(4, 6)
    exact = quadratic_program(**given)
    monkeypatch.setattr(backends, "call_backend", lie(claim))
    found = quadratic_program(**given, backend=f"qpsolvers:{SOLVERS[0]}", solution=True)
    assert (found.status == ddn.Status.CONVERGED).all()
    assert torch.allclose(found.y, exact, atol=1e-11)


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("m", [4, 40])
def test_what_a_solver_says_of_a_sparse_program_is_not_believed(claim, m, monkeypatch):
    given = thinned(4, m)
    exact = quadratic_program(**given)
    monkeypatch.setattr(_sparse_solver, "call_backend", lie(claim))
    found = quadratic_program(**sparse(given), **QUIET)
    solved = found.status == ddn.Status.CONVERGED
    assert torch.allclose(found.y[solved], exact[solved], atol=1e-11)
    assert (solved | (found.status == ddn.Status.STALLED)).all()


def test_items_in_threads_keep_their_order(monkeypatch):
    given = program(12, 5)
    backend = f"qpsolvers:{SOLVERS[0]}"
    alone = quadratic_program(**given, backend=backend)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(backends.os, "cpu_count", lambda: 4)
    assert torch.allclose(quadratic_program(**given, backend=backend), alone, atol=1e-13)


def test_a_backend_in_float32_and_batches_of_any_shape():
    given = {name: part.float() for name, part in program(6, 5).items()}
    backend = f"qpsolvers:{SOLVERS[0]}"
    y = quadratic_program(**given, backend=backend)
    assert y.dtype == torch.float32 and torch.allclose(y, quadratic_program(**given), atol=1e-4)
    folded = {name: part.unflatten(0, (2, 3)) for name, part in given.items()}
    assert torch.allclose(quadratic_program(**folded, backend=backend).flatten(0, 1), y, atol=1e-6)
    empty = {name: part[:0] for name, part in given.items()}
    assert quadratic_program(**empty, backend=backend).shape == (0, 5)
    mapped = torch.func.vmap(lambda *data: quadratic_program(*data, backend=backend))(*given.values())
    assert torch.allclose(mapped, y, atol=1e-6)


def test_a_module_hands_the_backend_on():
    given = program(3, 4)
    layer = QuadraticProgram(Q=given["Q"], backend="qpsolvers:none")
    with pytest.raises(ddn.InvalidInputError, match="must name a solver that is installed"):
        layer(q=given["q"])
    layer = QuadraticProgram(Q=given["Q"], backend=f"qpsolvers:{SOLVERS[0]}")
    assert torch.allclose(layer(q=given["q"]), quadratic_program(given["Q"], given["q"]), atol=1e-10)


def test_a_backend_that_is_not_there_is_refused(monkeypatch):
    given = pick(program(2, 3), "Q q")
    with pytest.raises(ddn.InvalidInputError, match=f"one of .*'qpsolvers:{SOLVERS[0]}'.*got 'qpsolvers:cplex'"):
        quadratic_program(**given, backend="qpsolvers:cplex")
    for wrong in ("daqp", None, 3):
        with pytest.raises(ddn.InvalidInputError, match="must be 'torchddn' or 'qpsolvers:<name>'"):
            quadratic_program(**given, backend=wrong)
    monkeypatch.setattr(qpsolvers, "sparse_solvers", [])
    with pytest.raises(ImportError, match=r"need a sparse solver: pip install torchddn\[qp\]"):
        quadratic_program(torch.eye(3, dtype=D).to_sparse(), given["q"])
    monkeypatch.setitem(sys.modules, "qpsolvers", None)
    with pytest.raises(ImportError, match=r"pip install torchddn\[qp\]"):
        quadratic_program(**given, backend="qpsolvers:daqp")
    with pytest.raises(ImportError, match=r"pip install torchddn\[qp\]"):
        quadratic_program(torch.eye(3, dtype=D).to_sparse(), given["q"])


# Sparse programs.


def units(family: str, given: dict[str, Tensor], i: int) -> tuple[Tensor, dict[str, Tensor]]:
    """What one is in the variables of an item, ``(m,)``, and in its data: in these units families have equal sizes."""
    ones = {name: torch.ones_like(given[name][i]) for name in ("q", "b", "h") if name in given}
    length = 1 / BAD[i] if family == "scales of variables" else ones["q"]
    for word, size in (("tiny", 1e-6), ("huge", 1e6)):
        if word in family:
            length, ones = size * length, {name: size * one for name, one in ones.items()}
    if family == "scales of rows":
        ones["h"] = BAD[i]
    found = ones | {"Q": 1 / torch.outer(length, length), "q": 1 / length, "lower": length, "upper": length}
    return length, found | {name: torch.outer(ones[b], 1 / length) for name, b in ("Ab", "Gh") if b in ones}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_program_is_the_dense_one(family, layout):
    given, names = FAMILIES[family]
    for i in range(2):
        plain = {name: part.requires_grad_() for name, part in item(pick(given, names), i).items()}
        thin = sparse(plain, layout)
        own, found = quadratic_program(**plain, solution=True), quadratic_program(**thin, solution=True)
        assert found.status == ddn.Status.CONVERGED
        length, unit = units(family, given, i)
        assert ((found.y - own.y) / length).abs().max() <= 1e-9 * (own.y / length).abs().max()
        direction = randn(len(own.y), seed=i)
        pairs = [
            (torch.autograd.grad((direction * answer.y).sum(), list(data.values())), data)
            for answer, data in ((own, plain), (found, thin))
        ]
        # Where as many rows hold as there are free variables, the gradients of Q and q are zero: what is found is
        # rounding, of the size of the units of the loss and of the data.
        loss = (direction * length).abs().max()
        for name, expected, got in zip(names.split(), pairs[0][0], pairs[1][0], strict=True):
            # Of the multipliers of dependent rows, and so of the gradients of these, there are many: those of least
            # norm are found to the size of the regularization.
            close = 1e-6 if "duplicated rows" in family and name in "AG" else 1e-12
            one = unit[name] / loss
            assert torch.allclose(one * dense(got), one * expected, rtol=1e-8, atol=close), name
            assert got.is_sparse or got.layout == torch.sparse_csr or name not in MATRICES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_sparse_matrix_has_its_entries(layout):
    given = thinned(3, 8)
    thin = sparse(given, layout)
    quadratic_program(**thin).square().sum().backward()
    plain = {name: part.clone().requires_grad_() for name, part in given.items()}
    quadratic_program(**plain).square().sum().backward()
    for name, part in thin.items():
        expected = plain[name].grad
        if name in MATRICES:
            assert part.grad.shape == part.shape and part.grad._nnz() == part._nnz()
            expected = expected * (given[name] != 0)
        assert torch.allclose(dense(part.grad), expected, atol=1e-10), name


@pytest.mark.parametrize("name", SPARSE_SOLVERS)
def test_every_sparse_solver_gives_the_same(name):
    given = thinned(3, 10, q=6)
    y = quadratic_program(**sparse(given), backend=f"qpsolvers:{name}")
    assert torch.allclose(y, quadratic_program(**given), atol=1e-11)


def test_derivatives_in_vectors_of_a_sparse_program_are_of_every_kind():
    given = thinned(2, 4, p=1, q=3)
    matrices = {name: LAYOUTS["csr"](given[name]) for name in MATRICES}
    vectors = [given[name].clone().requires_grad_() for name in ("q", "b", "h", "lower", "upper")]

    def parts(q: Tensor, b: Tensor, h: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        found = quadratic_program(**matrices, q=q, b=b, h=h, lower=lower, upper=upper, solution=True)
        return found.y, found.equality_multipliers, found.inequality_multipliers, found.lower_multipliers

    assert gradcheck(parts, vectors, check_forward_ad=True, atol=1e-6)
    assert gradgradcheck(parts, vectors, atol=1e-5)


def test_derivatives_in_the_numbers_of_a_sparse_program_are_those_of_differences():
    given = thinned(2, 4, p=1, q=3)
    patterns = {name: LAYOUTS["csr"](given[name]) for name in MATRICES}
    vectors = {name: given[name] for name in given if name not in MATRICES}

    def parts(*numbers: Tensor) -> tuple[Tensor, ...]:
        matrices = {
            name: torch.sparse_csr_tensor(thin.crow_indices(), thin.col_indices(), values, thin.shape)
            for (name, thin), values in zip(patterns.items(), numbers, strict=True)
        }
        found = quadratic_program(**matrices, **vectors, solution=True)
        return found.y, found.equality_multipliers, found.inequality_multipliers, found.upper_multipliers

    assert gradcheck(parts, [thin.values().clone().requires_grad_() for thin in patterns.values()], atol=1e-6)


def test_second_derivatives_of_sparse_matrices_are_refused():
    thin = sparse(thinned(1, 4))
    y = quadratic_program(**thin)
    (d_q,) = torch.autograd.grad(y.square().sum(), thin["q"], create_graph=True)
    # Once through the matrix is possible, in whatever order.
    assert torch.autograd.grad(d_q.square().sum(), thin["Q"], retain_graph=True)[0].is_sparse_csr
    with pytest.raises(ddn.InvalidInputError, match=r"quadratic_program\(Q=\.\.\.\)` is sparse, and torch cannot"):
        torch.autograd.grad(y.square().sum(), thin["Q"], create_graph=True)


def test_mapped_vectors_of_a_sparse_program():
    given = thinned(4, 6)
    matrices = {name: LAYOUTS["coo"](given[name]) for name in MATRICES}
    vectors = {name: given[name] for name in given if name not in MATRICES}
    y = quadratic_program(**matrices, **vectors)
    assert torch.allclose(torch.func.vmap(lambda some: quadratic_program(**matrices, **some))(vectors), y, atol=1e-12)
    slopes = torch.func.vmap(torch.func.jacrev(lambda q, more: quadratic_program(**matrices, q=q, **more)))
    q = vectors.pop("q")
    dense_slopes = torch.func.vmap(
        torch.func.jacrev(lambda q, more: quadratic_program(**pick(given, "Q A G"), q=q, **more))
    )
    expected = dense_slopes(q, vectors)
    assert torch.allclose(slopes(q, vectors), expected, atol=1e-10)
    forward = torch.func.vmap(torch.func.jacfwd(lambda q, more: quadratic_program(**matrices, q=q, **more)))
    assert torch.allclose(forward(q, vectors), expected, atol=1e-10)
    learned = {name: part.requires_grad_() for name, part in matrices.items()}
    mapped = torch.func.vmap(lambda q, more: quadratic_program(**learned, q=q, **more))(q, vectors)
    grads = torch.autograd.grad(mapped.square().sum(), list(learned.values()))
    plain = {name: given[name].clone().requires_grad_() for name in MATRICES}
    whole = torch.autograd.grad(quadratic_program(**plain, q=q, **vectors).square().sum(), list(plain.values()))
    for grad, part, expected in zip(grads, learned.values(), whole, strict=True):
        assert torch.allclose(grad.to_dense(), expected * (part.to_dense() != 0), atol=1e-10)


def random_sparse(seed: int) -> dict[str, Tensor | None]:
    """A program with few entries, many rows that hold at one point, and Q None, singular, or of any scale."""
    generator = torch.Generator().manual_seed(seed)

    def scattered(r: int, m: int) -> Tensor:
        there = torch.rand(r, m, generator=generator) < 4 / m
        return torch.randn(r, m, dtype=D, generator=generator) * there

    m, q = (int(torch.randint(*limits, (1,), generator=generator)) for limits in ((5, 60), (1, 90)))
    V, A, G = scattered(m, m), scattered(m // 3, m), scattered(q, m)
    point, slack, width = (torch.rand(size, dtype=D, generator=generator) for size in (m, q, m))
    slack = slack * (torch.rand(q, generator=generator) < 0.7)
    Q = (None, torch.diag((V[0] >= 0).to(D)), V @ V.mT, 1e3 * V @ V.mT)[seed % 4]
    q_vector = torch.randn(m, dtype=D, generator=generator)
    return {
        "Q": Q, "q": q_vector, "A": A, "b": A @ point, "G": G, "h": G @ point + slack,
        "lower": point - 2 * width, "upper": point + 2,
    }  # fmt: skip


def test_random_sparse_programs_reach_the_optimum_of_the_dense_ones():
    for seed in range(24):
        given = random_sparse(seed)
        thin = {k: part.to_sparse_csr() if k in MATRICES and part is not None else part for k, part in given.items()}
        own, found = quadratic_program(**given, solution=True), quadratic_program(**thin, solution=True)
        assert found.status == ddn.Status.CONVERGED and 1 <= found.num_steps <= 15
        assert abs(found.objective - own.objective) <= 1e-9 * (1 + own.objective.abs())
        assert max(found.stationarity, found.feasibility, found.complementarity) <= 1e-9
        assert (found.inequality_multipliers >= -1e-10).all()
        assert (found.lower_multipliers >= -1e-10).all() and (found.upper_multipliers >= -1e-10).all()


def test_sparse_programs_of_any_size_and_shape():
    none, eye = torch.zeros(0, 3, dtype=D).to_sparse_csr(), torch.eye(3, dtype=D).to_sparse_csr()
    q = randn(3)
    assert torch.allclose(quadratic_program(eye, q, none, q[:0]), -q)
    assert torch.equal(quadratic_program(None, 0 * q, none, q[:0]), 0 * q)
    assert torch.equal(quadratic_program(None, 0 * q + 1, none, q[:0], lower=q), q)
    assert torch.allclose(quadratic_program(eye, q, G=eye, h=torch.full_like(q, INF)), -q)
    assert quadratic_program(eye, q.expand(0, 3)).shape == (0, 3)
    assert quadratic_program(eye, q.expand(4, 1, 3), upper=randn(2, 3)).shape == (4, 2, 3)
    twice = torch.sparse_coo_tensor([[0, 0, 1, 2], [0, 0, 1, 2]], torch.tensor([0.5, 0.5, 1, 1], dtype=D), (3, 3))
    assert torch.allclose(quadratic_program(twice, q), -q)
    small = torch.sparse_csr_tensor(torch.arange(4, dtype=torch.int32), torch.arange(3, dtype=torch.int32), q * 0 + 1)
    assert torch.allclose(quadratic_program(small, q), -q)
    assert quadratic_program(torch.eye(3).bfloat16().to_sparse(), q.bfloat16()).dtype == torch.bfloat16


def test_bad_items_of_a_sparse_program_leave_the_others_alone():
    given = pick(thinned(6, 5, p=1, q=3), "Q q A b G h")
    given["A"] = torch.cat([given["A"], given["A"]])
    given["b"] = torch.cat([given["b"], given["b"]], dim=1)
    given["b"][1, 0] += 1
    given["q"][4, 2] = torch.nan
    thin = sparse(given)
    with pytest.warns(ddn.ConvergenceWarning):
        found = quadratic_program(**thin, solution=True, infeasible="nan")
    assert found.status.tolist() == [0, ddn.Status.INFEASIBLE, 0, 0, ddn.Status.NON_FINITE, 0]
    good = [0, 2, 3, 5]
    own = quadratic_program(**{name: part[good] if name in "qbh" else part for name, part in given.items()})
    assert torch.allclose(found.y[good], own, atol=1e-11)
    grads = torch.autograd.grad(found.y[good].square().sum(), list(thin.values()))
    assert all(dense(grad).isfinite().all() for grad in grads)
    assert grads[1][[1, 4]].abs().max() == 0


@pytest.mark.parametrize("m", [3, 30, 300])
def test_sparse_programs_without_solution_are_proved_to_have_none(m):
    chain = torch.eye(m, dtype=D) - torch.diag(torch.ones(m - 1, dtype=D), 1)
    twice = torch.cat([chain, chain[:1] * 2]).to_sparse_csr()
    right = torch.cat([randn(m), torch.zeros(1, dtype=D)])
    identity = torch.eye(m, dtype=D).to_sparse_csr()
    assert quadratic_program(identity, randn(m), twice, right, **QUIET).status == ddn.Status.INFEASIBLE
    crossed = torch.cat([chain, -chain]).to_sparse_csr()
    limits = torch.cat([randn(m), -randn(m) - 0.1])
    assert quadratic_program(identity, randn(m), G=crossed, h=limits, **QUIET).status == ddn.Status.INFEASIBLE
    # sum y = 1 below what y >= 1 leaves.
    ones = torch.ones(1, m, dtype=D).to_sparse_csr()
    bounded = {"A": ones, "b": torch.ones(1, dtype=D), "lower": 1.0}
    assert quadratic_program(identity, randn(m), **bounded, **QUIET).status == ddn.Status.INFEASIBLE
    flat = torch.diag((torch.arange(m) > 0).to(D)).to_sparse_csr()
    assert quadratic_program(flat, randn(m) + 5, **QUIET).status == ddn.Status.UNBOUNDED
    assert quadratic_program(None, randn(m).abs(), chain[1:].to_sparse_csr(), right[: m - 1], **QUIET).status == 4


def test_an_infeasible_sparse_program_gets_the_closest_point():
    x = torch.tensor([[3.0, 4.0]], dtype=D, requires_grad=True)
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=D).to_sparse_csr()
    h = torch.tensor([[-1.0, -3.0]], dtype=D, requires_grad=True)
    y = quadratic_program(torch.eye(2, dtype=D), -x, None, None, G, h, infeasible="closest")
    assert torch.allclose(y, torch.tensor([[1.0, 4.0]], dtype=D), atol=1e-7)
    d_x, d_h = torch.autograd.grad(y.sum(), (x, h))
    assert torch.allclose(d_x, torch.tensor([[0.0, 1.0]], dtype=D), atol=1e-7)
    assert torch.allclose(d_h, torch.tensor([[0.5, -0.5]], dtype=D), atol=1e-7)


def test_weakly_active_smoothing_and_limits_that_meet_are_as_in_the_dense_program():
    one, zero = torch.ones(1, 1, dtype=D).to_sparse_csr(), torch.zeros(1, dtype=D)
    for side, slope in {"active": 0.0, "inactive": 1.0}.items():
        for more in ({"G": one, "h": zero}, {"upper": zero}):
            x = torch.zeros(1, 1, dtype=D, requires_grad=True)
            y = quadratic_program(one, -x, **more, weakly_active=side)
            assert abs(torch.autograd.grad(y.sum(), x)[0].item() - slope) < 1e-14
    given = pick(item(program(1, 6, rank=0), 0), "q A b G h lower upper")
    given["upper"][2] = given["lower"][2]
    both = [quadratic_program(None, **data, smoothing=5.0, infeasible="closest") for data in (given, sparse(given))]
    assert torch.allclose(*both, atol=1e-7)
    feasible = given | {"h": given["h"] + 10, "A": 0 * given["A"], "b": 0 * given["b"]}
    both = [quadratic_program(None, **data, smoothing=5.0, solution=True) for data in (feasible, sparse(feasible))]
    assert torch.allclose(both[0].y, both[1].y, atol=1e-12)


def test_where_the_solution_is_not_isolated_the_gradient_is_the_least_one():
    V = torch.block_diag(randn(3, 2), randn(2, 2, seed=1))
    Q, c = V @ V.mT, V @ randn(4, 2).sum(1)
    found = []
    for matrix in (Q, Q.to_sparse_csr()):
        q = c.clone().requires_grad_()
        y = quadratic_program(matrix, q, lower=-50.0)
        with pytest.warns(ddn.DegenerateGradientWarning, match="one of many"):
            found.append(torch.autograd.grad(y @ randn(5, seed=3), q)[0])
    assert torch.allclose(*found, atol=1e-10)


def test_a_sparse_program_in_float32():
    given = {name: part.float() for name, part in thinned(3, 8).items()}
    thin = sparse(given)
    found = quadratic_program(**thin, solution=True)
    assert found.y.dtype == torch.float32 and (found.status == ddn.Status.CONVERGED).all()
    assert torch.allclose(found.y, quadratic_program(**given), atol=1e-5)
    assert torch.autograd.grad(found.y.sum(), thin["G"])[0].dtype == torch.float32


I2, Q2 = torch.eye(2, dtype=D), torch.zeros(2, dtype=D)
MISTAKES = {
    "must be symmetric": {"Q": torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=D).to_sparse()},
    "must be positive semidefinite": {"Q": torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D).to_sparse()},
    "must have no batch axes where a matrix is sparse": {"A": I2.expand(3, 2, 2), "b": Q2},
    "(q=...)` must be dense": {"q": Q2.to_sparse()},
    "(A=...)` must have shape": {"A": torch.zeros(1, 3, dtype=D).to_sparse(), "b": Q2[:1]},
    "(b=...)` is missing": {"A": I2.to_sparse()},
    "must not exceed `upper`": {"lower": 1.0, "upper": 0.0},
    "must name a solver of sparse programs": {"backend": "qpsolvers:daqp"},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_a_sparse_program_is_refused(said):
    with pytest.raises(ddn.InvalidInputError) as error:
        quadratic_program(**{"Q": I2.to_sparse(), "q": Q2, **MISTAKES[said]})
    assert said in str(error.value)


def test_a_layout_of_blocks_is_refused():
    with pytest.raises(ddn.InvalidInputError, match="to_sparse_csr"):
        quadratic_program(I2.to_sparse_bsr((1, 1)), Q2)


def mpc(num_stages: int, num_states: int = 4, num_controls: int = 2) -> dict[str, Tensor]:
    """Controls u_t and states x_t+1 = F x_t + B u_t of many stages, with limits on all."""
    F = 0.7 * torch.eye(num_states, dtype=D) + 0.1 * randn(num_states, num_states, seed=1)
    B = 0.3 * randn(num_states, num_controls, seed=2)
    stage = num_states + num_controls
    rows = torch.arange(num_stages * num_states).view(num_stages, num_states)
    first = stage * torch.arange(num_stages).unsqueeze(1)
    controls, states = first + torch.arange(num_controls), first + num_controls + torch.arange(num_states)
    places, numbers = [], []
    identity = torch.eye(num_states, dtype=D)
    for block, i, j in ((identity, rows, states), (-B, rows, controls), (-F, rows[1:], states[:-1])):
        shape = len(i), *block.shape
        places.append(torch.stack([i.unsqueeze(2).expand(shape).flatten(), j.unsqueeze(1).expand(shape).flatten()]))
        numbers.append(block.expand(shape).flatten())
    m = num_stages * stage
    A = torch.sparse_coo_tensor(torch.cat(places, 1), torch.cat(numbers), (rows.numel(), m)).coalesce()
    costs = torch.cat([torch.full((num_controls,), 0.1, dtype=D), torch.ones(num_states, dtype=D)]).repeat(num_stages)
    limits = torch.cat([torch.full((num_controls,), 0.5), torch.full((num_states,), 4.0)]).to(D).repeat(num_stages)
    return {
        "Q": torch.sparse_coo_tensor(torch.arange(m).expand(2, m), costs, (m, m)).coalesce(),
        "q": 0.5 * randn(m, seed=3),
        "A": A.to_sparse_csr(),
        "b": torch.cat([F @ randn(num_states, seed=4), torch.zeros(rows.numel() - num_states, dtype=D)]),
        "lower": -limits,
        "upper": limits,
    }


def test_a_chain_of_ten_thousand_variables():
    given = {name: part.requires_grad_() for name, part in mpc(1667).items()}
    found = quadratic_program(**given, solution=True)
    assert len(found.y) == 10_002 and found.status == ddn.Status.CONVERGED
    held = (found.y == given["lower"]) | (found.y == given["upper"])
    assert 1000 < held.sum() < 9000
    assert max(found.stationarity, found.feasibility, found.complementarity) < 1e-13
    assert (found.lower_multipliers >= 0).all() and (found.upper_multipliers >= 0).all()
    direction = randn(len(found.y), seed=6)
    grads = torch.autograd.grad((direction * found.y).sum(), list(given.values()))
    step = 1e-7
    for seed in (7, 8):
        slope, moved = 0.0, ({}, {})
        for (name, part), grad in zip(given.items(), grads, strict=True):
            numbers = part.detach() if part.layout == torch.strided else part.detach().values()
            along = randn(len(numbers), seed=seed)
            along = along if name in "qb" else 0.1 * along.abs() * numbers.sign()
            slope = slope + (along * (grad if grad.layout == torch.strided else grad.values())).sum()
            for sign, data in zip((1, -1), moved, strict=True):
                changed = numbers + sign * step * along
                if part.layout == torch.sparse_csr:
                    ends, columns = part.crow_indices(), part.col_indices()
                    changed = torch.sparse_csr_tensor(ends, columns, changed, part.shape)
                elif part.layout == torch.sparse_coo:
                    changed = torch.sparse_coo_tensor(part.detach().indices(), changed, part.shape)
                data[name] = changed
        up, down = (direction @ quadratic_program(**data) for data in moved)
        assert abs((up - down) / (2 * step) - slope) < 1e-5 * abs(slope)


def test_a_compiled_caller_leaves_sparse_programs_alone():
    thin = {name: part.detach() for name, part in sparse(thinned(3, 4)).items()}
    q = thin.pop("q").requires_grad_()
    own = 2 * quadratic_program(q=q, **thin)
    compiled = torch.compile(lambda q, **data: 2 * quadratic_program(q=q, **data), backend="eager")
    y = compiled(q, **thin)
    assert torch.allclose(y, own, atol=1e-12)
    grads = (torch.autograd.grad(answer.square().sum(), q)[0] for answer in (own, y))
    assert torch.allclose(*grads, atol=1e-12)
