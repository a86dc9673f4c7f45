"""Structured operators, sparse rows and their solvers against dense references."""

import pytest
import torch

from torchddn.errors import InvalidInputError
from torchddn.linear import (
    BandedMatrix,
    BlockDiagonalMatrix,
    Blockwise,
    Bordered,
    BorderedMatrix,
    CyclicReduction,
    DenseMatrix,
    DiagonalMatrix,
    LowRank,
    LowRankMatrix,
    Saddle,
    SchurComplement,
    SparseRows,
    Woodbury,
    choose,
    name_of,
    solve_certified,
    specialist,
)
from torchddn.linear.pinning import pin

B = 4
DTYPES = (torch.float64, torch.float32)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shuffled(size, seed=0):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def banded(size, bandwidth, symmetric=True, order=None, dtype=torch.float64, batch=B, seed=0):
    """Diagonally dominant, so that every order of elimination is stable."""
    matrix = random(batch, size, size, seed=seed)
    matrix = matrix + matrix.mT if symmetric else matrix
    near = (torch.arange(size)[:, None] - torch.arange(size)).abs() <= bandwidth
    matrix = matrix * near
    matrix.diagonal(dim1=1, dim2=2).copy_(matrix.abs().sum(2) + 1)
    band = torch.zeros(batch, 2 * bandwidth + 1, size, dtype=torch.float64)
    for k in range(-bandwidth, bandwidth + 1):
        if abs(k) < size:
            diagonal = matrix.diagonal(k, 1, 2)
            band[:, bandwidth + k, max(0, -k) : max(0, -k) + diagonal.shape[1]] = diagonal
    return BandedMatrix(band.to(dtype), symmetric, order)


def blocks(num_blocks, width, symmetric=True, order=None, dtype=torch.float64):
    matrix = random(B, num_blocks, width, width)
    matrix = matrix @ matrix.mT + torch.eye(width) if symmetric else matrix
    return BlockDiagonalMatrix(matrix.to(dtype), symmetric, order)


def low_rank(size, rank, dtype=torch.float64):
    C = random(B, rank, rank, seed=2)
    return LowRankMatrix(
        random(B, size).exp().to(dtype), random(B, size, rank, seed=1).to(dtype), (C @ C.mT + 0.1).to(dtype)
    )


def bordered(a, b, order=None, dtype=torch.float64):
    C = random(B, b, a, seed=2)
    e = C.abs().sum(1) + 1
    F = random(B, b, b, seed=3)
    F = F @ F.mT + C.abs().sum(2).diag_embed() + torch.eye(b)
    return BorderedMatrix(e.to(dtype), C.to(dtype), F.to(dtype), order)


def transport_rows(n, dtype=torch.float64):
    """Row sums and column sums of an n x n matrix, the last left out."""
    place = torch.arange(n * n)
    index = torch.stack([place // n, n + place % n])
    values = torch.ones(B, 2, n * n, dtype=dtype)
    values[:, 1, index[1] == 2 * n - 1] = 0
    return SparseRows(values, index.clamp(max=2 * n - 1), 2 * n - 1)


OPERATORS = {
    "tridiagonal": lambda dtype=torch.float64: banded(9, 1, dtype=dtype),
    "tridiagonal nonsymmetric": lambda dtype=torch.float64: banded(9, 1, symmetric=False, dtype=dtype),
    "tridiagonal shuffled": lambda dtype=torch.float64: banded(16, 1, order=shuffled(16), dtype=dtype),
    "one by one": lambda dtype=torch.float64: banded(1, 1, dtype=dtype),
    "two by two": lambda dtype=torch.float64: banded(2, 1, dtype=dtype),
    "bandwidth 2": lambda dtype=torch.float64: banded(13, 2, dtype=dtype),
    "bandwidth 3, nonsymmetric, shuffled": lambda dtype=torch.float64: banded(
        20, 3, symmetric=False, order=shuffled(20), dtype=dtype
    ),
    "bandwidth beyond the size": lambda dtype=torch.float64: banded(3, 4, dtype=dtype),
    "long": lambda dtype=torch.float64: banded(200, 1, dtype=dtype),
    "blocks": lambda dtype=torch.float64: blocks(4, 3, dtype=dtype),
    "blocks nonsymmetric": lambda dtype=torch.float64: blocks(4, 3, symmetric=False, dtype=dtype),
    "blocks shuffled": lambda dtype=torch.float64: blocks(5, 2, order=shuffled(10), dtype=dtype),
    "rank 1": lambda dtype=torch.float64: low_rank(8, 1, dtype=dtype),
    "rank 3": lambda dtype=torch.float64: low_rank(8, 3, dtype=dtype),
    "bordered": lambda dtype=torch.float64: bordered(5, 3, dtype=dtype),
    "bordered shuffled": lambda dtype=torch.float64: bordered(5, 3, order=shuffled(8), dtype=dtype),
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
class TestOperators:
    def test_products_are_those_of_the_dense_matrix(self, make):
        operator = make()
        dense = operator.dense()
        u = random(B, operator.size, 3, seed=1)
        torch.testing.assert_close(operator.matvec(u), dense @ u)
        torch.testing.assert_close(operator.rmatvec(u), dense.mT @ u)
        torch.testing.assert_close(operator.matvec(u[..., 0]), (dense @ u)[..., 0])
        torch.testing.assert_close(operator.rmatvec(u[..., 0]), (dense.mT @ u)[..., 0])

    def test_parts_are_those_of_the_dense_matrix(self, make):
        operator, items = make(), torch.tensor([2, 0])
        dense = operator.dense()
        assert dense.shape == (operator.batch, operator.size, operator.size)
        torch.testing.assert_close(operator.diagonal(), dense.diagonal(dim1=1, dim2=2))
        torch.testing.assert_close(operator.transpose().dense(), dense.mT)
        torch.testing.assert_close(operator.select(items).dense(), dense[items])
        if operator.symmetric:
            torch.testing.assert_close(dense, dense.mT)

    def test_wrong_vectors_are_refused(self, make):
        operator = make()
        with pytest.raises(InvalidInputError, match=rf"`{type(operator).__name__}.matvec\(u=...\)` must be a tensor"):
            operator.matvec(torch.zeros(B, operator.size + 1, dtype=torch.float64))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_specialist_agrees_with_lapack(self, make, dtype):
        operator = make(dtype)
        dense = operator.dense().double()
        solver = specialist(operator)
        state = solver.init(operator)
        assert choose(operator) == solver and solver.sound(state).all()
        tolerance = 1e-10 if dtype == torch.float64 else 2e-3
        for transposed in (False, True):
            if transposed:
                state, dense = solver.transpose(state), dense.mT
            for k in (1, 3):
                rhs = random(B, operator.size, k, seed=k, dtype=dtype)
                expected = torch.linalg.solve(dense, rhs.double())
                atol = tolerance * expected.abs().max().item()
                torch.testing.assert_close(solver.solve(state, rhs).double(), expected, rtol=tolerance, atol=atol)
                assert solver.solve(state, rhs[..., 0]).shape == (B, operator.size)

    def test_it_is_certified_without_falling_back(self, make):
        operator = make()
        answer = solve_certified(operator, random(B, operator.size))
        assert answer.certified.all() and set(answer.method) == {name_of(specialist(operator))}


@pytest.mark.parametrize("name", [
    "tridiagonal", "tridiagonal shuffled", "bandwidth 2", "blocks", "blocks shuffled", "rank 1", "rank 3",
])  # fmt: skip
def test_pinned_variables_have_rows_of_the_identity(name):
    H = OPERATORS[name]()
    free, unit = random(B, H.size, seed=3) > -0.5, random(B, 1, seed=4).exp()
    both = free[:, None] & free[..., None]
    expected = torch.where(both, H.dense(), torch.diag_embed((~free) * unit))
    torch.testing.assert_close(pin(H, free, unit).dense(), expected)
    expected = torch.where(both, H.dense(), torch.diag_embed((~free).double()))
    torch.testing.assert_close(pin(H, free, torch.ones((), dtype=torch.float64)).dense(), expected)


def test_a_part_of_low_rank_that_is_zero_is_read_as_zero():
    C = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=torch.float64)[:, None, None]
    H = LowRankMatrix(random(B, 9).exp(), random(B, 9, 1), C)
    declared = LowRank(1)
    products = (H.dense() @ declared.probes(9, H.d).mT).permute(2, 0, 1)
    torch.testing.assert_close(declared.operator(products, symmetric=True).dense(), H.dense())


class TestSparseRows:
    def test_products_are_those_of_the_dense_matrix(self):
        A = transport_rows(4)
        dense = A.dense()
        assert dense.shape == A.shape == (B, 7, 16)
        y, mu = random(B, 16, 2), random(B, 7, 2)
        for index in (..., (..., 0)):
            torch.testing.assert_close(A.matvec(y[index]), (dense @ y)[index])
            torch.testing.assert_close(A.rmatvec(mu[index]), (dense.mT @ mu)[index])
        weights = random(B, 16)
        torch.testing.assert_close(A.gram(weights).dense(), dense @ torch.diag_embed(weights) @ dense.mT)

    @pytest.mark.parametrize("index, kind", [
        ([[0, 0, 1, 2]], DiagonalMatrix),
        ([[0, 0, 1, 1], [2, 2, 2, 3]], BorderedMatrix),
        ([[0, 3, 3, 1]], BorderedMatrix),  # the last row is empty
        ([[0, 0, 1, 1], [1, 3, 3, 2]], DenseMatrix),  # a row of two colors
        ([[3, 3, 3, 3]], DenseMatrix),
    ])  # fmt: skip
    def test_rows_of_one_color_make_a_diagonal_block(self, index, kind):
        index = torch.tensor(index)
        values = torch.where(index < 3, random(B, *index.shape), 0)
        A, weights = SparseRows(values, index, 3), random(B, 4).exp()
        gram, dense = A.gram(weights), A.dense()
        assert isinstance(gram, kind)
        torch.testing.assert_close(gram.dense(), dense @ torch.diag_embed(weights) @ dense.mT)

    @pytest.mark.parametrize("seed", range(12))
    def test_rows_of_any_lengths_and_orders_are_those_of_the_dense_matrix(self, seed):
        generator = torch.Generator().manual_seed(seed)
        c, m, p = 1 + seed % 4, 20, 3 + seed
        owner = torch.randint(0, c, (p,), generator=generator)  # each row has one color, and so some have no variable
        index = torch.full((c, m), p)
        for k in range(c):
            rows = (owner == k).nonzero().flatten()
            if len(rows):
                kept = torch.rand(m, generator=generator) < 0.8
                chosen = rows[torch.randint(0, len(rows), (m,), generator=generator)]
                index[k] = torch.where(kept, chosen if seed % 3 else chosen.sort().values, p)
        A = SparseRows(random(B, c, m, seed=seed) * (index < p), index, p)
        dense, weights, y, mu = A.dense(), random(B, m).exp(), random(B, m, 2), random(B, p, 2)
        for part in (..., (..., 0)):
            torch.testing.assert_close(A.matvec(y[part]), (dense @ y)[part])
            torch.testing.assert_close(A.rmatvec(mu[part]), (dense.mT @ mu)[part])
        torch.testing.assert_close(A.gram(weights).dense(), dense @ torch.diag_embed(weights) @ dense.mT)
        torch.testing.assert_close(A.size(), dense.abs().amax((1, 2)))
        one = SparseRows(A.values[:1].expand(B, -1, -1), index, p)
        torch.testing.assert_close(one.size(), dense[:1].abs().amax((1, 2)).expand(B))

    @pytest.mark.parametrize("num_rows", [1, 3])
    def test_rows_without_variables_are_zero(self, num_rows):
        A = SparseRows(random(B, 0, 4), torch.zeros(0, 4, dtype=torch.int64), num_rows)
        assert torch.equal(A.matvec(random(B, 4)), torch.zeros(B, num_rows, dtype=torch.float64))
        assert torch.equal(A.rmatvec(random(B, num_rows)), torch.zeros(B, 4, dtype=torch.float64))

    def test_masks_are_those_of_the_dense_matrix(self):
        A = transport_rows(4)
        rows, columns = random(B, 7) > 0, random(B, 16) > 0
        expected = A.dense() * rows.unsqueeze(2) * columns.unsqueeze(1)
        torch.testing.assert_close(A.masked(rows, columns).dense(), expected)
        torch.testing.assert_close(A.select(torch.tensor([1])).dense(), A.dense()[1:2])

    @pytest.mark.parametrize("kind", ["diagonal", "tridiagonal"])
    def test_a_saddle_takes_them(self, kind):
        A = transport_rows(4)
        H = DiagonalMatrix(random(B, 16).exp()) if kind == "diagonal" else banded(16, 1)
        active = torch.ones(B, 7, dtype=torch.bool)
        active[1, 2] = False
        K, dense = Saddle(H, A, active), Saddle(H, A.dense(), active)
        torch.testing.assert_close(K.dense(), dense.dense())
        u = random(B, K.size, 2)
        torch.testing.assert_close(K.matvec(u), dense.matvec(u))
        answer = solve_certified(K, u)
        assert set(answer.method) == {"schur"} and answer.certified.all()
        torch.testing.assert_close(answer.solution, torch.linalg.solve(dense.dense(), u))
        torch.testing.assert_close(K.select(torch.tensor([1])).dense(), dense.dense()[1:2])


# What a Schur complement eliminates has to be symmetric.
SYMMETRIC = {name: make for name, make in OPERATORS.items() if make().symmetric}


@pytest.mark.parametrize("make", SYMMETRIC.values(), ids=SYMMETRIC)
@pytest.mark.parametrize("redundant", [False, True])
def test_it_may_be_the_block_of_a_saddle(make, redundant):
    H = make()
    A = random(B, 1, H.size, seed=4)
    if redundant:
        A = torch.cat([A, 2 * A], 1)
    K = Saddle(H, A)
    rhs = random(B, K.size, 2)
    rhs[:, H.size + 1 :] = 2 * rhs[:, H.size : H.size + 1]
    answer = solve_certified(K, rhs, linear=SchurComplement(redundant=redundant))
    assert set(answer.method) == {"schur"} and answer.certified.all()
    dense = torch.linalg.pinv(K.dense(), hermitian=True)
    torch.testing.assert_close(answer.solution, dense @ rhs, rtol=1e-6, atol=1e-7)


def test_redundant_rows_that_cannot_be_formed_are_eliminated_all_the_same(monkeypatch):
    monkeypatch.setattr("torchddn.linear.certificate._DENSE_NUMBERS", 0)
    n = 5
    place = torch.arange(n * n)
    A = SparseRows(torch.ones(B, 2, n * n, dtype=torch.float64), torch.stack([place // n, n + place % n]), 2 * n)
    K = Saddle(DiagonalMatrix(random(B, n * n).exp()), A)
    rhs = K.matvec(random(B, K.size))
    answer = solve_certified(K, rhs)
    assert answer.certified.all() and set(answer.method) == {"schur"}
    torch.testing.assert_close(K.matvec(answer.solution), rhs)


def test_the_last_product_of_a_certificate_is_that_of_the_answer():
    K, seen = banded(9, 1), []

    def apply(u):
        seen.append(u)
        return K.matvec(u)

    answer = solve_certified(K, random(B, 9), apply=apply)
    assert len(seen) == 1 and seen[0] is answer.solution


def test_a_matrix_is_made_again_once_before_anything_else_is_tried():
    K, stale, made = banded(9, 1), banded(9, 1, seed=5), []

    def again():
        made.append(K)
        return K

    rhs = random(B, 9)
    answer = solve_certified(stale, rhs, apply=K, again=again)
    assert made == [K] and answer.certified.all() and set(answer.method) == {"banded"}
    torch.testing.assert_close(answer.solution, solve_certified(K, rhs, again=again).solution)
    assert made == [K]
    dense = solve_certified(stale, rhs, apply=K, again=lambda: None)
    assert dense.certified.all() and set(dense.method) == {"lu"}


def test_a_banded_saddle_is_eliminated_although_its_diagonal_has_zeros():
    # min t' t-like rows on a chain: H has zeros, K is regular, and places alternate between y and multipliers.
    m, p = 6, 5
    H = torch.diag(torch.tensor([1.0, 0, 2, 0, 1, 0], dtype=torch.float64))
    A = torch.zeros(p, m, dtype=torch.float64)
    for i in range(p):
        A[i, i], A[i, i + 1] = 1.0, -2.0
    dense = torch.zeros(m + p, m + p, dtype=torch.float64)
    dense[:m, :m], dense[m:, :m], dense[:m, m:] = H, A, A.mT
    order = torch.stack([torch.arange(m), torch.arange(m) + m], 1).flatten()[: m + p]
    ordered = dense[order[:, None], order]
    band = torch.zeros(1, 7, m + p, dtype=torch.float64)
    for k in range(-3, 4):
        diagonal = ordered.diagonal(k)
        band[0, 3 + k, max(0, -k) : max(0, -k) + len(diagonal)] = diagonal
    K = BandedMatrix(band, symmetric=True, order=order, primal_size=m)
    torch.testing.assert_close(K.dense()[0], dense)
    rhs = random(1, m + p)
    answer = solve_certified(K, rhs)
    assert set(answer.method) == {"banded"} and answer.certified.all()
    torch.testing.assert_close(answer.solution[0], torch.linalg.solve(dense, rhs[0]), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("bandwidth", [1, 2])
def test_a_singular_banded_item_is_not_sound_and_harms_no_other(size, bandwidth):
    # Chains without an anchor: the sum of the variables is free.
    K = banded(size, bandwidth)
    band = K.band.clone()
    band[1] = -band[1].abs()
    band[1, bandwidth] = 0
    band[1, bandwidth] = -band[1].sum(0)
    K = BandedMatrix(band, symmetric=True)
    solver = CyclicReduction()
    assert solver.sound(solver.init(K)).tolist() == [True, False, True, True]
    rhs = random(B, size)
    answer = solve_certified(K, rhs)
    assert answer.degenerate.tolist() == [False, True, False, False]
    expected = torch.linalg.pinv(K.dense(), hermitian=True, rtol=1e-10) @ rhs.unsqueeze(-1)
    torch.testing.assert_close(answer.solution.unsqueeze(-1), expected)


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_items_are_strangers(make):
    operator = make()
    rhs = random(B, operator.size)
    together = solve_certified(operator, rhs).solution
    for i in range(B):
        item = torch.tensor([i])
        alone = solve_certified(operator.select(item), rhs[item]).solution
        torch.testing.assert_close(alone[0], together[i])


def test_a_nan_stays_in_its_item():
    K = banded(9, 1)
    band = K.band.clone()
    band[2] = torch.nan
    answer = solve_certified(BandedMatrix(band, symmetric=True), random(B, 9))
    assert answer.certified.tolist() == [True, True, False, True]
    assert answer.solution.isfinite().all(1).tolist() == [True, True, False, True]


WRONG = {
    r"`BandedMatrix\(band=...\)` must be shaped \(B, 2 w \+ 1, s\) with w, s >= 1, got \(1, 2, 3\)": lambda: (
        BandedMatrix(random(1, 2, 3))
    ),
    r"`BandedMatrix\(order=...\)` must be an int64 tensor \(3,\), a permutation, or None, got 3": lambda: BandedMatrix(
        random(1, 3, 3), order=3
    ),
    r"`BandedMatrix\(symmetric=...\)` must be True or False": lambda: BandedMatrix(random(1, 3, 3), symmetric=1),
    r"`BandedMatrix\(primal_size=...\)` must be an integer from 1 to 3, got 4": lambda: BandedMatrix(
        random(1, 3, 3), primal_size=4
    ),
    r"`BlockDiagonalMatrix\(blocks=...\)` must have square items": lambda: BlockDiagonalMatrix(random(1, 1, 2, 3)),
    r"`LowRankMatrix\(U=...\)` must be shaped": lambda: LowRankMatrix(random(1, 3), random(1, 3, 1), random(1, 2, 2)),
    r"`SparseRows\(index=...\)` must be an int64 tensor \(c, m\) = \(2, 3\)": lambda: SparseRows(
        random(1, 2, 3), torch.zeros(3, dtype=torch.int64), 1
    ),
    r"`SparseRows\(num_rows=...\)` must be an integer of at least 0": lambda: SparseRows(
        random(1, 1, 3), torch.zeros(1, 3, dtype=torch.int64), -1
    ),
    r"`SchurComplement\(redundant=...\)` must be True or False": lambda: SchurComplement(redundant=1),
    r"`CyclicReduction.init\(operator=...\)` must be BandedMatrix": lambda: CyclicReduction().init(low_rank(3, 1)),
    r"`Blockwise.init\(operator=...\)` must be BlockDiagonalMatrix": lambda: Blockwise().init(low_rank(3, 1)),
    r"`BorderedMatrix\(C=...\)` must be shaped \(B, b, a\), b >= 1": lambda: BorderedMatrix(
        random(1, 3), random(1, 2, 2), random(1, 2, 2)
    ),
    r"`Bordered.init\(operator=...\)` must be BorderedMatrix": lambda: Bordered().init(low_rank(3, 1)),
    r"`Woodbury.init\(operator=...\)` must be LowRankMatrix": lambda: Woodbury().init(banded(3, 1)),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_raises_at_the_door(message):
    with pytest.raises(InvalidInputError, match=message):
        WRONG[message]()
