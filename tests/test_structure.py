"""Structure is found, read with few products, declared, verified; a wrong one costs time and never the gradient."""

import pytest
import torch
from torch.nn.functional import pad

import torchddn as ddn
from torchddn import structure
from torchddn.linear import (
    Banded,
    BlockDiagonal,
    Dense,
    DenseMatrix,
    Diagonal,
    LowRank,
    Saddle,
    Sparse,
    Zero,
    solve_certified,
)
from torchddn.problem import Problem, bind
from torchddn.structure.ordering import narrowest

B, M = 3, 48
PLACE = torch.arange(M)
NEAR = (PLACE[:, None] - PLACE).abs()


@pytest.fixture(autouse=True)
def _nothing_is_known_yet():
    structure.forget()
    yield
    structure.forget()


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shuffled(size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(1))


def definite(pattern):
    """Symmetric matrices with this pattern, diagonally dominant, ``(B, m, m)``."""
    H = random(B, *pattern.shape) * pattern
    H = H + H.mT
    H.diagonal(dim1=1, dim2=2).copy_(H.abs().sum(2) + 1)
    return H


def low_rank(rank):
    U = random(B, M, rank, seed=rank)
    return torch.diag_embed(random(B, M).exp()) + U @ U.mT


HESSIANS = {
    "diagonal": (definite(NEAR == 0), "diagonal"),
    "tridiagonal": (definite(NEAR <= 1), "tridiagonal"),
    "bandwidth 3": (definite(NEAR <= 3), "bandwidth 3"),
    "shuffled": (definite(NEAR <= 2)[:, shuffled(M)][:, :, shuffled(M)], "reordered"),
    "rank 1": (low_rank(1), "diagonal + rank 1"),
    "rank 3": (low_rank(3), "diagonal + rank 3"),
    "ring with chords": (definite(torch.isin(NEAR, torch.tensor([0, 1, 17, M - 17, M - 1]))), "sparse"),
    "dense": (definite(NEAR >= 0), ""),
}


class Counted:
    """A product with matrices that counts the vectors it has met."""

    def __init__(self, K):
        self.K, self.num_products = K, 0

    def __call__(self, u):
        # Inside `vmap` this is called once for many vectors: `columns` counts those.
        return (self.K @ u.unsqueeze(-1)).squeeze(-1)


def batched(f, m=M, equality=None, shape=None):
    """A problem with m variables, for the memory only."""
    x = torch.zeros(B, 1, dtype=torch.float64)
    problem, _ = bind("test", Problem.from_functions(f, equality, initial=x), (x,), (x,), B)
    layout = ddn._shapes.layout_of(torch.zeros(shape or (m,)))
    return type(problem)(**{**vars(problem), "layout": layout})


def system(K, m=M, f=lambda y, x: y.sum(), shape=None, **options):
    return structure.operator(batched(f, m, shape=shape), Counted(K), random(B, K.shape[1]), **options)


@pytest.mark.parametrize("H, name", HESSIANS.values(), ids=HESSIANS)
def test_the_structure_of_a_hessian_is_found_and_read(H, name):
    believed = system(H)
    assert name in believed.name if name else believed.name == ""
    torch.testing.assert_close(believed.operator.dense(), H)
    v = random(B, M, seed=5)
    certified = solve_certified(believed.operator, v, apply=believed.truth, linear=believed.linear)
    assert believed.review(certified) == () and certified.certified.all()
    torch.testing.assert_close(certified.solution, torch.linalg.solve(H, v))


def test_blocks_are_found_by_the_shape_of_the_decision():
    group = torch.arange(M) // 6
    for order, shape in ((torch.arange(M), (8, 6)), (torch.arange(M).view(6, 8).T.flatten(), (6, 8))):
        inverse = order.argsort()
        H = definite(group[:, None] == group)[:, inverse][:, :, inverse]
        believed = system(H, shape=shape)
        assert believed.name.startswith("blocks of 6")
        torch.testing.assert_close(believed.operator.dense(), H)
        structure.forget()


ROWS = {
    "dense": (random(B, 3, M, seed=7), "rows dense"),
    "sparse": (random(B, 6, M, seed=7) * (torch.arange(6)[:, None] == PLACE % 6), "rows sparse, 1 color"),
    "none": (torch.zeros(B, 2, M, dtype=torch.float64), "rows zero"),
}


def bordered(H, A, active=None):
    return Saddle(DenseMatrix(H, symmetric=True), A, active).dense()


@pytest.mark.parametrize("A, name", ROWS.values(), ids=ROWS)
def test_the_structure_of_rows_is_found_and_read(A, name):
    K = bordered(definite(NEAR == 0), A)
    believed = system(K)
    assert believed.name == f"diagonal, {name}"
    torch.testing.assert_close(believed.operator.dense(), K)


def test_masked_rows_and_variables_keep_the_structure_that_was_found_without_masks():
    H, A = definite(NEAR <= 1), random(B, 3, M, seed=7)
    free, active = random(B, M, seed=8) > 0, random(B, 3, seed=9) > 0
    masked = H * free.unsqueeze(1) * free.unsqueeze(2) + torch.diag_embed((~free).double())
    K = bordered(masked, A * free.unsqueeze(1), active)
    believed = system(K, active=active, unmasked=lambda: Counted(bordered(H, A)))
    assert believed.name == "tridiagonal, rows dense"
    torch.testing.assert_close(believed.operator.dense(), K)
    torch.testing.assert_close(believed.truth.dense(), K)


def test_a_chain_of_rows_makes_one_banded_matrix():
    # Slacks of a total variation: t_i with u_i - u_{i+1} = t_i, and no curvature in t.
    n = 30
    H = torch.diag_embed(torch.cat([random(B, n).exp(), torch.zeros(B, n - 1, dtype=torch.float64)], 1))
    A = torch.zeros(B, n - 1, 2 * n - 1, dtype=torch.float64)
    for i in range(n - 1):
        A[:, i, i], A[:, i, i + 1], A[:, i, n + i] = 1.0, -1.0, -1.0
    K = bordered(H, A)
    believed = system(K, 2 * n - 1)
    assert "with rows" in believed.name
    torch.testing.assert_close(believed.operator.dense(), K)


def test_a_small_system_is_not_looked_at():
    believed = system(definite(NEAR == 0)[:, :32, :32], 32)
    assert believed.name == "" and isinstance(believed.operator, DenseMatrix)


def test_items_that_are_not_finite_say_nothing():
    H = definite(NEAR == 0)
    H[1] = torch.nan
    assert system(H).name == "diagonal"
    structure.forget()
    assert system(torch.full_like(H, torch.nan)).name == ""


def separable(y, x):
    return (0.5 * (y - x).square() + 0.1 * y.pow(4)).sum()


def coupled(y, x):
    return separable(y, x) + 0.3 * (y[1:] - y[:-1]).square().sum()


def everywhere(y, x):
    return separable(y, x) + 0.3 * y.cumsum(0).square().mean()


def with_mean(y, x):
    return separable(y, x) + 0.5 * y.mean().square() * len(y)


def balanced(y, x):
    return y.sum() - 1.0


def gradient(f, x, adjoint=None, **problem):
    x = x.clone().requires_grad_()
    y = ddn.argmin(f, torch.full(x.shape[1:], 0.1, dtype=x.dtype), x, adjoint=adjoint, **problem)
    with ddn.diagnostics() as seen:
        (g,) = torch.autograd.grad((y * torch.arange(y.shape[1])).sum(), x)
    return g, seen.records[0]


PROBLEMS = {
    "separable": (separable, {}, "diagonal"),
    "neighbors": (coupled, {}, "tridiagonal"),
    "mean": (with_mean, {}, "diagonal + rank 1"),
    "equality": (separable, {"equality": balanced}, "diagonal, rows dense"),
    "bounds": (coupled, {"bounds": (-0.3, 0.3)}, "tridiagonal"),
    "low rank and bounds": (with_mean, {"bounds": (-0.3, 0.3)}, "diagonal + rank 1"),
    "inequality": (coupled, {"inequality": lambda y, x: y.square().sum() - 1.0}, "tridiagonal, rows dense"),
}


@pytest.mark.parametrize("f, constraints, name", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_node_finds_the_structure_of_its_problem(f, constraints, name, dtype):
    x = random(B, M, dtype=dtype)
    g, record = gradient(f, x, **constraints)
    expected, dense = gradient(f, x, ddn.Implicit(structure="dense"), **constraints)
    assert record.structure == name and not record.notes and dense.structure == ""
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(g, expected, rtol=tolerance, atol=tolerance)
    again, record = gradient(f, x, **constraints)
    assert record.structure == name
    torch.testing.assert_close(again, g)


@pytest.mark.parametrize("f, declared", [
    (separable, Diagonal()),
    (separable, BlockDiagonal(2)),
    (coupled, Banded(1)),
    (coupled, Banded(2)),
    (coupled, Sparse()),
    (coupled, Sparse(NEAR <= 1)),
    (with_mean, LowRank(1)),
    (everywhere, Dense()),
])  # fmt: skip
def test_a_declaration_that_is_right_is_used(f, declared):
    x = random(B, M)
    g, record = gradient(f, x, ddn.Implicit(structure=declared))
    assert record.notes == () and len(record.method.split(", ")) == 1
    torch.testing.assert_close(g, gradient(f, x, ddn.Implicit(structure="dense"))[0])


@pytest.mark.parametrize("rows", [Sparse(), Dense(), None])
def test_rows_are_declared_beside_the_hessian(rows):
    x = random(B, M)
    g, record = gradient(separable, x, ddn.Implicit(structure=(Diagonal(), rows)), equality=balanced)
    assert record.structure.startswith("diagonal, rows") and record.method == "schur"
    torch.testing.assert_close(g, gradient(separable, x, ddn.Implicit(structure="dense"), equality=balanced)[0])


def test_a_linear_program_is_declared_without_a_hessian():
    x = random(B, 6)

    def solve(adjoint):
        c = x.clone().requires_grad_()
        solution = ddn.argmin(
            lambda y, c: c @ y, torch.full((6,), 1 / 6, dtype=x.dtype), c,
            equality=lambda y, c: y.sum() - 1, bounds=(0.0, None), adjoint=adjoint, solution=True,
        )  # fmt: skip
        (g,) = torch.autograd.grad(solution.equality_multipliers.sum(), c)
        return g

    torch.testing.assert_close(solve(ddn.Implicit(structure=(Zero(), None))), solve(None))


@pytest.mark.parametrize("f, wrong", [
    (coupled, Diagonal()),
    (with_mean, Diagonal()),
    (with_mean, Banded(2)),
    (coupled, LowRank(1)),
    (coupled, BlockDiagonal(4)),
    (coupled, Zero()),
    (everywhere, Sparse(NEAR <= 1)),
])  # fmt: skip
def test_a_declaration_that_is_wrong_gives_the_right_gradient_and_says_so(f, wrong):
    x = random(B, M)
    adjoint = ddn.Implicit(structure=wrong)
    expected, _ = gradient(f, x, ddn.Implicit(structure="dense"))
    for _ in range(2):  # it is abandoned, and goes on saying why
        g, record = gradient(f, x, adjoint)
        torch.testing.assert_close(g, expected)
        assert record.notes == (f"the structure that was declared, {wrong.name}, is wrong (3 of 3 items): abandoned",)
    assert record.structure == ""


def test_a_finding_that_other_data_contradict_is_abandoned():
    def sometimes(y, x):
        return separable(y, x) + x[0] * 0.1 * (y[1:] - y[:-1]).square().sum()

    x = random(B, M)
    first = x.clone()
    first[:, 0] = 0
    assert gradient(sometimes, first)[1].structure == "diagonal"
    x[:, 0] = 1.0
    g, record = gradient(sometimes, x)
    assert "found, diagonal, is wrong" in record.notes[0]
    torch.testing.assert_close(g, gradient(sometimes, x, ddn.Implicit(structure="dense"))[0])


class Products:
    """Counts the products that a system is asked for, a vector each."""

    def __init__(self, K):
        self.K, self.count = K, 0

    def __call__(self, u):
        self.count += 1
        return (self.K @ u.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("wrong", [Diagonal(), Banded(3), LowRank(2), BlockDiagonal(8)], ids=lambda d: d.name)
def test_a_wrong_declaration_takes_at_most_three_times_the_products_of_a_dense_solve(wrong):
    H = definite(NEAR >= 0)

    def count(**options):
        product = Products(H)
        # As much work as forbids to take products together: each is a call.
        believed = structure.operator(batched(lambda y, x: y.sum()), product, H[:, 0], work=2**20, **options)
        certified = solve_certified(
            believed.operator, random(B, M), apply=believed.truth, linear=believed.linear, max_refinements=3
        )
        believed.review(certified)
        assert certified.certified.all()
        return product.count

    assert count(declared=wrong) <= 3 * count(declared="dense")


def test_a_structure_is_found_once_and_then_read_with_few_products():
    H = definite(NEAR <= 1)
    counts = []
    for _ in range(3):
        product = Products(H)
        structure.operator(batched(lambda y, x: y.sum()), product, H[:, 0], work=2**20)
        counts.append(product.count)
    assert counts[0] > 10 and counts[1:] == [3, 3]


def test_the_structure_of_a_problem_is_its_word():
    class Chain(ddn.Problem):
        structure = Banded(1)

        def objective(self, y, x):
            return coupled(y, x)

        def initial(self, x):
            return x

    node = ddn.DeclarativeNode(Chain())
    x = random(B, M).requires_grad_()
    with ddn.diagnostics() as seen:
        node(x).sum().backward()
    assert seen.records[-1].structure == "tridiagonal" and seen.records[-1].method == "banded"

    class Mistaken(Chain):
        structure = "diagonal"

    with pytest.raises(ddn.InvalidInputError, match=r"`Mistaken.structure` must be 'auto', 'dense', a declaration"):
        ddn.DeclarativeNode(Mistaken())(x)


@pytest.mark.parametrize("mode", ["forward", "double backward", "jacobian"])
def test_every_mode_of_differentiation_uses_it(mode):
    x = random(2, 40)

    def node(x, adjoint=None):
        return ddn.argmin(coupled, torch.zeros(40, dtype=x.dtype), x, adjoint=adjoint)

    def derivative(adjoint):
        if mode == "forward":
            return torch.func.jvp(lambda x: node(x, adjoint), (x,), (torch.ones_like(x),))[1]
        if mode == "jacobian":
            return torch.func.jacrev(lambda x: node(x, adjoint))(x)
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(node(leaf, adjoint).pow(2).sum(), leaf, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), leaf)[0]

    with ddn.diagnostics() as seen:
        found = derivative(None)
    backward = [record for record in seen.records if record.stage == "backward"]
    assert backward and {record.structure for record in backward} == {"tridiagonal"}
    torch.testing.assert_close(found, derivative(ddn.Implicit(structure="dense")))


def test_roots_have_structure_too():
    def F(y, x):
        return y + 0.1 * y**3 + 0.2 * pad(y[1:], (0, 1)) - 0.1 * pad(y[:-1], (1, 0)) - x

    x = random(B, M).requires_grad_()
    v = random(B, M, seed=3)
    gradients = []
    for adjoint in (None, ddn.Implicit(structure="dense")):
        y = ddn.root(F, torch.zeros(M, dtype=x.dtype), x, adjoint=adjoint)
        with ddn.diagnostics() as seen:
            gradients.append(torch.autograd.grad(y, x, v)[0])
    torch.testing.assert_close(*gradients)
    assert seen.records[0].method == "lu"


def test_an_item_alone_has_the_gradient_it_has_in_a_batch():
    x = random(B, M)
    together, _ = gradient(coupled, x, bounds=(-0.3, 0.3))
    for i in range(B):
        torch.testing.assert_close(gradient(coupled, x[i : i + 1], bounds=(-0.3, 0.3))[0][0], together[i])


def test_a_nan_spoils_only_its_own_gradient():
    x = random(B, M)
    expected, _ = gradient(coupled, x)
    x[1] = torch.nan
    x = x.requires_grad_()
    y = ddn.argmin(coupled, torch.full((M,), 0.1, dtype=x.dtype), x, on_failure="ignore")
    (g,) = torch.autograd.grad((y * torch.arange(M)).sum(), x)
    torch.testing.assert_close(g[[0, 2]], expected[[0, 2]])
    assert (g[1] == 0).all()


def test_redundant_rows_are_noticed():
    def sums(y, x):
        P = y.view(7, 7)
        return torch.cat([P.sum(0), P.sum(1)]) - 1 / 7

    x = random(B, 49)
    g, record = gradient(separable, x, equality=sums, adjoint=None)
    assert record.structure == "diagonal, rows sparse, 2 colors" and record.method == "schur"
    torch.testing.assert_close(g, gradient(separable, x, ddn.Implicit(structure="dense"), equality=sums)[0])


def test_the_narrowest_order_of_a_shuffled_band_is_narrow():
    order = shuffled(40)
    near = (torch.arange(40)[:, None] - torch.arange(40)).abs() <= 2
    found, width = narrowest(near[order][:, order])
    assert sorted(found) == list(range(40)) and width <= 3


WRONG = {
    "got 'diagonal'": "diagonal",
    "got 3": 3,
    "a pair of one for it": (Diagonal(), Diagonal()),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_declaration_is_refused(message):
    with pytest.raises(ddn.InvalidInputError, match=message):
        ddn.Implicit(structure=WRONG[message])


@pytest.mark.parametrize("declared", [Banded(1, tuple(range(5))), BlockDiagonal(5), LowRank(30), Sparse(NEAR[:5] < 1)])
def test_a_declaration_that_does_not_fit_the_sizes_is_refused(declared):
    with pytest.raises(ddn.InvalidInputError, match=type(declared).__name__):
        gradient(separable, random(B, M), ddn.Implicit(structure=declared))
