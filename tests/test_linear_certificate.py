"""The fall-back ladder: every rung is reached, and every answer is what its flags say."""

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchddn.linear
from torchddn.errors import InvalidInputError, SingularError
from torchddn.linear import (
    CG,
    GMRES,
    LU,
    MINRES,
    BandedMatrix,
    BlockDiagonalMatrix,
    BorderedMatrix,
    Certified,
    Cholesky,
    DenseMatrix,
    DiagonalMatrix,
    Elementwise,
    LeastSquares,
    LowRankMatrix,
    MatrixFree,
    Saddle,
    SchurComplement,
    auto,
    certificate,
    choose,
    default_rtol,
    get,
    jacobi,
    name_of,
    solve_certified,
)

B, M, P = 5, 6, 3
KRYLOV = ("cg", "minres", "gmres")
WORDS = ("cholesky", "lu", "schur", "diagonal", "banded", "blocks", "low_rank", "bordered", "least_squares", *KRYLOV)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive_definite(batch=B, size=M, seed=0):
    factor = random(batch, size, size, seed=seed)
    return factor @ factor.mT + torch.eye(size)


def with_eigenvalues(values, batch=B, seed=0):
    basis = torch.linalg.qr(random(batch, len(values), len(values), seed=seed))[0]
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.mT


def product(matrix):
    return lambda u: (matrix @ u.unsqueeze(-1)).squeeze(-1)


def multiply(matrix, u):
    return product(matrix)(u)


def relative_residual(matrix, u, v):
    return (multiply(matrix, u) - v).norm(dim=1) / v.norm(dim=1)


def assert_regular(answer, matrix, rhs, tolerance=1e-9):
    assert answer.certified.all() and not answer.singular.any() and not answer.degenerate.any()
    torch.testing.assert_close(answer.residual, relative_residual(matrix, answer.solution, rhs), rtol=0, atol=tolerance)
    expected = torch.linalg.solve(matrix, rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(answer.solution, expected, rtol=tolerance, atol=tolerance)


class TestFirstRung:
    """All is well: the chosen solver's answer is returned."""

    OPERATORS: ClassVar = {
        "cholesky": DenseMatrix(positive_definite(), symmetric=True),
        "lu": DenseMatrix(random(B, M, M)),
        "schur": Saddle(DiagonalMatrix(random(B, M).exp()), random(B, P, M)),
        "diagonal": DiagonalMatrix(random(B, M)),
    }

    @pytest.mark.parametrize("word", OPERATORS)
    def test_auto_chooses_and_certifies(self, word):
        operator = self.OPERATORS[word]
        rhs = random(B, operator.size)
        answer = solve_certified(operator, rhs)
        assert answer.method == (word,) * B and (answer.num_refinements == 0).all()
        assert_regular(answer, operator.dense(), rhs)
        assert (answer.residual < 1e-13).all()

    @pytest.mark.parametrize("word", WORDS)
    def test_a_word_is_obeyed(self, word):
        operator = {
            "schur": Saddle(positive_definite(), random(B, P, M)),
            "diagonal": DiagonalMatrix(random(B, M)),
            "banded": BandedMatrix(random(B, 3, M).abs() + 3 * torch.tensor([0.0, 1.0, 0.0]).unsqueeze(1)),
            "blocks": BlockDiagonalMatrix(random(B, 2, M // 2, M // 2)),
            "low_rank": LowRankMatrix(random(B, M).exp(), random(B, M, 2), torch.eye(2).double().expand(B, 2, 2)),
            "bordered": BorderedMatrix(
                1 + random(B, M).exp(), random(B, 2, M), 100 * torch.eye(2).double().expand(B, 2, 2)
            ),
        }.get(word, DenseMatrix(positive_definite(), symmetric=True))
        rhs = random(B, operator.size)
        for linear in (word, get(word)):
            answer = solve_certified(operator, rhs, linear=linear)
            assert set(answer.method) == {word}
            assert_regular(answer, operator.dense(), rhs)

    @pytest.mark.parametrize("word", OPERATORS)
    def test_the_device_is_waited_for_once(self, word, monkeypatch):
        reads = []
        original = torch.Tensor.__bool__
        monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append(1) or original(self))
        for name in ("item", "tolist", "nonzero", "__int__", "__float__", "__index__", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, lambda *a: pytest.fail("a value was read"))
        solve_certified(self.OPERATORS[word], random(B, self.OPERATORS[word].size))
        assert reads == [1]

    @pytest.mark.parametrize("word", ["cholesky", "lu", "least_squares", "cg", "minres", "gmres"])
    def test_several_right_hand_sides(self, word):
        operator = DenseMatrix(positive_definite(), symmetric=True)
        rhs = random(B, M, 3)
        rhs[:, :, 1] = 0
        answer = solve_certified(operator, rhs, linear=word)
        assert answer.solution.shape == rhs.shape and answer.residual.shape == (B,)
        assert answer.certified.all() and (answer.solution[:, :, 1] == 0).all()
        torch.testing.assert_close(operator.matvec(answer.solution), rhs, rtol=1e-9, atol=1e-9)

    def test_float32_is_solved_in_float32(self):
        for operator in self.OPERATORS.values():
            if isinstance(operator, DenseMatrix):
                operator = DenseMatrix(operator.matrix.float(), operator.symmetric)
            elif isinstance(operator, DiagonalMatrix):
                operator = DiagonalMatrix(operator.d.float())
            else:
                operator = Saddle(DiagonalMatrix(operator.H.d.float()), operator.A.float())
            rhs = random(B, operator.size, dtype=torch.float32)
            answer = solve_certified(operator, rhs)
            assert answer.solution.dtype == answer.residual.dtype == torch.float32
            assert answer.certified.all() and (answer.residual < 1e-5).all()

    def test_zero_right_hand_sides_get_zero(self):
        rhs = random(B, M)
        rhs[2] = 0
        for operator in (
            DenseMatrix(random(B, M, M)),
            DenseMatrix(with_eigenvalues([1.0, 1, 1, 1, 1, 0]), symmetric=True),
        ):
            answer = solve_certified(operator, rhs)
            assert (answer.solution[2] == 0).all() and answer.residual[2] == 0 and answer.certified[2]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_tiny_and_huge_right_hand_sides_do_not_underflow(self, dtype):
        operator = DenseMatrix(random(B, M, M, dtype=dtype))
        rhs = random(B, M, dtype=dtype)
        expected = solve_certified(operator, rhs)
        for power in (-100, 100) if dtype == torch.float32 else (-900, 900):
            answer = solve_certified(operator, rhs * 2.0**power)
            assert answer.certified.all()
            assert torch.equal(answer.solution, expected.solution * 2.0**power)
            assert torch.equal(answer.residual, expected.residual)

    def test_empty_batch(self):
        for word in ("auto", "least_squares", "cholesky", "lu", "cg", "minres", "gmres"):
            operator = DenseMatrix(torch.zeros(0, 3, 3), symmetric=True)
            answer = solve_certified(operator, torch.zeros(0, 3), linear=word)
            assert answer.solution.shape == (0, 3) and answer.method == ()

    def test_matrix_free_of_small_size_is_materialized_once(self):
        matrix, calls = random(B, M, M), []

        def K(u):
            calls.append(1)
            return multiply(matrix, u)

        operator = MatrixFree(K, batch=B, size=M, dtype=torch.float64)
        rhs = random(B, M)
        assert_regular(solve_certified(operator, rhs), matrix, rhs)
        assert len(calls) == M
        calls.clear()
        singular = with_eigenvalues([1.0, 1, 1, 1, 0, 0])
        operator = MatrixFree(lambda u: calls.append(1) or multiply(singular, u), batch=B, size=M, dtype=torch.float64)
        assert solve_certified(operator, rhs).singular.all()
        assert len(calls) == M


class TestRefinement:
    def test_a_slightly_wrong_factorization_is_refined(self):
        matrix = positive_definite()
        wrong = matrix + 1e-4 * positive_definite(seed=1)
        rhs = random(B, M)
        answer = solve_certified(DenseMatrix(wrong, symmetric=True), rhs, apply=product(matrix))
        assert set(answer.method) == {"cholesky"}
        assert (answer.num_refinements >= 1).all() and (answer.num_refinements <= 3).all()
        assert_regular(answer, matrix, rhs, 1e-8)

    def test_only_the_items_that_need_it_are_refined(self):
        matrix = positive_definite()
        wrong = matrix.clone()
        wrong[3] += 1e-5 * torch.eye(M)
        answer = solve_certified(DenseMatrix(wrong, symmetric=True), random(B, M), apply=product(matrix))
        assert (answer.num_refinements > 0).tolist() == [False, False, False, True, False]
        assert answer.certified.all()

    def test_max_refinements_limits_them(self):
        matrix = positive_definite()
        operator = DenseMatrix(matrix + 1e-4 * positive_definite(seed=1), symmetric=True)
        answer = solve_certified(operator, random(B, M), apply=product(matrix), max_refinements=0)
        assert (answer.num_refinements == 0).all() and set(answer.method) == {"lu"}
        assert answer.certified.all()

    def test_float32_factorization_of_a_float32_problem_gains_from_it(self):
        matrix = with_eigenvalues([1.0, 1e-1, 1e-2, 1e-3]).float()
        rhs = random(B, 4, dtype=torch.float32)
        answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs)
        assert answer.certified.all() and not answer.singular.any()


class TestWrongStructure:
    """A wrong guess costs time and never correctness."""

    def test_a_wrong_matrix_is_replaced_by_the_true_one(self):
        matrix, rhs = random(B, M, M), random(B, M)
        for operator in (DiagonalMatrix(matrix.diagonal(dim1=1, dim2=2)), DenseMatrix(random(B, M, M, seed=9))):
            answer = solve_certified(operator, rhs, apply=product(matrix))
            assert_regular(answer, matrix, rhs)
            assert set(answer.method) == {"lu"}

    def test_only_the_items_with_a_wrong_matrix_fall(self):
        matrix = torch.diag_embed(random(B, M).exp())
        matrix[1, 0, 5] = matrix[1, 5, 0] = 0.5
        rhs = random(B, M)
        answer = solve_certified(DiagonalMatrix(matrix.diagonal(dim1=1, dim2=2)), rhs, apply=product(matrix))
        assert answer.method == ("diagonal", "lu", "diagonal", "diagonal", "diagonal")
        assert_regular(answer, matrix, rhs)

    def test_a_matrix_believed_singular_is_not(self):
        matrix, rhs = positive_definite(), random(B, M)
        answer = solve_certified(DiagonalMatrix(torch.zeros(B, M, dtype=torch.float64)), rhs, apply=product(matrix))
        assert_regular(answer, matrix, rhs)

    def test_a_matrix_believed_symmetric_is_not(self):
        for matrix in (random(B, M, M), random(B, M, 4) @ random(B, 4, M, seed=1)):
            rhs = multiply(matrix, random(B, M, seed=2))
            for word in ("auto", "least_squares"):
                answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs, linear=word)
                assert answer.certified.all()
                expected = multiply(torch.linalg.pinv(matrix, rtol=1e-10), rhs)
                torch.testing.assert_close(answer.solution, expected, rtol=1e-8, atol=1e-8)

    def test_apply_may_be_an_operator(self):
        matrix, rhs = random(B, M, M), random(B, M, 2)
        answer = solve_certified(DenseMatrix(matrix + 1.0), rhs, apply=DenseMatrix(matrix))
        torch.testing.assert_close(matrix @ answer.solution, rhs)
        assert answer.certified.all()

    def test_a_singular_truth_is_seen(self):
        truth = with_eigenvalues([3.0, 2.0, 1.0, 1.0, 0.0, 0.0])
        rhs = random(B, M)
        answer = solve_certified(DenseMatrix(positive_definite(), symmetric=True), rhs, apply=product(truth))
        assert answer.degenerate.all()
        torch.testing.assert_close(answer.solution, multiply(torch.linalg.pinv(truth, rtol=1e-10), rhs))


class TestSaferMethods:
    def test_indefinite_items_go_from_cholesky_to_lu(self):
        matrix, rhs = positive_definite(), random(B, M)
        matrix[1], matrix[4] = -matrix[1], with_eigenvalues([3.0, -2, 1, -1, 2, -3])[0]
        answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs)
        assert answer.method == ("cholesky", "lu", "cholesky", "cholesky", "lu")
        assert_regular(answer, matrix, rhs)

    def test_singular_H_goes_from_schur_to_lu(self):
        H, A = positive_definite(), random(B, P, M)
        H[2] = torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64))
        operator, rhs = Saddle(H, A), random(B, M + P)
        answer = solve_certified(operator, rhs, linear="schur")
        assert answer.method == ("schur", "schur", "lu", "schur", "schur")
        assert_regular(answer, operator.dense(), rhs)

    @pytest.mark.parametrize("word", ["auto", "schur", "lu"])
    def test_vertices_of_linear_programs_are_regular(self, word):
        operator = Saddle(torch.zeros(B, M, M, dtype=torch.float64), random(B, M, M))
        rhs = random(B, 2 * M)
        answer = solve_certified(operator, rhs, linear=word)
        assert set(answer.method) == {"lu"}
        assert_regular(answer, operator.dense(), rhs)

    def test_krylov_that_breaks_goes_to_a_direct_method(self):
        matrix, rhs = positive_definite(), random(B, M)
        matrix[1] = -matrix[1]
        operator = MatrixFree(product(matrix), batch=B, size=M, dtype=torch.float64, symmetric=True)
        answer = solve_certified(operator, rhs, linear="cg")
        assert answer.method == ("cg", "lu", "cg", "cg", "cg")
        assert_regular(answer, matrix, rhs)

    def test_krylov_too_large_for_a_dense_matrix_goes_to_minres_and_gmres(self, monkeypatch):
        monkeypatch.setattr(certificate, "_DENSE_NUMBERS", 10)
        matrix, rhs = positive_definite(), random(B, M)
        matrix[1] = -matrix[1]
        operator = MatrixFree(product(matrix), batch=B, size=M, dtype=torch.float64, symmetric=True)
        answer = solve_certified(operator, rhs, linear="cg")
        assert answer.method == ("cg", "minres", "cg", "cg", "cg")
        assert_regular(answer, matrix, rhs, 1e-8)
        matrix = random(B, M, M)
        operator = MatrixFree(product(matrix), batch=B, size=M, dtype=torch.float64)
        answer = solve_certified(operator, rhs, linear=MINRES())
        assert set(answer.method) == {"gmres"}
        assert_regular(answer, matrix, rhs, 1e-8)

    def test_what_nothing_certifies_is_reported(self, monkeypatch):
        monkeypatch.setattr(certificate, "_DENSE_NUMBERS", 10)
        matrix = with_eigenvalues([1.0, 0, 0, 0, 0, 0])
        operator = MatrixFree(product(matrix), batch=B, size=M, dtype=torch.float64, symmetric=True)
        answer = solve_certified(operator, random(B, M), linear="minres")
        assert not answer.certified.any() and (answer.residual > 0.1).all() and answer.solution.isfinite().all()


class TestSingular:
    @pytest.mark.parametrize("word", ["auto", "lu", "cholesky", "least_squares"])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_least_squares_is_of_minimum_norm(self, word, symmetric):
        matrix = with_eigenvalues([3.0, 2, 1, 0, 0]) if symmetric else random(B, 5, 3, seed=3) @ random(B, 3, 5, seed=4)
        operator = DenseMatrix(matrix, symmetric)
        inverse = torch.linalg.pinv(matrix, rtol=1e-10)
        for rhs in (multiply(matrix, random(B, 5)), random(B, 5)):
            answer = solve_certified(operator, rhs, linear=word)
            assert answer.degenerate.all() and answer.singular.all() and answer.certified.all()
            assert set(answer.method) == {"least_squares"}
            torch.testing.assert_close(answer.solution, multiply(inverse, rhs), rtol=1e-9, atol=1e-9)
            expected = relative_residual(matrix, multiply(inverse, rhs), rhs)
            torch.testing.assert_close(answer.residual, expected, rtol=0, atol=1e-9)

    def test_huge_solution_of_a_nearly_singular_lu_is_not_accepted(self):
        # In the range up to rounding: LU "succeeds", with a huge multiple of the null vector and a small residual.
        matrix = with_eigenvalues([3.0, 2, 1, 1, 1, 0], batch=40)
        rhs = multiply(matrix, random(40, M))
        for word in ("lu", "cholesky"):
            answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs, linear=word)
            assert answer.degenerate.all() and (answer.residual < 1e-13).all()
            assert (answer.solution.norm(dim=1) < 10 * rhs.norm(dim=1)).all()

    @pytest.mark.parametrize("word", ["auto", "schur", "lu", "minres"])
    def test_redundant_rows_are_singular_and_not_degenerate(self, word):
        H, A = positive_definite(), random(B, P, M)
        redundant = torch.cat([A, A[:, :1] + A[:, 1:2]], dim=1)
        rhs = torch.cat([random(B, M), torch.zeros(B, P + 1, dtype=torch.float64)], dim=1)
        answer = solve_certified(Saddle(H, redundant), rhs, linear=word, on_singular="raise")
        assert answer.certified.all() and not answer.degenerate.any()
        assert answer.singular.all() or word == "minres"  # which cannot see it
        expected = torch.linalg.solve(Saddle(H, A).dense(), rhs[:, : M + P])
        torch.testing.assert_close(answer.solution[:, :M], expected[:, :M], rtol=1e-9, atol=1e-9)

    def test_more_rows_than_variables_are_singular_and_not_degenerate(self):
        A, b = random(B, M + 2, M), random(B, M + 2)
        rhs = torch.cat([torch.zeros(B, M, dtype=torch.float64), b], dim=1)
        answer = solve_certified(Saddle(positive_definite(), A), rhs)
        assert answer.singular.all() and not answer.degenerate.any() and answer.certified.all()
        torch.testing.assert_close(answer.solution[:, :M], multiply(torch.linalg.pinv(A), b))
        assert (answer.residual > 1e-3).all()  # the rows contradict each other
        consistent = torch.cat([random(B, M), multiply(A, random(B, M))], dim=1)
        assert (solve_certified(Saddle(positive_definite(), A), consistent).residual < 1e-10).all()

    def test_primal_size_of_a_dense_saddle(self):
        A = random(B, P, M)
        saddle = Saddle(positive_definite(), torch.cat([A, A[:, :1]], dim=1))
        rhs = torch.cat([random(B, M), torch.zeros(B, P + 1, dtype=torch.float64)], dim=1)
        dense = DenseMatrix(saddle.dense(), symmetric=True)
        assert solve_certified(dense, rhs).degenerate.all()
        answer = solve_certified(dense, rhs, primal_size=M)
        assert answer.singular.all() and not answer.degenerate.any()
        torch.testing.assert_close(answer.solution, solve_certified(saddle, rhs).solution)

    def test_reduced_hessian_singular_is_degenerate(self):
        basis = torch.linalg.qr(random(B, M, M))[0]
        H = basis @ torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)) @ basis.mT
        A = basis[:, :, :2].mT
        rhs = torch.cat([random(B, M), torch.zeros(B, 2, dtype=torch.float64)], dim=1)
        answer = solve_certified(Saddle(H, A), rhs)
        assert answer.degenerate.all()
        expected = basis[:, :, 2:4] @ basis[:, :, 2:4].mT @ rhs[:, :M, None]
        torch.testing.assert_close(answer.solution[:, :M], expected.squeeze(-1))

    def test_only_singular_items_fall(self):
        matrix = positive_definite()
        matrix[2] = with_eigenvalues([1.0, 1, 1, 0, 0, 0])[0]
        answer = solve_certified(DenseMatrix(matrix, symmetric=True), random(B, M))
        assert answer.method == ("cholesky", "cholesky", "least_squares", "cholesky", "cholesky")
        assert answer.degenerate.tolist() == answer.singular.tolist() == [False, False, True, False, False]

    def test_raise_names_the_items_and_their_rank(self):
        matrix = positive_definite()
        matrix[1], matrix[3] = with_eigenvalues([1.0, 1, 1, 1, 0, 0])[:2]
        with pytest.raises(SingularError, match=r"2 items .* \(items 1, 3; item 1 has rank 4 of 6\).*least_squares"):
            solve_certified(DenseMatrix(matrix, symmetric=True), random(B, M), on_singular="raise")
        solve_certified(DenseMatrix(positive_definite(), symmetric=True), random(B, M), on_singular="raise")
        many = torch.zeros(20, 2, 2, dtype=torch.float64)
        with pytest.raises(SingularError, match=r"items 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.; item 0 has rank 0 of 2"):
            solve_certified(DenseMatrix(many), random(20, 2), on_singular="raise")

    @pytest.mark.parametrize("damping", [1e-2, 1e-5])
    def test_damp_adds_a_proximal_term(self, damping):
        matrix = with_eigenvalues([4.0, 2, 1, 1, 0, 0])
        matrix[2] = positive_definite()[2]
        rhs = random(B, M)
        answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs, on_singular="damp", damping=damping)
        assert answer.degenerate.tolist() == [True, True, False, True, True]
        assert answer.method == ("damp", "damp", "cholesky", "damp", "damp")
        scale = matrix.abs().amax((1, 2))
        scale[2] = 0
        damped = matrix + damping * scale[:, None, None] * torch.eye(M)
        torch.testing.assert_close(answer.solution, torch.linalg.solve(damped, rhs), rtol=1e-7, atol=1e-7)

    def test_damp_touches_only_the_block_of_y(self):
        A = random(B, 1, M)
        operator = Saddle(torch.zeros(B, M, M, dtype=torch.float64), torch.cat([A, A], dim=1))
        rhs = torch.cat([random(B, M), torch.zeros(B, 2, dtype=torch.float64)], dim=1)
        answer = solve_certified(operator, rhs, on_singular="damp", damping=0.1)
        expected = Saddle(0.1 * torch.eye(M, dtype=torch.float64).repeat(B, 1, 1), operator.A)
        expected = multiply(torch.linalg.pinv(expected.dense(), rtol=1e-10), rhs)
        assert answer.degenerate.all()
        torch.testing.assert_close(answer.solution, expected, rtol=1e-8, atol=1e-8)

    def test_damped_solutions_tend_to_the_minimum_norm_one(self):
        matrix = with_eigenvalues([4.0, 2, 1, 1, 0, 0])
        rhs = multiply(matrix, random(B, M))
        operator = DenseMatrix(matrix, symmetric=True)
        shortest = solve_certified(operator, rhs).solution
        damped = solve_certified(operator, rhs, on_singular="damp", damping=1e-7).solution
        torch.testing.assert_close(damped, shortest, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("on_singular", ["least_squares", "damp", "raise"])
    def test_diagonals_with_zeros(self, on_singular):
        d = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 4.0]], dtype=torch.float64)
        rhs = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
        if on_singular == "raise":
            with pytest.raises(SingularError, match="item 1 has rank 2 of 3"):
                solve_certified(DiagonalMatrix(d), rhs, on_singular=on_singular)
            return
        answer = solve_certified(DiagonalMatrix(d), rhs, on_singular=on_singular, damping=0.25)
        assert answer.degenerate.tolist() == [False, True]
        assert answer.solution[0].tolist() == [1.0, 0.5, 0.25]
        assert answer.solution[1].tolist() == ([1.0, 0.0, 0.25] if on_singular == "least_squares" else [0.5, 1.0, 0.2])

    def test_large_diagonals_are_never_dense(self):
        d = random(2, 100_000).exp()
        d[1, 7] = 0
        answer = solve_certified(DiagonalMatrix(d), torch.ones_like(d))
        assert answer.degenerate.tolist() == [False, True] and answer.method == ("diagonal", "diagonal")

    def test_rcond_decides_what_counts_as_singular(self):
        operator = DenseMatrix(with_eigenvalues([1.0, 1.0, 1e-6]), symmetric=True)
        rhs = random(B, 3)
        assert not solve_certified(operator, rhs).singular.any()
        answer = solve_certified(operator, rhs, rcond=1e-4)
        assert answer.singular.all()
        inverse = torch.linalg.pinv(operator.matrix, rtol=1e-3)
        torch.testing.assert_close(answer.solution, multiply(inverse, rhs), rtol=1e-5, atol=1e-5)


class TestScaling:
    @pytest.mark.parametrize("kind", ["nonsymmetric", "indefinite", "definite", "saddle", "schur"])
    def test_badly_scaled_regular_systems_are_certified(self, kind):
        size = M if kind in ("nonsymmetric", "indefinite", "definite") else M + P
        matrix = {
            "nonsymmetric": lambda: random(B, M, M),
            "indefinite": lambda: with_eigenvalues([3.0, -2, 1, -1, 2, -3]),
            "definite": positive_definite,
            "saddle": lambda: Saddle(positive_definite(), random(B, P, M)).dense(),
            "schur": lambda: Saddle(positive_definite(), random(B, P, M)).dense(),
        }[kind]()
        scale = torch.logspace(-8, 8, size, dtype=torch.float64)[torch.randperm(size)]
        scaled = matrix * scale[:, None] * scale
        operator = DenseMatrix(scaled, symmetric=kind != "nonsymmetric")
        if size > M:
            operator = Saddle(scaled[:, :M, :M], scaled[:, M:, :M])
        rhs = random(B, size)
        answer = solve_certified(operator, rhs, linear="schur" if kind == "schur" else "auto")
        assert answer.certified.all() and not answer.singular.any()
        expected = torch.linalg.solve(matrix, rhs / scale)
        tolerance = 1e-9 * expected.abs().max().item()
        torch.testing.assert_close(answer.solution * scale, expected, rtol=1e-9, atol=tolerance)

    @pytest.mark.parametrize("word", ["lu", "schur", "least_squares"])
    @pytest.mark.parametrize(
        "unit_H, unit_A", [(1e-8, 1.0), (1e8, 1.0), (1.0, 1e-8), (1.0, 1e8), (1e-6, 1e6), (1e8, 1e-8)]
    )
    def test_blocks_of_different_size_do_not_lose_rank(self, word, unit_H, unit_A):
        H, A = positive_definite(), random(B, P, M)
        H[1] = with_eigenvalues([1e-3, 1, 1, 1, 1, 0])[0]
        operator = Saddle(unit_H * H, unit_A * A)
        assert (LeastSquares().init(operator).rank == M + P).all()
        rhs = torch.cat([random(B, M), torch.zeros(B, P, dtype=torch.float64)], dim=1)
        answer = solve_certified(operator, rhs, linear=word)
        assert answer.certified.all() and not answer.singular.any() and not answer.degenerate.any()
        expected = torch.linalg.solve(Saddle(H, A).dense(), rhs)[:, :M] / unit_H
        torch.testing.assert_close(answer.solution[:, :M], expected, rtol=1e-7, atol=1e-7 / unit_H)

    def test_variables_that_only_the_constraints_contain_are_scaled_by_them(self):
        H, A = torch.zeros(B, M, M, dtype=torch.float64), random(B, P, M)
        H[:, :3, :3] = positive_definite(size=3)
        scale = torch.logspace(-8, 8, M + P, dtype=torch.float64)[torch.randperm(M + P)]
        matrix = Saddle(H, A).dense()
        scaled = matrix * scale[:, None] * scale
        rhs = random(B, M + P)
        answer = solve_certified(Saddle(scaled[:, :M, :M], scaled[:, M:, :M]), rhs)
        assert answer.certified.all() and not answer.singular.any()
        expected = torch.linalg.solve(matrix, rhs / scale)
        tolerance = 1e-9 * expected.abs().max().item()
        torch.testing.assert_close(answer.solution * scale, expected, rtol=1e-9, atol=tolerance)

    @pytest.mark.parametrize("word", ["auto", "least_squares", "schur", "schur diagonal"])
    def test_an_H_of_rounding_is_no_curvature(self, word):
        H = 1e-17 * positive_definite()
        H = DiagonalMatrix(H.diagonal(dim1=1, dim2=2)) if word == "schur diagonal" else H
        operator, word = Saddle(H, random(B, P, M)), word.split()[0]
        rhs = torch.cat([random(B, M), torch.zeros(B, P, dtype=torch.float64)], dim=1)
        answer = solve_certified(operator, rhs, linear=word)
        assert answer.degenerate.all() and (answer.solution[:, :M].abs() < 1e-8).all()

    @settings(max_examples=25)
    @given(seed=st.integers(0, 10**6), power=st.integers(-200, 200))
    def test_scaling_the_system_scales_nothing_else(self, seed, power):
        matrix, rhs = random(B, M, M, seed=seed), random(B, M, seed=seed + 1)
        matrix[0] = torch.outer(matrix[0, 0], matrix[0, 1])  # rank one
        factor = 2.0**power
        answer = solve_certified(DenseMatrix(matrix), rhs)
        scaled = solve_certified(DenseMatrix(matrix * factor), rhs * factor)
        assert torch.equal(answer.solution, scaled.solution)
        assert answer.method == scaled.method and torch.equal(answer.singular, scaled.singular)
        shrunk = solve_certified(DenseMatrix(matrix * factor), rhs)
        torch.testing.assert_close(shrunk.solution * factor, answer.solution, rtol=1e-12, atol=0)
        assert torch.equal(answer.degenerate, shrunk.degenerate)


class TestBatchMatesAreStrangers:
    def mixed(self):
        matrices = torch.cat(
            [
                positive_definite(2),
                -positive_definite(1, seed=1),
                with_eigenvalues([1.0, 2, 3, 0, 0, 0], batch=1),
                torch.zeros(1, M, M, dtype=torch.float64),
                with_eigenvalues([1.0, -1, 2, -2, 3, -3], batch=1),
            ]
        )
        return DenseMatrix(matrices, symmetric=True), random(6, M)

    @pytest.mark.parametrize("word", ["auto", "lu", "least_squares", "minres"])
    def test_an_item_alone_gets_the_same(self, word):
        operator, rhs = self.mixed()
        together = solve_certified(operator, rhs, linear=word)
        for i in range(6):
            item = torch.tensor([i])
            alone = solve_certified(operator.select(item), rhs[item], linear=word)
            torch.testing.assert_close(alone.solution, together.solution[item], rtol=1e-9, atol=1e-9)
            assert alone.method[0] == together.method[i]
            for field in ("certified", "degenerate", "singular", "num_refinements"):
                assert getattr(alone, field) == getattr(together, field)[i]

    @pytest.mark.parametrize("word", ["auto", "lu", "least_squares", "cg", "minres", "gmres"])
    @pytest.mark.parametrize("where", ["matrix", "rhs"])
    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_a_poisoned_item_spoils_only_itself(self, word, where, poison):
        operator, rhs = self.mixed()
        clean = solve_certified(operator, rhs, linear=word)
        matrix, rhs = operator.matrix.clone(), rhs.clone()
        if where == "matrix":
            matrix[1, 3, 2] = matrix[1, 2, 3] = poison
        else:
            rhs[1, 2] = poison
        answer = solve_certified(DenseMatrix(matrix, symmetric=True), rhs, linear=word)
        assert answer.solution[1].isnan().all() and answer.residual[1].isnan()
        assert not (answer.certified[1] or answer.degenerate[1] or answer.singular[1])
        assert answer.method[1] == "none"
        others = [0, 2, 3, 4, 5]
        torch.testing.assert_close(answer.solution[others], clean.solution[others], rtol=1e-9, atol=1e-9)
        for field in ("certified", "degenerate", "singular"):
            assert torch.equal(getattr(answer, field)[others], getattr(clean, field)[others])

    @settings(max_examples=25)
    @given(order=st.permutations(range(6)), word=st.sampled_from(["auto", "lu", "least_squares", "minres"]))
    def test_permuting_the_batch_permutes_the_answer(self, order, word):
        operator, rhs = self.mixed()
        items = torch.tensor(order)
        answer = solve_certified(operator, rhs, linear=word)
        permuted = solve_certified(operator.select(items), rhs[items], linear=word)
        torch.testing.assert_close(permuted.solution, answer.solution[items], rtol=1e-9, atol=1e-9)
        assert permuted.method == tuple(answer.method[i] for i in order)
        assert torch.equal(permuted.degenerate, answer.degenerate[items])


class TestTolerance:
    def test_rtol_decides_what_is_certified(self):
        operator, rhs = DenseMatrix(random(B, M, M)), random(B, M)
        impossible = solve_certified(operator, rhs, rtol=0.0)
        assert not impossible.certified.all() and (impossible.residual < 1e-13).all()
        assert not solve_certified(operator, rhs, rtol=1e-30).certified.all()
        rough = MINRES(rtol=1e-3)
        operator = DenseMatrix(with_eigenvalues([1.0, 2, 3, 4, 5, 6]), symmetric=True)
        assert set(solve_certified(operator, rhs, linear=rough, rtol=1e-2).method) == {"minres"}
        loose = solve_certified(operator, rhs, linear=rough, rtol=1e-2)
        assert (loose.num_refinements == 0).all()
        tight = solve_certified(operator, rhs, linear=rough)
        assert tight.certified.all() and (tight.residual < loose.residual + 1e-15).all()

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_ill_conditioned_systems_are_certified_by_the_bound_of_their_error(self, symmetric):
        # Rounding alone leaves eps * 1e8 of the right-hand side here.
        matrix, u = with_eigenvalues([1.0, 1e-2, 1e-4, 1e-6, 1e-8], batch=50), random(50, 5)
        answer = solve_certified(DenseMatrix(matrix, symmetric), random(50, 5))
        assert answer.certified.all() and (answer.residual > default_rtol(torch.float64)).any()
        assert set(answer.method) <= {"cholesky", "lu"}
        answer = solve_certified(DenseMatrix(matrix, symmetric), multiply(matrix, u), apply=product(matrix))
        assert answer.certified.all()
        assert ((answer.solution - u).norm(dim=1) <= default_rtol(torch.float64) ** 0.5 * u.norm(dim=1)).all()

    def test_digits_that_are_lost_are_reported(self):
        answer = solve_certified(DenseMatrix(with_eigenvalues([1.0, 1.0, 1e-13]), symmetric=True), random(B, 3))
        assert not answer.certified.any() and not answer.singular.any()

    @pytest.mark.parametrize("solver", [Cholesky(), LU(), LeastSquares()], ids=str)
    def test_the_bound_of_the_error_is_one(self, solver):
        matrix = with_eigenvalues([1.0, 1e-1, 1e-2, 1e-3], batch=50)
        state = solver.init(DenseMatrix(matrix, symmetric=True))
        u = random(50, 4, 2)
        wrong = u + 1e-5 * random(50, 4, 2, seed=1)
        error = ((wrong - u).norm(dim=1) / wrong.norm(dim=1)).amax(1)
        bound = solver.error(state, wrong, matrix @ (u - wrong))
        assert (bound >= 0.1 * error).all()  # other units, and an estimate of the norm of the inverse
        assert (solver.error(state, u, torch.zeros_like(u)) == 0).all()
        assert CG().error(CG().init(DenseMatrix(matrix)), u, u).isinf().all()

    def test_default_is_eps_to_the_three_fifths(self):
        assert default_rtol(torch.float64) == pytest.approx(4.05e-10, rel=0.01)
        assert default_rtol(torch.float32) == pytest.approx(7.0e-5, rel=0.01)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_random_systems_of_moderate_condition_need_no_fallback(self, dtype):
        for size in (1, 2, 10, 50):
            operator = DenseMatrix(random(50, size, size, dtype=dtype))
            answer = solve_certified(operator, random(50, size, dtype=dtype))
            assert answer.certified.all() and not answer.singular.any()


def K(size=M):
    return DenseMatrix(random(B, size, size))


WRONG_ARGUMENTS = {
    r"`solve_certified\(operator=...\)` must be an Operator": lambda: solve_certified(random(B, M, M), random(B, M)),
    r"`solve_certified\(rhs=...\)` must be a tensor \(B, s\) or \(B, s, k\) with \(B, s\) = \(5, 6\)": lambda: (
        solve_certified(K(), random(B, M + 1))
    ),
    r"`solve_certified\(rhs=...\)` must have the operator's dtype": lambda: solve_certified(
        K(), random(B, M, dtype=torch.float32)
    ),
    r"`solve_certified\(rhs=...\)` must have at least one column": lambda: solve_certified(K(), random(B, M, 0)),
    r"`solve_certified\(apply=...\)` must be a function of \(B, s\), an Operator or None, got int": lambda: (
        solve_certified(K(), random(B, M), apply=3)
    ),
    r"`solve_certified\(apply=...\)` must match the operator: batch 5, size 6": lambda: solve_certified(
        K(), random(B, M), apply=K(M + 1)
    ),
    r"must return the shape it is given": lambda: solve_certified(K(), random(B, M), apply=lambda u: u[:, :1]),
    r"`linear=...` must be one of 'auto', 'cholesky', 'lu', 'schur'.*got 'qr'": lambda: solve_certified(
        K(), random(B, M), linear="qr"
    ),
    r"`linear=...` must be one of .*, or a linear solver object, got 3": lambda: get(3),
    r"`solve_certified\(rtol=...\)` must be a number in \[0, inf\), got -1": lambda: solve_certified(
        K(), random(B, M), rtol=-1
    ),
    r"`solve_certified\(rcond=...\)` must be a number in \[0, 1\), got 1": lambda: solve_certified(
        K(), random(B, M), rcond=1
    ),
    r"`solve_certified\(on_singular=...\)` must be one of 'least_squares', 'damp', 'raise', got None": lambda: (
        solve_certified(K(), random(B, M), on_singular=None)
    ),
    r"`solve_certified\(damping=...\)` must be a number in \[0, inf\), got inf": lambda: solve_certified(
        K(), random(B, M), damping=math.inf
    ),
    r"`solve_certified\(primal_size=...\)` must be an integer from 1 to 6, got 7": lambda: solve_certified(
        K(), random(B, M), primal_size=7
    ),
    r"`solve_certified\(max_refinements=...\)` must be an integer of at least 0, got None": lambda: solve_certified(
        K(), random(B, M), max_refinements=None
    ),
    r"`SchurComplement.init\(operator=...\)` must be Saddle": lambda: solve_certified(
        K(), random(B, M), linear="schur"
    ),
    r"`choose\(operator=...\)` must be an Operator": lambda: choose(3),
    r"`choose\(positive_definite=...\)` must be True, False or None, got 'maybe'": lambda: choose(
        K(), positive_definite="maybe"
    ),
    r"`default_rtol\(dtype=...\)` must be torch.float32 or torch.float64, got torch.int64": lambda: default_rtol(
        torch.int64
    ),
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_a_wrong_argument_raises_at_the_door(message):
    with pytest.raises(InvalidInputError, match=message):
        WRONG_ARGUMENTS[message]()


class TestChoice:
    def test_every_word_names_a_solver_and_back(self):
        assert set(auto.SOLVERS) == set(WORDS)
        for word in WORDS:
            solver = get(word)
            assert name_of(solver) == word and get(solver) is solver
        assert get("auto") is None

    def test_choice_looks_at_the_operator(self):
        def free(size, symmetric=False):
            return MatrixFree(abs, batch=1, size=size, symmetric=symmetric)

        H, A = positive_definite(), random(B, P, M)
        assert choose(DiagonalMatrix(random(B, M))) == Elementwise()
        assert choose(DenseMatrix(H, symmetric=True)) == Cholesky()
        assert choose(DenseMatrix(H, symmetric=True), positive_definite=False) == LU()
        assert choose(DenseMatrix(H)) == LU()
        assert choose(Saddle(H, A)) == LU()
        assert choose(Saddle(DenseMatrix(H), A)) == LU()
        assert choose(Saddle(DiagonalMatrix(random(B, M)), A)) == SchurComplement()
        assert choose(Saddle(positive_definite(size=50), random(B, P, 50))) == SchurComplement()
        assert choose(Saddle(H, random(B, 0, M))) == Cholesky()
        assert choose(free(10)) == LU()
        assert choose(free(10, symmetric=True)) == Cholesky()
        assert choose(free(1000)) == GMRES()
        assert choose(free(1000, symmetric=True)) == MINRES()
        assert choose(free(1000, symmetric=True), positive_definite=True) == CG()

    def test_a_solver_of_the_users_own_is_named_by_its_class(self):
        class Inverse(LU):
            pass

        operator, rhs = K(), random(B, M)
        assert solve_certified(operator, rhs, linear=Inverse()).method == ("Inverse",) * B

    def test_preconditioned_krylov_objects_are_taken(self):
        operator = DenseMatrix(positive_definite(), symmetric=True)
        solver = CG(preconditioner=jacobi(operator.matrix.diagonal(dim1=1, dim2=2)))
        answer = solve_certified(operator, random(B, M), linear=solver)
        assert set(answer.method) == {"cg"} and answer.certified.all()


def test_all_names_exist_and_answers_have_their_fields():
    assert all(hasattr(torchddn.linear, name) for name in torchddn.linear.__all__)
    assert sorted(torchddn.linear.__all__, key=str.lower)
    assert Certified._fields == (
        "solution",
        "residual",
        "certified",
        "degenerate",
        "singular",
        "method",
        "num_refinements",
    )


@pytest.mark.parametrize("rounding", [0.0, 5.55e-17, -5.55e-17, 1e-16, 1e-12, 1e-3])
def test_a_row_of_the_hessian_that_is_rounding_beside_the_others_is_no_unit(rounding):
    H = torch.diag(torch.tensor([1.0, rounding, -0.7], dtype=torch.float64))[None]
    A = torch.tensor([[[0.0, 2.8, -2.8], [0.0, -2.8, -2.8]]], dtype=torch.float64)
    v = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    saddle = Saddle(H, A)
    certified = solve_certified(saddle, v)
    assert not certified.degenerate.any()
    expected = torch.linalg.solve(saddle.dense(), v)
    torch.testing.assert_close(certified.solution, expected, rtol=1e-12, atol=1e-12)
