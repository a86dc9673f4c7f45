"""Relations that must hold whatever the numbers: batches, permutations, scalings, changes of variable."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ALL, CurvedAndFlat, LinearOnEllipse, SmoothBowl, randn

import torchddn as ddn

seeds = st.integers(0, 10**6)
few = settings(max_examples=15)


def solve(node, *x):
    x = tuple(t.detach().requires_grad_() for t in x)
    y = node(*x)
    return y, torch.autograd.grad(y.square().sum(), x)


@few
@given(seed=seeds, which=st.sampled_from(range(len(ALL))))
def test_permuting_the_batch_permutes_the_answer_and_the_gradient(seed, which):
    case = ALL[which]
    x = case.make(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    y, g = solve(case.node(), *x)
    y_moved, g_moved = solve(case.node(), *(t[order] for t in x))
    torch.testing.assert_close(y_moved, y[order], rtol=1e-11, atol=1e-11)
    for a, b in zip(g_moved, g, strict=True):
        torch.testing.assert_close(a, b[order], rtol=1e-9, atol=1e-10)


@few
@given(seed=seeds, scale=st.sampled_from([1e-6, 1e-3, 1e3, 1e6]))
def test_scaling_the_objective_scales_the_multipliers_and_nothing_else(seed, scale):
    class Scaled(CurvedAndFlat):
        def objective(self, y, x):
            return scale * super().objective(y, x)

    x = randn(3, 4, seed=seed)
    plain, scaled = ddn.DeclarativeNode(CurvedAndFlat()).solve(x), ddn.DeclarativeNode(Scaled()).solve(x)
    assert scaled.status.tolist() == plain.status.tolist()
    torch.testing.assert_close(scaled.y, plain.y, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(scaled.equality_multipliers / scale, plain.equality_multipliers, rtol=1e-6, atol=1e-7)


@few
@given(seed=seeds, scale=st.sampled_from([1e-3, 1e3]))
def test_scaling_a_constraint_leaves_answer_and_gradient(seed, scale):
    class Scaled(LinearOnEllipse):
        def equality(self, y, c, a):
            return scale * super().equality(y, c, a)

    x = randn(3, 3, seed=seed), 0.3 * randn(3, 3, seed=seed + 1)
    y, g = solve(ddn.DeclarativeNode(LinearOnEllipse()), *x)
    y_scaled, g_scaled = solve(ddn.DeclarativeNode(Scaled()), *x)
    torch.testing.assert_close(y_scaled, y, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(g_scaled, g, rtol=1e-7, atol=1e-8)


@few
@given(seed=seeds, size=st.integers(1, 5))
def test_a_batch_equals_its_items(seed, size):
    x = randn(size, 3, seed=seed)
    node = ddn.DeclarativeNode(SmoothBowl())
    whole = node.solve(x)
    for i in range(size):
        item = node.solve(x[i : i + 1])
        torch.testing.assert_close(item.y[0], whole.y[i], rtol=1e-12, atol=1e-12)
        assert item.status[0] == whole.status[i] and item.num_steps[0] == whole.num_steps[i]


@few
@given(seed=seeds)
def test_a_linear_change_of_variable_changes_the_answer_by_its_inverse(seed):
    M = torch.eye(3, dtype=torch.float64) + 0.2 * randn(3, 3, seed=seed)
    x = randn(2, 3, seed=seed + 1)
    start = torch.zeros(3, dtype=torch.float64)

    def f(y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()

    plain = ddn.argmin(f, start, x)
    changed = ddn.argmin(lambda z, x: f(M @ z, x), start, x)
    torch.testing.assert_close(changed @ M.T, plain, rtol=1e-8, atol=1e-9)
