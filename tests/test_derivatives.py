"""Batched derivatives against torch.func, in and out of its transforms."""

import pytest
import torch
from problems import randn

from torchddn import derivatives
from torchddn.derivatives import Linearization, gradient, hessian, jacobian, jvp, value_and_gradient, vjp


def f(y):
    return y.pow(3).sum(-1) + y.prod(-1)


def F(y):
    return torch.stack([y.sum(-1).sin(), (y[:, 0] * y[:, 1]).exp(), y.square().sum(-1), y[:, 0]], dim=-1)


def expected(function, y, derivative):
    return torch.func.vmap(derivative(lambda row: function(row[None])[0]))(y)


def test_values_and_derivatives_are_those_of_functional_autograd():
    y = randn(5, 3)
    value, f_y = value_and_gradient(f, y)
    torch.testing.assert_close(value, f(y))
    torch.testing.assert_close(f_y, expected(f, y, torch.func.grad))
    torch.testing.assert_close(hessian(f, y), expected(f, y, torch.func.hessian))
    torch.testing.assert_close(jacobian(F, y), expected(F, y, torch.func.jacrev))


def test_products_are_those_of_the_dense_jacobian():
    y, v, t = randn(5, 3), randn(5, 4, seed=1), randn(5, 3, seed=2)
    J = jacobian(F, y)
    K = Linearization(F, y)
    for product in (vjp(F, (y,), v)[0], K.vjp(v)):
        torch.testing.assert_close(product, torch.einsum("brm,br->bm", J, v))
    for product in (jvp(F, (y,), (t,)), K.jvp(t)):
        torch.testing.assert_close(product, torch.einsum("brm,bm->br", J, t))
    torch.testing.assert_close(K.dense(), J)


def test_tangents_of_none_stand_still():
    a, b = randn(2, 3), randn(2, 3, seed=1)

    def product(a, b):
        return a * b

    torch.testing.assert_close(jvp(product, (a, b), (None, a)), a * a)


@pytest.mark.parametrize(
    "function, rows",
    [(lambda y: y.new_ones(y.shape[0], 2), 2), (lambda y: y.detach() * 2, 3), (lambda y: y[:, :0], 0)],
    ids=["constant", "detached", "no rows"],
)
def test_functions_that_do_not_depend_on_their_argument_have_derivative_zero(function, rows):
    y = randn(2, 3)
    assert torch.equal(jacobian(function, y), torch.zeros(2, rows, 3, dtype=torch.float64))
    assert torch.equal(jvp(function, (y,), (y,)), torch.zeros(2, rows, dtype=torch.float64))


def test_a_value_that_depends_on_another_graph_only_has_derivative_zero():
    w = randn(2, 3).requires_grad_()
    assert torch.equal(jacobian(lambda y: w * 2, randn(2, 3)), torch.zeros(2, 3, 3, dtype=torch.float64))


def test_derivatives_are_partial_where_arguments_depend_on_each_other():
    x = randn(2, 3).requires_grad_()
    y = x * 2
    (g,) = vjp(lambda x: (x * y).sum(-1), (x,), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(g, y)
    (second,) = torch.autograd.grad(g.sum(), x)
    torch.testing.assert_close(second, torch.full_like(x, 2.0))


def test_results_have_a_graph_exactly_when_grad_mode_is_on():
    y = randn(2, 3).requires_grad_()
    assert gradient(f, y).requires_grad
    with torch.no_grad():
        assert not gradient(f, y).requires_grad
        assert not hessian(f, y).requires_grad


def test_inside_a_transform_the_answers_are_the_same():
    y, v = randn(4, 5, 3), randn(4, 5, 4, seed=1)
    mapped = torch.func.vmap(lambda y: hessian(f, y))(y)
    torch.testing.assert_close(mapped, torch.stack([hessian(f, item) for item in y]))
    mapped = torch.func.vmap(lambda y, v: vjp(F, (y,), v)[0])(y, v)
    torch.testing.assert_close(mapped, torch.stack([vjp(F, (a,), b)[0] for a, b in zip(y, v, strict=True)]))
    third = torch.func.grad(lambda y: hessian(f, y).sum())(y[0])
    torch.testing.assert_close(third, torch.autograd.grad(hessian(f, y0 := y[0].requires_grad_()).sum(), y0)[0])


def test_rows_are_taken_in_pieces_when_they_are_large(monkeypatch):
    y = randn(5, 3)
    whole = jacobian(F, y)
    sizes = []
    vmap = torch.func.vmap
    monkeypatch.setattr(torch.func, "vmap", lambda row: lambda chunk: (sizes.append(len(chunk)), vmap(row)(chunk))[1])
    monkeypatch.setattr(derivatives, "ROWS_BUDGET", 200)
    torch.testing.assert_close(jacobian(F, y, work=100), whole)
    assert sizes == [2, 2]
