"""Krylov methods: answers against dense references, and every item as if it were alone."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchddn.errors import InvalidInputError
from torchddn.linear import CG, GMRES, MINRES, DenseMatrix, DiagonalMatrix, Krylov, MatrixFree, Saddle, Solver, jacobi

B, S = 6, 12
METHODS = {"cg": CG(), "minres": MINRES(), "gmres": GMRES(), "gmres restarted": GMRES(restart=5, max_steps=2000)}
DTYPES = (torch.float64, torch.float32)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_eigenvalues(values, seed=0):
    """Symmetric matrices, one for each row of ``values``."""
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(random(*values.shape, values.shape[-1], seed=seed))[0]
    return basis @ torch.diag_embed(values) @ basis.mT


def operator_for(method, batch=B, size=S, dtype=torch.float64, seed=0):
    if isinstance(method, CG):
        factor = random(batch, size, size, seed=seed)
        return DenseMatrix((factor @ factor.mT / size + torch.eye(size)).to(dtype), symmetric=True)
    if isinstance(method, MINRES):
        values = torch.linspace(1, 3, size, dtype=torch.float64) * (-1.0) ** torch.arange(size)
        return DenseMatrix(with_eigenvalues(values.expand(batch, size), seed).to(dtype), symmetric=True)
    return DenseMatrix((random(batch, size, size, seed=seed) / size**0.5 + 2 * torch.eye(size)).to(dtype))


def solve(operator, rhs):
    return torch.linalg.solve(operator.dense(), rhs if rhs.ndim == 3 else rhs.unsqueeze(-1)).view_as(rhs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestAllMethods:
    def test_agrees_with_the_dense_solution(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        for k in (1, 3):
            rhs = random(B, S, k, dtype=dtype)
            result = method.run(operator, rhs)
            assert result.converged.all() and not result.broken.any()
            assert result.converged.shape == result.num_steps.shape == result.residual.shape == (B, k)
            tolerance = 100 * torch.finfo(dtype).eps ** 0.75
            torch.testing.assert_close(result.solution, solve(operator, rhs), rtol=tolerance, atol=tolerance)
        assert method.run(operator, rhs[..., 0]).converged.shape == (B,)

    def test_tracked_residual_is_the_true_one(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        rhs = random(B, S, dtype=dtype)
        for max_steps in (0, 1, 3, 7):
            early = dataclasses.replace(method, max_steps=max_steps)
            result = early.run(operator, rhs)
            r = rhs - operator.matvec(result.solution)
            torch.testing.assert_close(result.residual, r.norm(dim=1), rtol=1e-3, atol=1e-5)
            assert (result.num_steps == max_steps).all() and not result.converged.any() and not result.broken.any()

    def test_an_item_alone_takes_the_same_steps_to_the_same_answer(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        matrix = operator.dense().clone()
        matrix[1] = torch.eye(S)  # done after one step
        matrix[2] = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=dtype).repeat(S // 3))  # after three
        operator = DenseMatrix(matrix, operator.symmetric)
        rhs = random(B, S, dtype=dtype)
        rhs[3] = 0
        rtol = 1e-3 * torch.finfo(dtype).eps ** 0.5
        method = dataclasses.replace(method, rtol=rtol)
        together = method.run(operator, rhs)
        assert together.num_steps[1:4].tolist() == [1, 3, 0]
        assert (together.num_steps[[0, 4, 5]] > 3).all()
        assert (together.solution[3] == 0).all() and together.converged[3]
        for i in range(B):
            item = torch.tensor([i])
            alone = method.run(operator.select(item), rhs[item])
            assert alone.num_steps == together.num_steps[i]
            torch.testing.assert_close(alone.solution, together.solution[item], rtol=1e-3, atol=100 * rtol)

    def test_columns_are_strangers_too(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        rhs = random(B, S, 3, dtype=dtype)
        rhs[:, :, 1] = 0
        together = method.run(operator, rhs)
        assert (together.num_steps[:, 1] == 0).all() and (together.solution[:, :, 1] == 0).all()
        alone = method.run(operator, rhs[:, :, 2])
        assert (alone.num_steps - together.num_steps[:, 2]).abs().max() <= 1
        tolerance = 100 * torch.finfo(dtype).eps ** 0.75
        torch.testing.assert_close(alone.solution, together.solution[:, :, 2], rtol=tolerance, atol=tolerance)

    def test_poisoned_item_harms_no_other(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        rhs = random(B, S, dtype=dtype)
        clean = method.run(operator, rhs)
        matrix = operator.dense().clone()
        matrix[1, 2, 2] = torch.nan
        rhs[4, 0] = torch.inf
        result = method.run(DenseMatrix(matrix, operator.symmetric), rhs)
        assert result.converged.tolist() == [True, False, True, True, False, True]
        assert result.broken.tolist() == [False, True, False, False, True, False]
        assert (result.num_steps[[1, 4]] <= 1).all()
        others = [0, 2, 3, 5]
        assert torch.equal(result.num_steps[others], clean.num_steps[others])
        torch.testing.assert_close(result.solution[others], clean.solution[others])

    def test_empty_batches_and_single_numbers(self, method, dtype):
        nothing = DenseMatrix(torch.zeros(0, 3, 3, dtype=dtype), symmetric=True)
        assert method.run(nothing, torch.zeros(0, 3, 2, dtype=dtype)).solution.shape == (0, 3, 2)
        one = DenseMatrix(torch.tensor([[[2.0]], [[4.0]]], dtype=dtype), symmetric=True)
        result = method.run(one, torch.ones(2, 1, dtype=dtype))
        torch.testing.assert_close(result.solution, torch.tensor([[0.5], [0.25]], dtype=dtype))
        assert result.num_steps.tolist() == [1, 1]

    def test_answer_is_linear_in_the_right_hand_side(self, method, dtype):
        operator = operator_for(method, dtype=dtype)
        rhs = random(B, S, dtype=dtype)
        result, scaled = method.run(operator, rhs), method.run(operator, 1024 * rhs)
        assert torch.equal(result.num_steps, scaled.num_steps)
        assert torch.equal(1024 * result.solution, scaled.solution)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestOptions:
    def test_rtol_and_atol_stop(self, method):
        operator, rhs = operator_for(method), random(B, S)
        loose = dataclasses.replace(method, rtol=1e-2).run(operator, rhs)
        tight = dataclasses.replace(method, rtol=1e-10).run(operator, rhs)
        assert (loose.residual <= 1e-2 * rhs.norm(dim=1)).all() and loose.num_steps.sum() < tight.num_steps.sum()
        assert (tight.residual <= 1e-10 * rhs.norm(dim=1)).all()
        absolute = dataclasses.replace(method, rtol=0.0, atol=0.1).run(operator, rhs)
        assert (absolute.residual <= 0.1).all() and absolute.converged.all()
        assert absolute.num_steps.sum() < tight.num_steps.sum()

    def test_max_steps_stops(self, method):
        result = dataclasses.replace(method, max_steps=2).run(operator_for(method), random(B, S))
        assert (result.num_steps == 2).all() and not result.converged.any() and not result.broken.any()

    def test_a_good_preconditioner_saves_steps(self, method):
        operator, rhs = operator_for(method), random(B, S)
        scale = torch.logspace(-2, 2, S, dtype=torch.float64)
        matrix = operator.dense() * scale[:, None] * scale
        matrix = torch.diag_embed(matrix.diagonal(dim1=1, dim2=2)) + 1e-3 * matrix
        scaled = DenseMatrix(matrix, operator.symmetric)
        plain = dataclasses.replace(method, rtol=1e-8, max_steps=1000).run(scaled, rhs)
        helped = dataclasses.replace(
            method, rtol=1e-8, max_steps=1000, preconditioner=jacobi(scaled.matrix.diagonal(dim1=1, dim2=2))
        )
        helped = helped.run(scaled, rhs)
        assert helped.converged.all()
        assert helped.num_steps.sum() < plain.num_steps.sum()
        torch.testing.assert_close(helped.solution, solve(scaled, rhs), rtol=1e-3, atol=1e-3)
        r = rhs - scaled.matvec(helped.solution)
        assert (r.norm(dim=1) <= 1e-6 * rhs.norm(dim=1)).all()

    def test_lifecycle_solves_and_transposes(self, method):
        operator, rhs = operator_for(method), random(B, S)
        state = method.init(operator)
        assert isinstance(method, Solver) and isinstance(method, Krylov)
        assert method.sound(state).tolist() == [True] * B
        torch.testing.assert_close(method.solve(state, rhs), solve(operator, rhs), rtol=1e-6, atol=1e-6)
        transposed = method.transpose(state)
        expected = solve(DenseMatrix(operator.dense().mT), rhs)
        torch.testing.assert_close(method.solve(transposed, rhs), expected, rtol=1e-6, atol=1e-6)

    def test_wrong_knobs_raise(self, method):
        kind = type(method)
        name = kind.__name__
        for knobs, message in (
            ({"rtol": -1.0}, rf"`{name}\(rtol=...\)` must be a number in \[0, inf\), got -1.0"),
            ({"rtol": "small"}, rf"`{name}\(rtol=...\)` must be a number"),
            ({"atol": float("nan")}, rf"`{name}\(atol=...\)` must be a number in \[0, inf\), got nan"),
            ({"max_steps": 2.5}, rf"`{name}\(max_steps=...\)` must be an integer of at least 0, got 2.5"),
            ({"preconditioner": 3}, rf"`{name}\(preconditioner=...\)` must be a function or None, got int"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                kind(**knobs)
        with pytest.raises(InvalidInputError, match=rf"`{name}.init\(operator=...\)` must be an Operator"):
            method.init(torch.eye(2))
        with pytest.raises(InvalidInputError, match=rf"`{name}.run\(operator=...\)` must be an Operator"):
            method.run(torch.eye(2), torch.ones(2))
        with pytest.raises(InvalidInputError, match=rf"`{name}.run\(rhs=...\)` must be a tensor \(B, s\)"):
            method.run(operator_for(method), torch.ones(2))
        with pytest.raises(InvalidInputError, match="must return the shape it is given"):
            kind(preconditioner=lambda u: u[:, :1]).run(operator_for(method), random(B, S))


@pytest.mark.parametrize("method", [CG(), GMRES(), GMRES(restart=5)], ids=repr)
def test_exact_preconditioner_needs_one_step(method):
    operator, rhs = operator_for(method), random(B, S)
    inverse = torch.linalg.inv(operator.dense())
    helped = dataclasses.replace(method, preconditioner=lambda u: (inverse @ u.unsqueeze(-1)).squeeze(-1))
    assert (helped.run(operator, rhs).num_steps == 1).all()
    several = helped.run(operator, random(B, S, 2))
    assert (several.num_steps == 1).all() and several.converged.all()


def test_restart_is_checked_and_used():
    for wrong in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match=r"`GMRES\(restart=...\)` must be an integer of at least 1"):
            GMRES(restart=wrong)
    operator, rhs = operator_for(GMRES()), random(B, S)
    full, short = GMRES(restart=S).run(operator, rhs), GMRES(restart=3, max_steps=1000).run(operator, rhs)
    assert full.converged.all() and short.converged.all()
    assert (short.num_steps > full.num_steps).all()


def test_items_that_stop_in_different_cycles_keep_their_answers():
    # Frozen in the middle of a cycle, while batch mates go through many restarts.
    matrices = operator_for(GMRES()).dense().clone()
    matrices[0] = torch.eye(S)
    matrices[1] = torch.diag(torch.arange(1.0, 3.0, dtype=torch.float64).repeat(S // 2))
    operator, rhs = DenseMatrix(matrices), random(B, S)
    result = GMRES(restart=3, max_steps=1000).run(operator, rhs)
    assert result.num_steps[:2].tolist() == [1, 2] and result.num_steps.max() > 6
    torch.testing.assert_close(result.solution, solve(operator, rhs), rtol=1e-9, atol=1e-9)


def test_jacobi_divides_by_the_modulus():
    apply = jacobi(torch.tensor([[-2.0, 4.0, 0.0]]))
    assert apply(torch.ones(1, 3)).tolist() == [[0.5, 0.25, 1.0]]
    for wrong in (3.0, torch.ones(3)):
        with pytest.raises(InvalidInputError, match=r"`jacobi\(diagonal=...\)` must be a tensor \(B, s\)"):
            jacobi(wrong)


def test_cg_flags_indefinite_items_and_keeps_a_finite_iterate():
    values = torch.linspace(1, 2, S, dtype=torch.float64).repeat(B, 1)
    values[2, ::2] *= -1
    values[4] = -1
    result = CG().run(DenseMatrix(with_eigenvalues(values), symmetric=True), random(B, S))
    assert result.broken.tolist() == [False, False, True, False, True, False]
    assert result.converged.tolist() == [True, True, False, True, False, True]
    assert result.solution.isfinite().all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_solvable_singular_systems_get_the_shortest_solution(method):
    values = torch.tensor([3.0, 2.0, 1.0, 0.5] + [0.0] * 4, dtype=torch.float64).repeat(B, 1)
    matrix = with_eigenvalues(values)
    if not isinstance(method, CG):
        matrix = with_eigenvalues(values * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64))
    rhs = (matrix @ random(B, 8, 1)).squeeze(-1)
    result = method.run(DenseMatrix(matrix, symmetric=True), rhs)
    assert result.converged.all()
    expected = (torch.linalg.pinv(matrix, rtol=1e-10) @ rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(result.solution, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_systems_without_a_solution_end_unconverged(method):
    matrix = with_eigenvalues(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64).repeat(B, 1))
    rhs = random(B, 5)
    result = method.run(DenseMatrix(matrix, symmetric=True), rhs)
    assert not result.converged.any()
    assert result.solution.isfinite().all()
    if isinstance(method, MINRES):
        assert result.broken.all() and (result.num_steps <= 10).all()
        r = rhs - (matrix @ result.solution.unsqueeze(-1)).squeeze(-1)
        assert (matrix @ r.unsqueeze(-1)).abs().max() < 1e-6  # the least-squares residual


@pytest.mark.parametrize("method", [MINRES(), GMRES()], ids=repr)
def test_saddle_systems_with_redundant_rows(method):
    A = random(B, 3, 8)
    A = torch.cat([A, A[:, :1] + A[:, 1:2]], dim=1)
    operator = Saddle(DiagonalMatrix(random(B, 8).exp()), A)
    rhs = torch.cat([random(B, 8), torch.zeros(B, 4, dtype=torch.float64)], dim=1)
    result = method.run(operator, rhs)
    assert result.converged.all()
    expected = torch.linalg.pinv(operator.dense(), rtol=1e-10) @ rhs.unsqueeze(-1)
    torch.testing.assert_close(result.solution, expected.squeeze(-1), rtol=1e-7, atol=1e-7)


def test_no_step_waits_for_the_device(monkeypatch):
    operator, rhs = operator_for(CG()), random(B, S)
    reads = []
    original = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append(1) or original(self))
    for name in ("item", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a: pytest.fail("a step read a value"))
    for method in METHODS.values():
        reads.clear()
        result = method.run(operator, rhs)
        assert len(reads) <= int(torch.Tensor.__int__(result.num_steps.max())) + 1


def test_products_are_counted():
    operator = operator_for(CG())
    for method in METHODS.values():
        calls = []

        def product(u, calls=calls):
            calls.append(1)
            return operator.matvec(u)

        free = MatrixFree(product, batch=B, size=S, dtype=torch.float64, symmetric=True)
        steps = dataclasses.replace(method, max_steps=7).run(free, random(B, S)).num_steps.max()
        restarts = (7 - 1) // method.restart if isinstance(method, GMRES) else 0
        assert steps == 7 and len(calls) == 7 + restarts


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(B)), name=st.sampled_from(sorted(METHODS)))
def test_permuting_the_batch_permutes_steps_and_answers(seed, order, name):
    method = METHODS[name]
    operator, rhs, items = operator_for(method, seed=seed), random(B, S, seed=seed), torch.tensor(order)
    result = method.run(operator, rhs)
    permuted = method.run(operator.select(items), rhs[items])
    assert (permuted.num_steps - result.num_steps[items]).abs().max() <= 1  # a last step is taken or not by rounding
    torch.testing.assert_close(permuted.solution, result.solution[items], rtol=1e-7, atol=1e-9)
