"""What holds for every kind of problem: derivatives of both orders and modes, transforms, batches."""

import copy
import pickle

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from problems import ALL, Case
from torch.autograd import gradcheck, gradgradcheck

cases = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


def inputs(case: Case, size: int) -> tuple[torch.Tensor, ...]:
    return tuple(x.requires_grad_() for x in case.make(size))


def with_parameters(case: Case):
    """The node as a function of its inputs and of its parameters."""
    node = case.node()
    names = [name for name, _ in node.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in node.parameters()]

    def call(*tensors):
        x, parameters = tensors[: len(tensors) - len(names)], tensors[len(tensors) - len(names) :]
        return torch.func.functional_call(node, dict(zip(names, parameters, strict=True)), x)

    return call, values


@cases
def test_gradient_is_that_of_finite_differences_in_both_modes(case):
    call, parameters = with_parameters(case)
    assert gradcheck(call, (*inputs(case, 2), *parameters), check_forward_ad=True, check_batched_grad=True)


@cases
def test_second_derivative_is_that_of_finite_differences(case):
    call, parameters = with_parameters(case)
    assert gradgradcheck(call, (*inputs(case, 2), *parameters), atol=1e-4)


@cases
def test_forward_mode_is_reverse_mode(case):
    node, x = case.node(), case.make(2)
    tangents = tuple(torch.ones_like(t) * 0.3 for t in x)
    _, forward = torch.func.jvp(node, x, tangents)
    jacobians = torch.func.jacrev(node, argnums=tuple(range(len(x))))(*x)
    reverse = sum((J.flatten(2) @ t.flatten()) for J, t in zip(jacobians, tangents, strict=True))
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-10)


@cases
def test_dual_numbers_carry_the_same_tangent_as_functional_forward_mode(case):
    node, x = case.node(), case.make(2)
    tangents = tuple(torch.ones_like(t) for t in x)
    _, expected = torch.func.jvp(node, x, tangents)
    with fwAD.dual_level():
        y = node(*(fwAD.make_dual(t, d) for t, d in zip(x, tangents, strict=True)))
        torch.testing.assert_close(fwAD.unpack_dual(y).tangent, expected)


@cases
def test_forward_over_reverse_is_reverse_over_reverse(case):
    node, x = case.node(), case.make(2)

    def loss(first, *rest):
        return node(first, *rest).pow(3).sum()

    reverse = torch.func.jacrev(torch.func.grad(loss))(*x)
    forward = torch.func.jacfwd(torch.func.grad(loss))(*x)
    torch.testing.assert_close(forward, reverse, rtol=1e-7, atol=1e-8)


@cases
def test_forward_over_forward_is_reverse_over_reverse(case):
    node, x = case.node(), case.make(1)

    def loss(first, *rest):
        return node(first, *rest).pow(3).sum()

    direction = torch.ones_like(x[0])

    def slope(first):
        return torch.func.jvp(lambda first: loss(first, *x[1:]), (first,), (direction,))[1]

    _, forward = torch.func.jvp(slope, (x[0],), (direction,))
    H = torch.func.jacrev(torch.func.grad(loss))(*x)
    torch.testing.assert_close(forward, H.sum(), rtol=1e-7, atol=1e-8)


@cases
def test_vmap_is_a_loop(case):
    node = case.node()
    x = tuple(t.unflatten(0, (3, 2)) for t in case.make(6))
    mapped = torch.func.vmap(node)(*x)
    looped = torch.stack([node(*(t[i] for t in x)) for i in range(3)])
    torch.testing.assert_close(mapped, looped, rtol=1e-11, atol=1e-11)
    gradient = torch.func.vmap(torch.func.grad(lambda *x: node(*x).square().sum()))(*x)
    expected = torch.func.grad(lambda *x: node(*x).square().sum())(*(t.flatten(0, 1) for t in x))
    torch.testing.assert_close(gradient.flatten(0, 1), expected, rtol=1e-9, atol=1e-10)


@cases
def test_vmap_over_one_of_the_inputs_shares_the_others(case):
    node, x = case.node(), case.make(2)
    starts = torch.stack([x[0], 1.1 * x[0], 0.9 * x[0]])
    mapped = torch.func.vmap(lambda first: node(first, *x[1:]))(starts)
    looped = torch.stack([node(first, *x[1:]) for first in starts])
    torch.testing.assert_close(mapped, looped, rtol=1e-11, atol=1e-11)


@cases
def test_an_item_alone_is_the_item_in_its_batch(case):
    node = case.node()
    x = inputs(case, 7)
    together = node(*x)
    gradient = torch.autograd.grad(together.square().sum(), x)
    for i in range(7):
        item = tuple(t[i : i + 1].detach().requires_grad_() for t in x)
        alone = node(*item)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)
        for g, expected in zip(torch.autograd.grad(alone.square().sum(), item), gradient, strict=True):
            torch.testing.assert_close(g[0], expected[i], rtol=1e-9, atol=1e-11)


@cases
def test_float32_agrees_with_float64(case):
    node, x = case.node(), case.make(3)
    wide = tuple(t.requires_grad_() for t in x)
    narrow = tuple(t.detach().float().requires_grad_() for t in x)
    y = node(*wide)
    y_narrow = copy.deepcopy(node).float()(*narrow)
    assert y_narrow.dtype == torch.float32
    torch.testing.assert_close(y_narrow.double(), y, rtol=1e-4, atol=1e-4)
    g, g_narrow = (torch.autograd.grad(out.sum(), at) for out, at in ((y, wide), (y_narrow, narrow)))
    for a, b in zip(g_narrow, g, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=2e-3)


@cases
def test_an_empty_batch_gives_an_empty_answer_with_a_gradient(case):
    x = inputs(case, 0)
    y = case.node()(*x)
    assert y.shape[0] == 0 and y.shape[1:] == case.node()(*case.make(1)).shape[1:]
    assert all(g.shape == t.shape for g, t in zip(torch.autograd.grad(y.sum(), x), x, strict=True))


@cases
def test_a_poisoned_item_harms_no_other(case):
    clean = case.make(20)
    dirty = tuple(t.clone() for t in clean)
    dirty[0][7] = torch.nan
    others = [i for i in range(20) if i != 7]
    node = case.node()
    results = []
    for x in (clean, dirty):
        x = tuple(t.requires_grad_() for t in x)
        if x[0] is dirty[0]:
            with pytest.warns(match="1 of 20 items did not converge"):
                y = node(*x)
        else:
            y = node(*x)
        loss = y[others].square().sum()
        results.append((y, torch.autograd.grad(loss, (*x, *node.parameters()))))
    (y, g), (y_dirty, g_dirty) = results
    assert y_dirty[7].isnan().all()
    torch.testing.assert_close(y_dirty[others], y[others], rtol=1e-12, atol=1e-12)
    for a, b, t in zip(g_dirty, g, (*clean, *node.parameters()), strict=True):
        rows = others if t.shape[:1] == (20,) else slice(None)
        torch.testing.assert_close(a[rows], b[rows], rtol=1e-9, atol=1e-11)


@cases
def test_nodes_copy_and_pickle(case):
    node, x = case.node(), case.make(2)
    torch.testing.assert_close(copy.deepcopy(node)(*x), node(*x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(node))(*x), node(*x))


@cases
def test_no_grad_and_inference_mode_give_the_answer_without_a_graph(case):
    node, x = case.node(), case.make(2)
    expected = node(*x)
    with torch.no_grad():
        y = node(*x)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected)
    with torch.inference_mode():
        inside = tuple(t.clone() for t in x)
        torch.testing.assert_close(node(*inside), expected.detach())


@cases
def test_checkpointing_gives_the_same_gradient(case):
    from torch.utils.checkpoint import checkpoint

    node, x = case.node(), inputs(case, 3)
    expected = torch.autograd.grad(node(*x).square().sum(), x)
    again = torch.autograd.grad(checkpoint(node, *x, use_reentrant=False).square().sum(), x)
    torch.testing.assert_close(again, expected)
