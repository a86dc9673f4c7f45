"""What the pinned torch gets wrong, and the library steps round.

A test that fails here is good news: the detour that it names can go.
"""

import pytest
import torch
import torch._dynamo
import torch.autograd.forward_ad as fwAD
from problems import randn
from torch import Tensor
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
from torch.func import grad, jacfwd, jvp

import torchddn as ddn

# The compiler hides this warning of its own, but not from a filter that turns warnings into errors.
compiling = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


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


class Doubled(torch.autograd.Function):
    """x + x, whose derivative is said to be 7, so that it is seen who is asked."""

    @staticmethod
    def forward(*x):
        return x[0] + x[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, v):
        return 7 * v


class Forward(Doubled):
    """The same with a forward mode."""

    @staticmethod
    def jvp(ctx, dx):
        return 7 * dx


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@compiling
def test_a_compiled_transform_drops_a_derivative_in_silence():
    """``_handmade.solve`` breaks the graph."""
    x = torch.tensor(3.0)
    assert grad(lambda x: Doubled.apply(x))(x) == 7
    assert compiled(grad(lambda x: Doubled.apply(x)))(x) == 2


@compiling
def test_the_compiler_refuses_a_function_with_a_forward_mode():
    """``_Compiled`` is ``_HandMade`` without."""
    x = torch.tensor(3.0, requires_grad=True)
    compiled(Doubled.apply)(x)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="custom jvp"):
        compiled(Forward.apply)(x)


@compiling
def test_the_compiler_hands_a_function_of_any_number_of_inputs_one_too_many():
    """``_handmade.solve`` calls the operation if nothing is to be differentiated."""
    x = torch.tensor(3.0)
    assert Doubled.apply(x, x) == 6
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        compiled(Doubled.apply)(x, x)


@compiling
def test_the_compiler_takes_a_tensor_for_different_from_every_member_of_an_enum():
    """What may be compiled compares with ``int(Status.CONVERGED)``."""
    status = torch.tensor([0, 5])
    assert (status != ddn.Status.CONVERGED).tolist() == [False, True]
    assert compiled(lambda status: status != ddn.Status.CONVERGED)(status) is True
    assert compiled(lambda status: status != int(ddn.Status.CONVERGED))(status).tolist() == [False, True]


@compiling
def test_an_operation_without_a_result_is_dropped_unless_it_has_an_effect():
    """``_operations.look`` has one."""
    seen = []

    @torch.library.custom_op("torchddn_traps::look", mutates_args=())
    def look(x: Tensor) -> None:
        seen.append(x)

    look.register_fake(lambda x: None)

    def function(x):
        look(x)
        return x + 1

    compiled(function)(torch.ones(2))
    assert not seen
    _register_effectful_op("torchddn_traps::look", _EffectType.ORDERED)
    compiled(function)(torch.ones(2))
    assert len(seen) == 1
