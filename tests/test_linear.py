"""Operators and direct solvers against dense references."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchddn.errors import InvalidInputError
from torchddn.linear import (
    LU,
    Cholesky,
    DenseMatrix,
    DiagonalMatrix,
    Elementwise,
    LeastSquares,
    MatrixFree,
    Operator,
    Saddle,
    SchurComplement,
    Solver,
    direct,
    equilibrate,
)

B, M, P = 5, 6, 3
DTYPES = (torch.float64, torch.float32)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive_definite(batch=B, size=M, seed=0, dtype=torch.float64):
    factor = random(batch, size, size, seed=seed)
    return (factor @ factor.mT + torch.eye(size)).to(dtype)


def orthogonal(batch, size, seed=0):
    return torch.linalg.qr(random(batch, size, size, seed=seed))[0]


def of_rank(values, batch=B, seed=0):
    """Symmetric matrices with the given eigenvalues."""
    basis = orthogonal(batch, len(values), seed)
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.mT


def matrix_free(matrix, symmetric=False, accepts_columns=False):
    def product(matrix):
        return lambda u: matrix @ u if u.ndim == 3 else (matrix @ u.unsqueeze(-1)).squeeze(-1)

    return MatrixFree(
        product(matrix),
        None if symmetric else product(matrix.mT),
        batch=matrix.shape[0],
        size=matrix.shape[1],
        dtype=matrix.dtype,
        symmetric=symmetric,
        accepts_columns=accepts_columns,
    )


OPERATORS = {
    "dense": DenseMatrix(random(B, M, M)),
    "dense symmetric": DenseMatrix(positive_definite(), symmetric=True),
    "diagonal": DiagonalMatrix(random(B, M)),
    "matrix-free": matrix_free(random(B, M, M)),
    "matrix-free symmetric": matrix_free(positive_definite(), symmetric=True),
    "matrix-free columns": matrix_free(random(B, M, M), accepts_columns=True),
    "saddle": Saddle(positive_definite(), random(B, P, M)),
    "saddle diagonal": Saddle(DiagonalMatrix(random(B, M).exp()), random(B, P, M)),
    "saddle nonsymmetric": Saddle(DenseMatrix(random(B, M, M)), random(B, P, M)),
    "saddle active": Saddle(positive_definite(), random(B, P, M), random(B, P, seed=3) > 0),
    "saddle without rows": Saddle(positive_definite(), random(B, 0, M)),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
class TestOperators:
    def test_products_are_those_of_the_dense_matrix(self, operator):
        dense = operator.dense()
        for columns in (1, 3):
            u = random(B, operator.size, columns, seed=1)
            torch.testing.assert_close(operator.matvec(u), dense @ u)
            torch.testing.assert_close(operator.rmatvec(u), dense.mT @ u)
            torch.testing.assert_close(operator.matvec(u[..., 0]), (dense @ u)[..., 0])
            torch.testing.assert_close(operator.rmatvec(u[..., 0]), (dense.mT @ u)[..., 0])

    def test_transpose_is_that_of_the_dense_matrix(self, operator):
        transposed = operator.transpose()
        torch.testing.assert_close(transposed.dense(), operator.dense().mT)
        torch.testing.assert_close(transposed.transpose().dense(), operator.dense())
        assert transposed.symmetric == operator.symmetric
        assert transposed.primal_size == operator.primal_size

    def test_selected_items_are_those_items(self, operator):
        items = torch.tensor([3, 0])
        selected = operator.select(items)
        assert (selected.batch, selected.size, selected.primal_size) == (2, operator.size, operator.primal_size)
        torch.testing.assert_close(selected.dense(), operator.dense()[items])
        u = random(2, operator.size, 2)
        torch.testing.assert_close(selected.matvec(u), operator.dense()[items] @ u)
        torch.testing.assert_close(selected.rmatvec(u), operator.dense()[items].mT @ u)

    def test_description_matches_the_matrix(self, operator):
        dense = operator.dense()
        assert isinstance(operator, Operator)
        assert dense.shape == (operator.batch, operator.size, operator.size)
        assert (dense.dtype, dense.device) == (operator.dtype, operator.device)
        if operator.symmetric:
            torch.testing.assert_close(dense, dense.mT)

    def test_wrong_vectors_are_refused(self, operator):
        name = type(operator).__name__
        for call in ("matvec", "rmatvec"):
            apply = getattr(operator, call)
            with pytest.raises(InvalidInputError, match=rf"`{name}.{call}\(u=...\)` must be a tensor \(B, s\)"):
                apply(torch.zeros(B, operator.size + 1, dtype=torch.float64))
            with pytest.raises(InvalidInputError, match=rf"`{name}.{call}\(u=...\)` .*, got 3\.0"):
                apply(3.0)
            with pytest.raises(InvalidInputError, match=rf"`{name}.{call}\(u=...\)` must have the operator's dtype"):
                apply(torch.zeros(B, operator.size, dtype=torch.float32))


def test_inactive_rows_of_a_saddle_fix_their_multiplier_and_nothing_else():
    H, A = positive_definite(), random(B, P, M)
    active = torch.ones(B, P, dtype=torch.bool)
    active[0, 1] = active[2, 0] = active[2, 2] = active[4] = False
    v = torch.cat([random(B, M), torch.zeros(B, P, dtype=torch.float64)], dim=1)
    solver = LU()
    u = solver.solve(solver.init(Saddle(H, A, active)), v)
    for i in range(B):
        reduced = Saddle(H[i : i + 1], A[i : i + 1, active[i]])
        expected = torch.linalg.solve(reduced.dense()[0], v[i, : reduced.size])
        torch.testing.assert_close(u[i, :M], expected[:M])
        torch.testing.assert_close(u[i, M:][active[i]], expected[M:])
        assert (u[i, M:][~active[i]] == 0).all()


def test_large_matrix_free_operators_are_materialized_in_chunks():
    matrix = random(2, 150, 150)
    widths = []

    def product(u):
        widths.append(u.shape[2])
        return matrix @ u

    operator = MatrixFree(product, batch=2, size=150, dtype=torch.float64, accepts_columns=True)
    torch.testing.assert_close(operator.dense(), matrix)
    assert len(widths) > 1 and sum(widths) == 150


WRONG_OPERATORS = {
    r"`DenseMatrix\(matrix=...\)` must be a tensor \(B, s, s\), got list": lambda: DenseMatrix([[1.0]]),
    r"`DenseMatrix\(matrix=...\)` must be a tensor \(B, s, s\), got torch.float64 of shape \(2, 2\)": lambda: (
        DenseMatrix(random(2, 2))
    ),
    r"`DenseMatrix\(matrix=...\)` must be torch.float32 or torch.float64, got torch.int64": lambda: DenseMatrix(
        torch.ones(1, 2, 2, dtype=torch.int64)
    ),
    r"`DenseMatrix\(matrix=...\)` must have square items.*got \(1, 2, 3\)": lambda: DenseMatrix(random(1, 2, 3)),
    r"`DenseMatrix\(matrix=...\)` must have square items.*got \(1, 0, 0\)": lambda: DenseMatrix(random(1, 0, 0)),
    r"`DenseMatrix\(symmetric=...\)` must be True or False, got 'yes'": lambda: DenseMatrix(
        random(1, 2, 2), symmetric="yes"
    ),
    r"`DenseMatrix\(primal_size=...\)` must be an integer from 1 to 2, got 3": lambda: DenseMatrix(
        random(1, 2, 2), primal_size=3
    ),
    r"`DiagonalMatrix\(d=...\)` must be a tensor \(B, s\), got None": lambda: DiagonalMatrix(None),
    r"`DiagonalMatrix\(d=...\)` must be torch.float32 or torch.float64, got torch.float16": lambda: DiagonalMatrix(
        torch.ones(1, 2, dtype=torch.float16)
    ),
    r"`DiagonalMatrix\(d=...\)` must be shaped \(B, s\) with s >= 1, got \(3, 0\)": lambda: DiagonalMatrix(
        random(3, 0)
    ),
    r"`MatrixFree\(matvec=...\)` must be a function, got int": lambda: MatrixFree(3, batch=1, size=1),
    r"`MatrixFree\(rmatvec=...\)` must be a function or None, got int": lambda: MatrixFree(abs, 3, batch=1, size=1),
    r"`MatrixFree\(batch=...\)` must be an integer of at least 0, got -1": lambda: MatrixFree(abs, batch=-1, size=1),
    r"`MatrixFree\(size=...\)` must be an integer of at least 1, got 0": lambda: MatrixFree(abs, batch=1, size=0),
    r"`MatrixFree\(dtype=...\)` must be torch.float32 or torch.float64": lambda: MatrixFree(
        abs, batch=1, size=1, dtype=torch.float16
    ),
    r"`MatrixFree\(symmetric=...\)` must be True or False, got 1": lambda: MatrixFree(
        abs, batch=1, size=1, symmetric=1
    ),
    r"`MatrixFree\(accepts_columns=...\)` must be True or False": lambda: MatrixFree(
        abs, batch=1, size=1, accepts_columns=None
    ),
    r"`MatrixFree\(primal_size=...\)` must be an integer from 1 to 2, got 3": lambda: MatrixFree(
        abs, batch=1, size=2, primal_size=3
    ),
    r"`MatrixFree\(matvec=...\)` must return the shape it is given, got \(1, 1, 2\) for \(1, 2, 2\)": lambda: (
        MatrixFree(lambda u: u[:, :1], batch=1, size=2).dense()
    ),
    r"`MatrixFree.rmatvec` needs the product with the transpose": lambda: MatrixFree(abs, batch=1, size=2).rmatvec(
        torch.ones(1, 2)
    ),
    r"`MatrixFree.transpose` needs `MatrixFree\(rmatvec=...\)`": lambda: MatrixFree(abs, batch=1, size=2).transpose(),
    r"`Saddle\(H=...\)` must be a tensor \(B, m, m\)": lambda: Saddle(random(2, 2), random(1, 1, 2)),
    r"`Saddle\(H=...\)` must be an Operator": lambda: Saddle(3.0, random(1, 1, 2)),
    r"`Saddle\(A=...\)` must be a tensor \(B, p, m\)": lambda: Saddle(random(1, 2, 2), random(1, 2)),
    r"`Saddle\(A=...\)` must be shaped \(B, p, m\) = \(1, p, 2\) to match H": lambda: Saddle(
        random(1, 2, 2), random(1, 1, 3)
    ),
    r"`Saddle\(A=...\)` must have the dtype and device of H": lambda: Saddle(
        random(1, 2, 2), random(1, 1, 2, dtype=torch.float32)
    ),
    r"`Saddle\(active=...\)` must be a boolean tensor \(B, p\) = \(1, 1\)": lambda: Saddle(
        random(1, 2, 2), random(1, 1, 2), torch.ones(1, 2, dtype=torch.bool)
    ),
    r"`LeastSquares\(rcond=...\)` must be a number in \[0, 1\), got 1.5": lambda: LeastSquares(rcond=1.5),
    r"`LeastSquares\(primal_size=...\)` must be an integer of at least 1, got 0": lambda: LeastSquares(primal_size=0),
    r"`LeastSquares\(primal_size=...\)` must be an integer from 1 to 2, got 3": lambda: LeastSquares(
        primal_size=3
    ).init(DenseMatrix(random(1, 2, 2))),
    r"`Elementwise\(primal_size=...\)` must be an integer of at least 1, got 0": lambda: Elementwise(primal_size=0),
    r"`Elementwise.init\(operator=...\)` must be DiagonalMatrix, got DenseMatrix": lambda: Elementwise().init(
        DenseMatrix(random(1, 2, 2))
    ),
    r"`SchurComplement.init\(operator=...\)` must be Saddle with a symmetric H, got DenseMatrix": lambda: (
        SchurComplement().init(DenseMatrix(random(1, 2, 2)))
    ),
    r"`equilibrate\(matrix=...\)` must be a tensor \(B, s, s\)": lambda: equilibrate(3.0),
    r"`equilibrate\(primal_size=...\)` must be an integer from 1 to 2, got 0": lambda: equilibrate(
        random(1, 2, 2), True, 0
    ),
    r"`equilibrate\(symmetric=...\)` must be True or False": lambda: equilibrate(random(1, 2, 2), symmetric=2),
}


@pytest.mark.parametrize("message", WRONG_OPERATORS)
def test_a_wrong_argument_raises_at_the_door(message):
    with pytest.raises(InvalidInputError, match=message):
        WRONG_OPERATORS[message]()


@pytest.mark.parametrize("solver", [Cholesky(), LU(), Elementwise(), SchurComplement(), LeastSquares()], ids=str)
def test_solvers_refuse_what_is_no_operator(solver):
    assert isinstance(solver, Solver)
    name = type(solver).__name__
    with pytest.raises(InvalidInputError, match=rf"`{name}.init\(operator=...\)` must be an Operator .*got Tensor"):
        solver.init(random(1, 2, 2))


@pytest.mark.parametrize("solver", [Cholesky(), LU(), Elementwise(), SchurComplement(), LeastSquares()], ids=str)
def test_solvers_refuse_wrong_right_hand_sides(solver):
    operator = {
        "Elementwise": DiagonalMatrix(random(B, M + P).exp()),
        "SchurComplement": Saddle(positive_definite(), random(B, P, M)),
    }.get(type(solver).__name__, DenseMatrix(positive_definite(size=M + P), symmetric=True))
    state = solver.init(operator)
    name = type(solver).__name__
    for rhs in (3.0, random(B, M), random(B + 1, M + P), random(B, M + P, 1, 1)):
        with pytest.raises(InvalidInputError, match=rf"`{name}.solve\(rhs=...\)` must be a tensor \(B, s\)"):
            solver.solve(state, rhs)


SYSTEMS = {
    "cholesky": (Cholesky(), lambda dtype: DenseMatrix(positive_definite(dtype=dtype), symmetric=True)),
    "lu": (LU(), lambda dtype: DenseMatrix(random(B, M, M, dtype=dtype))),
    "lu symmetric": (LU(), lambda dtype: DenseMatrix(of_rank([3, 2, 1, -1, -2, -3]).to(dtype), symmetric=True)),
    "lu saddle": (LU(), lambda dtype: Saddle(positive_definite(dtype=dtype), random(B, P, M, dtype=dtype))),
    "lu saddle with H = 0": (
        LU(),
        lambda dtype: Saddle(torch.zeros(B, M, M, dtype=dtype), random(B, M, M, dtype=dtype)),
    ),
    "schur": (SchurComplement(), lambda dtype: Saddle(positive_definite(dtype=dtype), random(B, P, M, dtype=dtype))),
    "schur diagonal": (
        SchurComplement(),
        lambda dtype: Saddle(DiagonalMatrix(random(B, M, dtype=dtype).exp()), random(B, P, M, dtype=dtype)),
    ),
    "schur active": (
        SchurComplement(),
        lambda dtype: Saddle(positive_definite(dtype=dtype), random(B, P, M, dtype=dtype), random(B, P, seed=5) > 0),
    ),
    "schur without rows": (
        SchurComplement(),
        lambda dtype: Saddle(positive_definite(dtype=dtype), random(B, 0, M, dtype=dtype)),
    ),
    "elementwise": (Elementwise(), lambda dtype: DiagonalMatrix(random(B, M, dtype=dtype))),
    "least squares": (LeastSquares(), lambda dtype: DenseMatrix(random(B, M, M, dtype=dtype))),
    "least squares symmetric": (
        LeastSquares(),
        lambda dtype: DenseMatrix(of_rank([3, 2, 1, -1, -2, -3]).to(dtype), symmetric=True),
    ),
    "least squares saddle": (
        LeastSquares(),
        lambda dtype: Saddle(positive_definite(dtype=dtype), random(B, P, M, dtype=dtype)),
    ),
    "lu one by one": (LU(), lambda dtype: DenseMatrix(random(B, 1, 1, dtype=dtype))),
    "cholesky one by one": (Cholesky(), lambda dtype: DenseMatrix(random(B, 1, 1, dtype=dtype).exp(), symmetric=True)),
    "least squares one by one": (
        LeastSquares(),
        lambda dtype: DenseMatrix(random(B, 1, 1, dtype=dtype), symmetric=True),
    ),
    "lu matrix-free": (LU(), lambda dtype: matrix_free(random(B, M, M, dtype=dtype))),
    "lu above the size of batched LU": (LU(), lambda dtype: DenseMatrix(random(3, 140, 140, dtype=dtype))),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("solver, make", SYSTEMS.values(), ids=SYSTEMS)
class TestRegularSystems:
    def test_agrees_with_lapack(self, solver, make, dtype):
        operator = make(dtype)
        dense = operator.dense().double().numpy()
        state = solver.init(operator)
        assert solver.sound(state).all()
        for transposed in (False, True):
            if transposed:
                state, dense = solver.transpose(state), dense.swapaxes(1, 2)
            for k in (1, 4):
                rhs = random(operator.batch, operator.size, k, seed=k, dtype=dtype)
                u = solver.solve(state, rhs)
                expected = np.stack(
                    [scipy.linalg.solve(a, b) for a, b in zip(dense, rhs.double().numpy(), strict=True)]
                )
                size = np.abs(expected).max(axis=(1, 2), keepdims=True) * np.linalg.cond(dense)[:, None, None]
                assert u.dtype == dtype and u.shape == rhs.shape
                assert (np.abs(u.double().numpy() - expected) / size).max() < 100 * torch.finfo(dtype).eps
                one = solver.solve(state, rhs[..., 0])
                atol = 1e4 * torch.finfo(dtype).eps * u.abs().max().item()
                torch.testing.assert_close(one, u[..., 0], rtol=0, atol=atol)

    def test_items_alone_get_the_same_answer(self, solver, make, dtype):
        operator = make(dtype)
        rhs = random(operator.batch, operator.size, seed=7, dtype=dtype)
        together = solver.solve(solver.init(operator), rhs)
        for i in range(operator.batch):
            item = torch.tensor([i])
            alone = solver.solve(solver.init(operator.select(item)), rhs[item])
            torch.testing.assert_close(alone, together[item], rtol=1e3 * torch.finfo(dtype).eps, atol=1e-5)

    def test_empty_batches_are_solved(self, solver, make, dtype):
        operator = make(dtype).select(torch.zeros(0, dtype=torch.int64))
        state = solver.init(operator)
        assert solver.solve(state, torch.zeros(0, operator.size, dtype=dtype)).shape == (0, operator.size)
        assert solver.solve(solver.transpose(state), torch.zeros(0, operator.size, 2, dtype=dtype)).shape[0] == 0
        assert solver.sound(state).shape == (0,)

    def test_poisoned_item_harms_no_other(self, solver, make, dtype):
        operator = make(dtype)
        clean = solver.solve(solver.init(operator), torch.ones(operator.batch, operator.size, dtype=dtype))
        for poison in (torch.nan, torch.inf):
            if isinstance(operator, Saddle):
                H = operator.H.dense().clone()
                H[1, 0, 0] = poison
                H = DiagonalMatrix(H.diagonal(dim1=1, dim2=2)) if isinstance(operator.H, DiagonalMatrix) else H
                poisoned = Saddle(H, operator.A, operator.active)
            elif isinstance(operator, DiagonalMatrix):
                d = operator.d.clone()
                d[1, 0] = poison
                poisoned = DiagonalMatrix(d)
            else:
                matrix = operator.dense().clone()
                matrix[1, 0, 0] = poison
                poisoned = DenseMatrix(matrix, operator.symmetric)
            state = solver.init(poisoned)
            u = solver.solve(state, torch.ones(operator.batch, operator.size, dtype=dtype))
            sound = solver.sound(state)
            others = torch.arange(operator.batch) != 1
            assert not sound[1] and sound[others].all()
            torch.testing.assert_close(u[others], clean[others])


@pytest.mark.parametrize("solver, make", SYSTEMS.values(), ids=SYSTEMS)
def test_scaling_rows_and_columns_does_not_harm_soundness(solver, make):
    operator = make(torch.float64)
    scale = 10 ** (8 * random(operator.batch, operator.size, seed=2).clamp(-1, 1))
    if isinstance(operator, DiagonalMatrix):
        scaled = DiagonalMatrix(operator.d * scale.square())
    elif isinstance(operator, Saddle):
        y, mu = scale[:, : operator.primal_size], scale[:, operator.primal_size :]
        d = y.unsqueeze(2) * y.unsqueeze(1)
        if isinstance(operator.H, DiagonalMatrix):
            H = DiagonalMatrix(operator.H.d * y.square())
        else:
            H = DenseMatrix(operator.H.dense() * d, operator.H.symmetric)
        if operator.active is not None:
            mu = torch.where(operator.active, mu, 1)
            scale = torch.cat([y, mu], dim=1)
        scaled = Saddle(H, operator.A * mu.unsqueeze(2) * y.unsqueeze(1), operator.active)
    else:
        scaled = DenseMatrix(operator.dense() * scale.unsqueeze(2) * scale.unsqueeze(1), operator.symmetric)
    state = solver.init(scaled)
    assert solver.sound(state).all()
    if hasattr(state, "rank"):
        assert (state.rank == operator.size).all()
    rhs = random(operator.batch, operator.size)
    u = solver.solve(state, rhs)
    expected = torch.linalg.solve(operator.dense(), rhs / scale) / scale
    torch.testing.assert_close(u * scale, expected * scale, rtol=1e-8, atol=1e-8 * (rhs / scale).abs().max().item())


def test_large_batches_of_lu_never_go_to_lapack_together(monkeypatch):
    # torch 2.13 hangs there with several threads (torch-notes.md, trap 4).
    for name in ("lu_factor_ex", "lu_solve"):
        original = getattr(torch.linalg, name)

        def watched(matrix, *args, original=original, **kwargs):
            assert matrix.ndim == 2 or matrix.shape[-1] <= 128 or matrix.shape[0] < 2
            return original(matrix, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, watched)
    for size in (100, 200):
        operator = DenseMatrix(random(4, size, size))
        rhs = random(4, size, 2)
        u = LU().solve(LU().init(operator), rhs)
        torch.testing.assert_close(operator.matvec(u), rhs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [Cholesky(), LU(), LeastSquares()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 5, 10, 40])
def test_singular_matrices_are_not_sound_or_have_their_rank(solver, dtype, size):
    rank = size // 2
    matrix = of_rank([1.0 + i for i in range(rank)] + [0.0] * (size - rank), batch=30).to(dtype)
    state = solver.init(DenseMatrix(matrix, symmetric=True))
    if isinstance(solver, LeastSquares):
        assert (state.rank == rank).all()
        assert state.degenerate.all()
    else:
        assert not solver.sound(state).any()


@pytest.mark.parametrize("seed", range(5))
def test_singular_products_of_rectangular_factors_are_seen(seed):
    tall = random(50, 12, 9, seed=seed)
    for operator in (
        DenseMatrix(tall @ tall.mT, symmetric=True),
        DenseMatrix(tall @ random(50, 9, 12, seed=seed + 10)),
    ):
        for solver in (LU(), *([Cholesky()] if operator.symmetric else [])):
            assert not solver.sound(solver.init(operator)).any()
        assert (LeastSquares().init(operator).rank == 9).all()


def test_ill_conditioned_but_regular_matrices_are_sound():
    matrix = of_rank([1.0, 1e-3, 1e-6, 1e-9, 1e-12])
    for solver in (LU(), Cholesky()):
        assert solver.sound(solver.init(DenseMatrix(matrix, symmetric=True))).all()
    assert (LeastSquares().init(DenseMatrix(matrix, symmetric=True)).rank == 5).all()


def test_rcond_moves_the_rank():
    operator = DenseMatrix(of_rank([1.0, 0.5, 1e-5]), symmetric=True)
    assert (LeastSquares().init(operator).rank == 3).all()
    assert (LeastSquares(rcond=1e-3).init(operator).rank == 2).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squares_is_the_pseudo_inverse(symmetric):
    matrix = of_rank([3.0, 2.0, -1.0, 0.0, 0.0]) if symmetric else random(B, 5, 3) @ random(B, 3, 5, seed=1)
    operator = DenseMatrix(matrix, symmetric)
    rhs = random(B, 5, 4, seed=2)
    solver = LeastSquares()
    state = solver.init(operator)
    expected = torch.linalg.pinv(matrix, rtol=1e-10)
    torch.testing.assert_close(solver.solve(state, rhs), expected @ rhs)
    torch.testing.assert_close(solver.solve(solver.transpose(state), rhs), expected.mT @ rhs)
    torch.testing.assert_close(solver.project(state, rhs), matrix @ expected @ rhs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_minimum_norm_is_that_of_the_original_variables(symmetric):
    scale = torch.tensor([1e-3, 1e-2, 1.0, 1e2, 1e3], dtype=torch.float64)
    matrix = of_rank([3.0, 2.0, 1.0, 0.0, 0.0]) if symmetric else random(B, 5, 3) @ random(B, 3, 5, seed=1)
    matrix = matrix * scale[:, None] * scale
    solver = LeastSquares()
    state = solver.init(DenseMatrix(matrix, symmetric))
    assert (state.rank == 3).all()
    _, _, right = torch.linalg.svd(matrix / scale)
    null = torch.linalg.qr(right.mT[..., 3:] / scale[:, None])[0]
    u = solver.solve(state, (matrix @ random(B, 5, 1, seed=3)).squeeze(-1))
    parts = (null.mT @ u.unsqueeze(-1)).squeeze(-1)
    assert (parts.norm(dim=1) / u.norm(dim=1)).max() < 1e-8


def test_ranks_of_batch_mates_differ():
    matrices = torch.cat([of_rank([1.0, 2.0, 3.0, 4.0][:r] + [0.0] * (4 - r), batch=1, seed=r) for r in range(5)])
    rhs = random(5, 4, 2)
    solver = LeastSquares()
    state = solver.init(DenseMatrix(matrices, symmetric=True))
    assert state.rank.tolist() == [0, 1, 2, 3, 4]
    assert state.degenerate.tolist() == [True, True, True, True, False]
    torch.testing.assert_close(solver.solve(state, rhs), torch.linalg.pinv(matrices, rtol=1e-10) @ rhs)


def reduced(H, A):
    """``Z (Z^T H Z)^+ Z^T`` with Z an orthonormal basis of ``A y = 0``, item by item."""
    answers = []
    for h, a in zip(H.numpy(), A.numpy(), strict=True):
        Z = scipy.linalg.null_space(a, rcond=1e-10)
        answers.append(torch.from_numpy(Z @ scipy.linalg.pinv(Z.T @ h @ Z, rtol=1e-9) @ Z.T))
    return torch.stack(answers)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_singular_saddle_gives_the_shortest_y_in_any_units_of_the_constraints(unit):
    basis = orthogonal(B, M)
    H = basis @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ basis.mT
    A = (basis[:, :, :1] + basis[:, :, 3:4]).mT * unit
    v = torch.cat([random(B, M, 2), torch.zeros(B, 1, 2, dtype=torch.float64)], dim=1)
    solver = LeastSquares()
    state = solver.init(Saddle(H, A))
    u = solver.solve(state, v)
    assert state.degenerate.all() and (state.rank == M + 1 - 2).all()
    torch.testing.assert_close(u[:, :M], reduced(H, A) @ v[:, :M], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(A @ u[:, :M] / unit, torch.zeros(B, 1, 2, dtype=torch.float64))


def test_generalized_inverse_of_a_singular_saddle_is_symmetric():
    # Otherwise the gradient would not be the transpose of the forward derivative.
    basis = orthogonal(B, M)
    H = basis @ torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ basis.mT
    A = torch.cat([basis[:, :, 2:3].mT, basis[:, :, :2].mT + basis[:, :, 3:5].mT], dim=1)
    A = torch.cat([A, A[:, :1] - 3 * A[:, 1:2]], dim=1)
    operator = Saddle(H, A)
    solver = LeastSquares()
    state = solver.init(operator)
    inverse = solver.solve(state, torch.eye(operator.size, dtype=torch.float64).repeat(B, 1, 1))
    K = operator.dense()
    torch.testing.assert_close(inverse, inverse.mT)
    torch.testing.assert_close(K @ inverse @ K, K)
    torch.testing.assert_close(inverse @ K @ inverse, inverse)
    assert state.degenerate.all()


def test_redundant_rows_leave_y_unique_and_multipliers_shortest():
    H, A = positive_definite(), random(B, P, M)
    redundant = torch.cat([A, A[:, :1] - 2 * A[:, 1:2], A[:, :1]], dim=1)
    v = torch.cat([random(B, M), torch.zeros(B, P + 2, dtype=torch.float64)], dim=1)
    solver = LeastSquares()
    operator = Saddle(H, redundant)
    state = solver.init(operator)
    u = solver.solve(state, v)
    expected = torch.linalg.solve(Saddle(H, A).dense(), v[:, : M + P])
    assert (state.rank == M + P).all() and not state.degenerate.any()
    torch.testing.assert_close(u[:, :M], expected[:, :M])
    torch.testing.assert_close(u, (torch.linalg.pinv(operator.dense(), rtol=1e-10) @ v.unsqueeze(-1)).squeeze(-1))


def test_more_rows_than_variables_are_met_in_the_least_squares_sense():
    H, A = positive_definite(), random(B, M + 3, M)
    b = random(B, M + 3, 1, seed=4)
    v = torch.cat([torch.zeros(B, M, 1, dtype=torch.float64), b], dim=1)
    solver = LeastSquares()
    state = solver.init(Saddle(H, A))
    assert not state.degenerate.any() and (state.rank == 2 * M).all()
    torch.testing.assert_close(solver.solve(state, v)[:, :M], torch.linalg.pinv(A) @ b)


def test_primal_size_decides_what_is_degenerate():
    operator = DiagonalMatrix(torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 0.0]], dtype=torch.float64))
    dense = DenseMatrix(operator.dense(), symmetric=True)
    for kind, K in ((LeastSquares, dense), (Elementwise, operator)):
        assert kind().init(K).degenerate.tolist() == [True, True]
        assert kind(primal_size=2).init(K).degenerate.tolist() == [True, False]


def test_a_transposed_state_shares_the_factorization():
    operator = DenseMatrix(random(B, M, M))
    for solver in (LU(), LeastSquares()):
        state = solver.init(operator)
        transposed = solver.transpose(state)
        assert {id(t) for t in transposed} & {id(t) for t in state if isinstance(t, torch.Tensor)}
        twice = solver.transpose(transposed)
        rhs = random(B, M)
        torch.testing.assert_close(solver.solve(twice, rhs), solver.solve(state, rhs), rtol=0, atol=0)


def test_indefinite_matrices_have_no_cholesky_factor_and_spoil_no_other():
    matrix = positive_definite()
    matrix[2] = -matrix[2]
    state = Cholesky().init(DenseMatrix(matrix, symmetric=True))
    assert state.ok.tolist() == [True, True, False, True, True]
    assert Cholesky().sound(state).tolist() == [True, True, False, True, True]


def test_schur_complement_reports_what_it_cannot_do():
    H, A = positive_definite(), random(B, P, M)
    H[1] = -H[1]
    A[3, 1] = A[3, 0]
    solver = SchurComplement()
    assert solver.sound(solver.init(Saddle(H, A))).tolist() == [True, False, True, False, True]
    d = random(B, M).exp()
    d[0, 0] = 0
    assert solver.sound(solver.init(Saddle(DiagonalMatrix(d), random(B, P, M)))).tolist() == [False] + [True] * 4


@pytest.mark.parametrize("symmetric", [True, False])
def test_equilibrated_entries_are_about_one(symmetric):
    matrix = of_rank([3, 2, 1, -1, -2, -3]) if symmetric else random(B, M, M)
    scale = 10 ** (8 * random(B, M, seed=1).clamp(-1, 1))
    scaled = matrix * scale.unsqueeze(2) * scale.unsqueeze(1)
    row, col = equilibrate(scaled, symmetric)
    entries = (row.unsqueeze(2) * scaled * col.unsqueeze(1)).abs()
    assert ((entries.amax(2) > 0.1) & (entries.amax(2) < 4)).all()
    assert ((entries.amax(1) > 0.1) & (entries.amax(1) < 4)).all()
    for factor in (row, col):
        assert (factor.log2() == factor.log2().round()).all()
    if symmetric:
        assert torch.equal(row, col)


def test_equilibration_leaves_rows_of_zeros_alone():
    matrix = torch.zeros(1, 2, 2)
    matrix[0, 0, 0] = 1024
    row, _ = equilibrate(matrix, symmetric=True)
    assert row.tolist() == [[2**-5, 1]]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    exponents=st.lists(st.integers(-30, 30), min_size=M, max_size=M),
)
def test_powers_of_two_scale_the_answer_without_rounding(seed, exponents):
    scale = torch.tensor(exponents, dtype=torch.float64).exp2()
    matrix, rhs = positive_definite(1, seed=seed), random(1, M, seed=seed)
    scaled = matrix * scale[:, None] * scale
    solver = Cholesky()
    u = solver.solve(solver.init(DenseMatrix(matrix, symmetric=True)), rhs)
    u_scaled = solver.solve(solver.init(DenseMatrix(scaled, symmetric=True)), rhs * scale)
    # The equilibrating powers differ by the rounding of the diagonal's square root at most.
    torch.testing.assert_close(u_scaled * scale, u, rtol=1e-13, atol=1e-13)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(B)), kind=st.sampled_from(["lu", "least squares"]))
def test_permuting_the_batch_permutes_the_answer(seed, order, kind):
    operator = DenseMatrix(random(B, 4, 2, seed=seed) @ random(B, 2, 4, seed=seed + 1) + torch.eye(4) * (seed % 2))
    solver = LU() if kind == "lu" and seed % 2 else LeastSquares()
    rhs = random(B, 4, seed=seed + 2)
    items = torch.tensor(order)
    u = solver.solve(solver.init(operator), rhs)
    torch.testing.assert_close(solver.solve(solver.init(operator.select(items)), rhs[items]), u[items])


def test_states_are_a_few_matrices_at_most():
    size = 40
    operator = DenseMatrix(random(2, size, size) + random(2, size, size).mT, symmetric=True)
    for solver in (LU(), Cholesky(), LeastSquares()):
        state = solver.init(operator)
        numbers = {t.untyped_storage().data_ptr(): t.numel() for t in state if isinstance(t, torch.Tensor)}
        assert sum(numbers.values()) < 3 * 2 * size**2


def test_names_of_direct_are_public_in_the_package():
    import torchddn.linear

    assert set(direct.__all__) <= set(torchddn.linear.__all__)
