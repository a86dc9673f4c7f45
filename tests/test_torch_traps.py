"""What the pinned torch gets wrong, and the library steps round.

A test that fails here is good news: the detour that it names can go.
"""

import torch
import torch.autograd.forward_ad as fwAD
from problems import randn
from torch.func import grad, jacfwd, jvp


class Cube(torch.autograd.Function):
    """x^3 with a hand-written forward rule."""

    detour = False

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * v

    @staticmethod
    def jvp(ctx, dx):
        (x,) = ctx.saved_tensors
        if not Cube.detour:
            return 3 * x**2 * dx
        with fwAD._set_fwd_grad_enabled(True):
            return 3 * fwAD.unpack_dual(x).primal ** 2 * dx


def second_derivative(x):
    one = torch.ones_like(x)
    return jvp(lambda x: jvp(Cube.apply, (x,), (one,))[1], (x,), (one,))[1]


def test_nested_forward_mode_sees_zeros_unless_forward_mode_is_switched_on(monkeypatch):
    """``ImplicitRoot.jvp`` and ``_HandMade.jvp``."""
    x = torch.tensor(2.0, dtype=torch.float64)
    assert second_derivative(x) == 0
    monkeypatch.setattr(Cube, "detour", True)
    assert second_derivative(x) == 12


def test_solve_has_wrong_second_derivatives_in_forward_over_forward_mode():
    """No differentiable code of the library calls it: systems are roots whose derivative solves again."""
    A, b = randn(3, 3) + 3 * torch.eye(3, dtype=torch.float64), randn(3, seed=1)

    def f(t):
        return torch.linalg.solve(A + t * t * torch.eye(3, dtype=torch.float64), b).sum()

    t = torch.tensor(0.7, dtype=torch.float64)
    right = torch.autograd.functional.hessian(f, t)
    assert not torch.allclose(jacfwd(jacfwd(f))(t), right)


def test_batched_gradients_hand_a_function_tensors_of_an_older_vmap():
    """``_through_older_vmap``, and ``Linearization``, which maps with ``torch.func.vmap``."""
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            seen.append(torch._C._functorch.is_legacy_batchedtensor(v))
            return v * 2

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Spy.apply(x), x, torch.eye(2), is_grads_batched=True)
    assert seen == [True]


def test_materialized_batched_gradients_forget_the_batch():
    """``Linearization`` makes its own zeros."""
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    v = torch.ones(5, 2)
    (zeros,) = torch.autograd.grad(other * 2, x, v, is_grads_batched=True, materialize_grads=True)
    assert zeros.shape == (2,)  # should be (5, 2), as of any other gradient


def test_a_captured_tensor_gets_no_gradient_and_no_error():
    """``capture``, and the check at the door."""
    weight = torch.tensor(3.0, requires_grad=True)

    class Times(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return weight * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            return weight * v

    y = Times.apply(torch.tensor(2.0, requires_grad=True))
    y.backward()
    assert weight.grad is None
    assert grad(lambda x: x * weight)(torch.tensor(2.0)) == 3
