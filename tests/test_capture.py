"""Which tensors are found, and that a copy with others in their place leaves the original alone."""

import functools

import torch
from torch import nn

from torchddn.capture import is_live, live_tensors, rebuild

SHARED = torch.ones(2, requires_grad=True)


def uses_a_global(y):
    return (SHARED * y).sum()


def calls_a_helper(y):
    def inner(y):
        return uses_a_global(y)

    return inner(y)


def weight():
    return torch.full((2,), 3.0, requires_grad=True)


def identities(tensors):
    return {id(tensor) for tensor in tensors}


def test_closures_defaults_globals_partials_methods_and_containers_are_searched():
    a, b, c, d, e = (weight() for _ in range(5))
    layer = nn.Linear(2, 2)
    layer.extra = {"list": [d]}

    def closure(y, b=b, *, c=c):
        return (a * b * c * layer(y)).sum()

    found = live_tensors(functools.partial(closure, e))
    assert identities(found) == identities([a, b, c, d, e, *layer.parameters()])
    assert identities(live_tensors(layer.forward)) == identities([d, *layer.parameters()])
    assert identities(live_tensors(calls_a_helper)) == {id(SHARED)}


def test_what_is_not_differentiable_is_not_live():
    assert not is_live(torch.ones(2))
    assert not is_live(torch.ones(2, dtype=torch.long))
    assert is_live(nn.Parameter(torch.ones(2), requires_grad=False))
    assert is_live(weight() * 2)


def test_the_copy_computes_with_the_replacement_and_the_original_does_not_change():
    layer = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh())
    scale = weight()

    def function(y):
        return layer(scale * y)

    replaced = rebuild(function, lambda t: torch.zeros_like(t) if t is scale else t)
    y = torch.ones(2)
    assert replaced(y) == 0
    assert function(y) == layer(3 * y)
    swapped = rebuild(function, lambda t: torch.zeros_like(t) if t is layer[0].weight else t)
    assert swapped(y) == 0 and isinstance(layer[0].weight, nn.Parameter)


def test_what_reaches_no_replaced_tensor_is_shared():
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    pair = [layer, other]
    copy = rebuild(pair, lambda t: t * 2 if t is layer.weight else t)
    assert copy[1] is other and copy[0] is not layer
    assert rebuild(pair, lambda t: t) is pair


def test_tied_parameters_are_found_once_and_replaced_together():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    assert len(live_tensors(network)) == 1
    copy = rebuild(network, lambda t: torch.eye(2))
    assert torch.equal(copy(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_functions_that_mention_themselves_are_searched_once():
    scale = weight()

    def countdown(y, n=3):
        return y.sum() if n == 0 else countdown(scale * y, n - 1)

    assert identities(live_tensors(countdown)) == {id(scale)}


def test_a_global_helper_is_rebuilt_with_its_tensor():
    copy = rebuild(calls_a_helper, lambda t: torch.zeros(2) if t is SHARED else t)
    assert copy(torch.ones(2)) == 0 and calls_a_helper(torch.ones(2)) == 2
