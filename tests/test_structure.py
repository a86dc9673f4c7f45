"""Structure is found, read with few products, declared, verified; a wrong one costs time and never the gradient."""

import pytest
import torch
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

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
from torchddn.structure.constant import Constant
from torchddn.structure.ordering import narrowest
from torchddn.structure.places import place
from torchddn.structure.system import System

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
    problem, _ = bind("test", Problem.from_functions(f, equality, initial=x), pytree.tree_structure((x,)), (x,), B)
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
    expected, dense = gradient(f, x, ddn.Implicit(structure="dense"))
    for _ in range(2):  # it is abandoned before it is solved with, and goes on saying why
        g, record = gradient(f, x, adjoint)
        torch.testing.assert_close(g, expected)
        assert record.method == dense.method
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


def marginals(*sizes):
    """The rows of the sums of a tensor of these sizes over all axes but one, ``(r, m)``."""
    where = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    rows = [where[axis].flatten() == i for axis, size in enumerate(sizes) for i in range(size)]
    return torch.stack(rows).double()


class Multiplied:
    """``A' w`` for some w, and how many."""

    def __init__(self, A):
        self.A, self.count = A, 0

    def __call__(self, w):
        self.count += len(w)
        return w.to(self.A.dtype) @ self.A


SPARSE = {
    "transport": (marginals(60, 70), 2),
    "three marginals": (marginals(20, 21, 22), 3),
    "differences": (torch.eye(200).diff(dim=0).double(), 2),
    "separate": ((torch.arange(90)[:, None] == torch.arange(450) % 90).double(), 1),
    "few": (marginals(10, 11), 2),
    "none": (torch.zeros(60, 30, dtype=torch.float64), 0),
    "some empty": (torch.cat([marginals(30, 40), torch.zeros(9, 1200, dtype=torch.float64)]), 2),
}


@pytest.mark.parametrize("A, num_colors", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rows", ["in order", "shuffled"])
def test_the_places_of_sparse_rows_are_found_with_few_products(A, num_colors, dtype, rows):
    A = (A * random(*A.shape).sign() * (0.1 + random(*A.shape, seed=1).abs()))[
        shuffled(len(A)) if rows == "shuffled" else slice(None)
    ]
    multiply = Multiplied(A.to(dtype))
    found = place(multiply, len(A), most_colors=8)
    assert found is not None and torch.equal(found.pattern(), A != 0)
    assert found.color.shape == (len(A),)
    for color in range(found.num_colors):
        assert (A[found.color == color] != 0).sum(0).max() == 1
    assert multiply.count <= 150
    if rows == "in order":
        assert found.num_colors == num_colors and multiply.count <= 90


def test_two_rows_that_meet_again_and_again_are_told_apart_in_the_end():
    # One variable in two rows: some of these pairs go to one bucket more than once.
    for i in range(49):
        A = torch.zeros(50, 1, dtype=torch.float64)
        A[i] = A[i + 1] = 1.0
        A = torch.cat([torch.eye(50, dtype=torch.float64), A], 1)
        found = place(Multiplied(A), 50, most_colors=8)
        assert found is not None and torch.equal(found.pattern(), A != 0)


def test_rows_that_are_not_sparse_are_given_up_after_few_products():
    for A in (random(300, 400), random(100, 50) * (random(100, 50, seed=1) > 0)):
        multiply = Multiplied(A)
        assert place(multiply, len(A), most_colors=8) is None and multiply.count <= 24


def test_rows_of_too_many_colors_are_no_finding():
    # Twelve rows in every variable.
    A = (torch.arange(60)[:, None] % 5 == torch.arange(500) % 5).double() * (1 + random(60, 500).abs())
    assert place(Multiplied(A), 60, most_colors=8) is None
    assert place(Multiplied(A[:40]), 40, most_colors=7) is None


class Sums:
    """``K`` with a diagonal H and the row and column sums of an n x n matrix, by products that are counted."""

    def __init__(self, d, n, index=None):
        self.d, self.n, self.count = d, n, 0
        self.index = torch.arange(2 * n) if index is None else index

    def __call__(self, u):
        self.count += 1
        n, m = self.n, self.n**2
        y, mu = u[..., :m], u[..., m:][..., self.index]
        P = y.unflatten(-1, (n, n))
        spread = mu[..., :n, None] + mu[..., None, n:]
        sums = torch.cat([P.sum(-1), P.sum(-2)], -1)[..., self.index.argsort()]
        return torch.cat([self.d * y + spread.flatten(-2), sums], -1)

    def right_hand_side(self):
        """One that has a solution, although the rows depend on each other."""
        return self(random(len(self.d), self.n**2 + 2 * self.n, seed=4))


@pytest.mark.parametrize("n", [40, 300])
def test_a_first_pass_with_many_redundant_rows_takes_few_products(n):
    product = Sums(random(1, n**2).exp(), n, shuffled(2 * n))
    v = product.right_hand_side()
    product.count = 0
    believed = structure.operator(batched(lambda y, x: y.sum(), n**2), product, v, work=2**20)
    certified = solve_certified(believed.operator, v, apply=believed.truth, linear=believed.linear)
    assert believed.review(certified) == () and certified.certified.all() and set(certified.method) == {"schur"}
    assert believed.name == "diagonal, rows sparse, 2 colors" and product.count <= 120


def test_entries_that_are_zero_in_some_items_count():
    A = marginals(30, 25).repeat(B, 1, 1)
    A[1:, 30:] = 0.0
    K = bordered(torch.diag_embed(random(B, 750).exp()), A)
    believed = system(K, 750)
    assert believed.name == "diagonal, rows sparse, 2 colors"
    torch.testing.assert_close(believed.operator.dense(), K)


def test_what_is_constant_is_read_twice_and_then_remembered():
    counts, n = [], 10
    for i in range(4):
        product = Sums(random(B, n**2, seed=i).exp(), n)
        v = product.right_hand_side()
        product.count = 0
        believed = structure.operator(batched(lambda y, x: y.sum(), n**2), product, v, work=2**20)
        counts.append(product.count)
        torch.testing.assert_close(believed.operator.matvec(v), product(v))
    assert counts[1:] == [3, 1, 1]  # a diagonal and two colors, then the diagonal alone


def test_only_what_is_the_same_for_all_items_and_passes_is_constant():
    products = random(2, B, 5)
    same = products[:, :1].expand_as(products)
    constant = Constant()
    constant.learn(torch.full_like(same, torch.nan))  # says nothing
    constant.learn(same)
    assert not constant.is_known
    constant.learn(same)
    assert constant.is_known and torch.equal(constant.recall(B), same)
    for first, second in ((products, same), (same, 2 * same)):
        constant = Constant()
        constant.learn(first)
        constant.learn(second)
        constant.learn(second)
        assert constant.varies and not constant.is_known


class Mixture(ddn.Problem):
    """Constraints whose matrix is an attribute."""

    def __init__(self, A):
        super().__init__()
        self.register_buffer("A", A)

    def objective(self, y, x):
        return separable(y, x)

    def equality(self, y, x):
        return self.A @ y - 1.0

    def initial(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("factor", [2.0, 1 + 1e-7, 1 + 1e-10])
def test_a_constant_that_changes_in_place_is_read_again(factor):
    problem = Mixture(random(2, M))
    node, dense = (ddn.DeclarativeNode(problem, adjoint=adjoint) for adjoint in (None, ddn.Implicit(structure="dense")))

    def check():
        x = random(B, M).requires_grad_()
        y = node(x)
        with ddn.diagnostics() as seen:
            (g,) = torch.autograd.grad((y * PLACE).sum(), x)
        (expected,) = torch.autograd.grad((dense(x) * PLACE).sum(), x)
        torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-9)
        assert seen.records[0].notes == () and seen.records[0].structure == "diagonal, rows dense"
        assert seen.records[0].method == "schur"

    for _ in range(3):
        check()
    problem.A[:, ::2] *= factor
    for _ in range(2):
        check()


CONSTANT = {
    "diagonal": (lambda y, x: 0.5 * (y - x).square().sum(), "diagonal"),
    "tridiagonal": (lambda y, x: 0.5 * (y - x).square().sum() + 0.3 * y.diff().square().sum(), "tridiagonal"),
    "rank 1": (lambda y, x: 0.5 * (y - x).square().sum() + 0.5 * y.mean().square() * M, "diagonal + rank 1"),
}


@pytest.mark.parametrize("f, name", CONSTANT.values(), ids=CONSTANT)
@pytest.mark.parametrize("constraints", [
    {"bounds": (-0.3, 0.3)},
    {"equality": balanced, "bounds": (-0.3, 0.4)},
    {"inequality": lambda y, x: torch.stack([y.sum(), -y[:9].sum()]) - 0.1},
])  # fmt: skip
def test_masks_change_from_pass_to_pass_over_a_constant(f, name, constraints):
    for seed in range(5):
        x = random(B, M, seed=seed)
        g, record = gradient(f, x, **constraints)
        expected, _ = gradient(f, x, ddn.Implicit(structure="dense"), **constraints)
        torch.testing.assert_close(g, expected)
        assert record.structure.startswith(name) and record.notes == ()


@pytest.mark.parametrize("m", [2, M])
def test_a_row_that_vanishes_in_the_free_variables_up_to_rounding_is_dependent(m):
    # One variable is at a bound and has all of the row; rounding has left 1e-30 in the others.
    class Tight(Problem):
        def objective(self, y, x):
            return (y - x).square().sum()

        def inequality(self, y, x):
            return 1 - y.square().sum()

        def bounds(self, x):
            return torch.cat([x.new_ones(1), x.new_full((m - 1,), -9.0)]), None

        def initial(self, x):
            return torch.zeros_like(x)

        def solve(self, x):
            y = torch.cat([x.new_ones(1), x.new_full((m - 1,), 1e-30)]).expand_as(x)
            return ddn.PrimalDual(y, inequality_multipliers=x.new_full((len(x), 1), 0.5))

    x = torch.zeros(2, m, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.3, 0.2])
    x.requires_grad_()
    for _ in range(2):
        y = ddn.DeclarativeNode(Tight())(x)
        with ddn.diagnostics() as seen:
            (g,) = torch.autograd.grad(y.sum(), x)
        assert "active constraints depend on each other (of item 0: inequality[0])" in seen.records[0].notes
        assert g.abs().max() < 10


def test_masks_change_from_pass_to_pass_over_constant_blocks():
    def f(y, x):
        return 0.5 * (y - x).square().sum() + 0.3 * y.view(-1, 2).prod(1).sum()

    for seed in range(5):
        x = random(B, M, seed=seed)
        g, record = gradient(f, x, ddn.Implicit(structure=BlockDiagonal(2)), bounds=(-0.3, 0.3))
        expected, _ = gradient(f, x, ddn.Implicit(structure="dense"), bounds=(-0.3, 0.3))
        torch.testing.assert_close(g, expected)
        assert record.structure == "blocks of 2" and record.notes == ()


def test_a_constant_hessian_takes_the_certificate_alone(monkeypatch):
    node = ddn.DeclarativeNode(Problem.from_functions(CONSTANT["tridiagonal"][0], initial=lambda x: x))
    multiply, read = System.multiply, []

    def counted(self, columns):
        read[-1] += len(columns)
        return multiply(self, columns)

    monkeypatch.setattr(System, "multiply", counted)
    for _ in range(4):
        x = random(B, M).requires_grad_()
        y = node(x)
        read.append(0)
        y.sum().backward()
    assert read[1:] == [3, 0, 0]


def test_a_matrix_free_pass_that_does_not_converge_is_bounded_and_says_so(monkeypatch):
    # A mesh without an anchor, too large for a dense matrix: singular, but there is a solution.
    steps, m = 30, 130**2
    monkeypatch.setattr("torchddn.linear.certificate.UNASKED_STEPS", steps)
    monkeypatch.setattr("torchddn.structure.reading.UNASKED_STEPS", steps)
    count = 0

    def laplacian(u):
        nonlocal count
        count += 1
        u = u.unflatten(-1, (130, 130))
        return -(pad(u.diff(dim=-1), (1, 1)).diff(dim=-1) + pad(u.diff(dim=-2), (0, 0, 1, 1)).diff(dim=-2)).flatten(-2)

    v = laplacian(random(1, m))
    believed = structure.operator(batched(lambda y, x: y.sum(), m), laplacian, v, work=2**30)
    assert believed.name == "matrix-free"
    count = 0
    certified = solve_certified(believed.operator, v, linear=believed.linear, apply=believed.truth)
    assert not certified.certified.any() and certified.residual.isfinite().all()
    assert count <= 8 * steps + 20  # two methods, each refined three times at most


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
    with pytest.raises(ddn.InvalidInputError, match=type(declared).__name__):
        gradient(separable, random(B, M), ddn.Implicit(structure=declared), equality=lambda y, x: y.sum())
