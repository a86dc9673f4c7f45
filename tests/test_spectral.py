"""Eigenvectors: values, derivatives of the subspace also where eigenvalues coincide, and what cannot be known."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from problems import randn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError, SolveError
from torchddn.functional import bottom_eigenvectors, top_eigenvectors
from torchddn.nn import BottomEigenvectors, TopEigenvectors
from torchddn.status import Status

DOUBLE = torch.float64
CALLS = {"top_eigenvectors": top_eigenvectors, "bottom_eigenvectors": bottom_eigenvectors}
every_call = pytest.mark.parametrize("name", CALLS)
seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=12)


def projector(Y):
    return Y @ Y.mT


def with_eigenvalues(*values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    Q = torch.linalg.qr(randn(len(values), len(values), seed=seed)).Q
    X = (Q * torch.tensor(values, dtype=DOUBLE)) @ Q.mT
    return (X + X.mT) / 2


def checked(function, X):
    """First and second derivatives in all modes by finite differences."""
    X = X.detach().clone().requires_grad_()
    return gradcheck(function, (X,), check_forward_ad=True) and gradgradcheck(function, (X,), check_fwd_over_rev=True)


# Values


@every_call
@pytest.mark.parametrize("k", [1, 2, 5])
def test_eigenvectors_agree_with_numpy(name, k):
    X = randn(3, 5, 5)
    found = CALLS[name](X, k, solution=True)
    for i in range(3):
        values, vectors = np.linalg.eigh((X[i] + X[i].mT).numpy() / 2)
        if name == "top_eigenvectors":
            values, vectors = values[::-1], vectors[:, ::-1]
        np.testing.assert_allclose(found.equality_multipliers[i].numpy(), values[:k], rtol=1e-11, atol=1e-12)
        overlap = vectors[:, :k].T @ found.y[i].numpy()
        np.testing.assert_allclose(abs(overlap), np.eye(k), atol=1e-11)
    torch.testing.assert_close(found.objective, found.equality_multipliers.sum(-1))
    assert (found.stationarity < 1e-13).all() and found.status.tolist() == [0, 0, 0]


@every_call
def test_the_largest_entry_is_positive_and_of_equals_the_first(name):
    Y = CALLS[name](randn(40, 6, 6), 3)
    leading = Y.gather(1, Y.abs().argmax(dim=1, keepdim=True))
    assert (leading > 0).all()
    for dtype in (torch.float32, DOUBLE):
        y = bottom_eigenvectors(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=dtype)).squeeze(-1)
        torch.testing.assert_close(y, torch.tensor([1.0, -1.0], dtype=dtype) / 2**0.5)


def test_no_frame_of_many_has_a_larger_trace():
    X = randn(6, 6)
    best = top_eigenvectors(X, 2, solution=True).objective
    frames = torch.linalg.qr(randn(500, 6, 2)).Q
    assert (vmap(torch.trace)(frames.mT @ X @ frames) < best).all()


@few
@hypothesis.given(seeds, st.integers(1, 6), st.sampled_from([1e-12, 1.0, 1e8]), st.booleans())
def test_scale_shift_and_turn_leave_the_subspace(seed, k, scale, strided):
    X, Q = randn(6, 6, seed=seed), torch.linalg.qr(randn(6, 6, seed=seed + 1)).Q
    expected = Q @ projector(top_eigenvectors(X, k)) @ Q.mT
    changed = Q @ (scale * (X + 3 * torch.eye(6, dtype=DOUBLE))) @ Q.mT
    changed = torch.stack([changed, changed], dim=-1)[..., 0] if strided else changed
    torch.testing.assert_close(projector(top_eigenvectors(changed, k)), expected, rtol=1e-7, atol=1e-7)


# Derivatives


@every_call
@pytest.mark.parametrize("k", [1, 2, 4])
def test_derivatives_of_the_subspace(name, k):
    assert checked(lambda X: projector(CALLS[name](X, k)), randn(4, 4))


@every_call
def test_derivatives_of_a_single_vector(name):
    assert checked(lambda X: CALLS[name](X).pow(3), randn(2, 3, 3))


@every_call
def test_derivatives_of_eigenvalues(name):
    assert checked(lambda X: CALLS[name](X, 2, solution=True).equality_multipliers, randn(4, 4))


@pytest.mark.parametrize("values, k", [((3, 3, 1, 0), 2), ((3, 3, 3, 0.5, 0.5), 3), ((2, 1, 1, 1), 1)])
def test_equal_eigenvalues_on_one_side_of_the_gap_do_no_harm(values, k):
    assert checked(lambda X: projector(top_eigenvectors(X, k)), with_eigenvalues(*values))


def test_autograd_through_eigh_fails_where_the_node_does_not():
    X, W = with_eigenvalues(3, 3, 1, 0).requires_grad_(), randn(4, 4)
    (ours,) = torch.autograd.grad((W * projector(top_eigenvectors(X, 2))).sum(), X)
    apart = (X.detach() + 1e-3 * randn(4, 4, seed=3)).requires_grad_()
    nearby = [
        torch.autograd.grad((W * projector(Y)).sum(), apart)[0]
        for Y in (top_eigenvectors(apart, 2), torch.linalg.eigh((apart + apart.mT) / 2)[1][:, 2:])
    ]
    torch.testing.assert_close(*nearby, rtol=1e-9, atol=1e-9)
    (theirs,) = torch.autograd.grad((W * projector(torch.linalg.eigh(X)[1][:, 2:])).sum(), X)
    expected = 0
    step = randn(4, 4, seed=4)
    for sign in (1, -1):
        expected = expected + sign * (W * projector(top_eigenvectors(X.detach() + sign * 1e-6 * step, 2))).sum() / 2e-6
    assert abs((ours * step).sum() - expected) < 1e-7
    assert not abs((theirs * step).sum() - expected) < 1e-2


def test_the_engine_has_the_same_derivatives():
    class Smallest(ddn.Problem):
        def objective(self, y, X):
            return y @ X @ y

        def equality(self, y, X):
            return y.square().sum() - 1.0

        def solve(self, X):
            return bottom_eigenvectors(X).squeeze(-1)

    X = randn(3, 4, 4).requires_grad_()
    nodes = (ddn.DeclarativeNode(Smallest(), on_failure="raise"), lambda X: bottom_eigenvectors(X).squeeze(-1))
    answers = []
    for node in nodes:
        (first,) = torch.autograd.grad(node(X).pow(3).sum(), X, create_graph=True)
        answers.append((first, *torch.autograd.grad((first * first.detach().cos()).sum(), X)))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_the_smallest_eigenvalue_on_a_plane():
    # The third coordinate is -(u1 + u2), so that x enters a matrix of two rows.
    x = torch.tensor([0.50740436, 0.31461995, 0.4479928], dtype=DOUBLE)
    X = torch.stack([x[0] + x[2], x[2], x[2], x[1] + x[2]]).reshape(2, 2)
    found = bottom_eigenvectors(X, solution=True)
    assert abs(found.objective.item() - 0.4007593810589066) < 1e-15
    u = found.y.squeeze(-1) * found.y[0].sign()
    expected = torch.tensor([0.6283508, -0.7779301, 0.1495793], dtype=DOUBLE)
    torch.testing.assert_close(torch.cat([u, -u.sum(0, keepdim=True)]), expected, rtol=0, atol=1e-7)


def test_a_basis_does_not_turn_within_its_span():
    X, dX = randn(5, 5), randn(5, 5, seed=1)
    Y, dY = jvp(lambda X: top_eigenvectors(X, 2), (X,), (dX,))
    torch.testing.assert_close(Y.mT @ dY, torch.zeros(2, 2, dtype=DOUBLE), rtol=0, atol=1e-13)


def test_hessians_agree_in_every_nesting_of_modes_and_under_vmap():
    X, W = randn(3, 4, 4), randn(4, 4, seed=1)

    def loss(X):
        return (W * projector(top_eigenvectors(X, 2))).sum()

    expected = torch.stack([torch.autograd.functional.hessian(loss, item) for item in X])
    for nested in (hessian(loss), jacfwd(jacfwd(loss)), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(vmap(nested)(X), expected, rtol=1e-9, atol=1e-9)


def test_third_derivatives_are_finite_where_eigenvalues_coincide():
    X, W = with_eigenvalues(3, 3, 1), randn(3, 3)

    def along(t):
        return (W * projector(top_eigenvectors(X + t * W, 2))).sum()

    t = torch.zeros((), dtype=DOUBLE)
    third = grad(grad(grad(along)))(t)
    steps = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=DOUBLE) * 1e-2
    second = [along(s) for s in steps]
    difference = (second[3] - 2 * second[2] + 2 * second[1] - second[0]) / (2 * 1e-6)
    assert abs(third - difference) < 1e-2 * abs(difference)


# Degenerate cases


@every_call
def test_a_closed_gap_is_told_when_a_gradient_is_asked_for(name):
    X = torch.stack([with_eigenvalues(3, 2, 2, 1), with_eigenvalues(2, 2, 2, 2), with_eigenvalues(4, 3, 2, 1)])
    X.requires_grad_()
    Y = CALLS[name](X, 2)
    assert Y.isfinite().all()
    with pytest.warns(DegenerateGradientWarning, match=rf"`{name}`: the gradient of 2 of 3 items .* \(items 0, 1\)"):
        (g,) = torch.autograd.grad(projector(Y).pow(3).sum(), X)
    assert g.isfinite().all() and not g[1].any()


@every_call
def test_items_do_not_interact(name):
    X = randn(4, 5, 5).requires_grad_()
    Y = CALLS[name](X, 2)
    (g,) = torch.autograd.grad(Y.pow(3).sum(), X)
    for i in range(4):
        alone = CALLS[name](X[i], 2)
        torch.testing.assert_close(alone, Y[i], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(torch.autograd.grad(alone.pow(3).sum(), X)[0][i], g[i], rtol=1e-11, atol=1e-12)


@every_call
@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_an_item_that_is_not_finite_spoils_only_itself(name, poison):
    X, shared = randn(3, 4, 4), torch.ones(4, dtype=DOUBLE).requires_grad_()
    bad = X.clone()
    bad[1, 2, 0] = poison
    with pytest.warns(ConvergenceWarning, match="1 x NON_FINITE"):
        found = CALLS[name](bad + torch.diag(shared), 2, solution=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert found.y[1].isnan().all() and found.equality_multipliers[1].isnan().all()
    (g,) = torch.autograd.grad(found.y.pow(3).sum() + found.equality_multipliers.sum(), shared)
    kept = CALLS[name](X[[0, 2]] + torch.diag(shared), 2, solution=True)
    (expected,) = torch.autograd.grad(kept.y.pow(3).sum() + kept.equality_multipliers.sum(), shared)
    torch.testing.assert_close(g, expected, rtol=1e-11, atol=1e-12)
    with pytest.raises(SolveError, match="NON_FINITE"):
        CALLS[name](bad, on_failure="raise")


# Shapes, dtypes, modules


@every_call
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_dtypes_follow_the_data(name, dtype, atol):
    X = randn(2, 3, 4, 4).to(dtype).requires_grad_()
    Y = CALLS[name](X, 2)
    assert Y.dtype == dtype and Y.shape == (2, 3, 4, 2)
    torch.testing.assert_close(projector(Y.double()), projector(CALLS[name](X.double(), 2)), rtol=0, atol=atol)
    assert torch.autograd.grad(Y.sum(), X)[0].dtype == dtype


def test_small_and_empty():
    assert top_eigenvectors(torch.full((1, 1), -3.0)).tolist() == [[1.0]]
    assert top_eigenvectors(torch.zeros(0, 3, 3), 2).shape == (0, 3, 2)
    assert torch.equal(projector(top_eigenvectors(torch.zeros(3, 3), 3)), torch.eye(3))


def test_modules_are_the_functions():
    X = randn(2, 4, 4)
    assert torch.equal(TopEigenvectors(2)(X), top_eigenvectors(X, 2))
    assert torch.equal(BottomEigenvectors(2).solve(X).y, bottom_eigenvectors(X, 2))
    assert repr(TopEigenvectors(3)) == "TopEigenvectors(k=3)"
    with ddn.diagnostics() as seen:
        vmap(BottomEigenvectors())(X)
    assert seen.records[0].statuses == {"CONVERGED": 2} and seen.records[0].call == "bottom_eigenvectors"


@every_call
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"X": 3.0}, "(X=...)` must be a tensor"),
        ({"X": torch.zeros(2, 3)}, "(X=...)` must be square matrices, (*B, m, m), got shape (2, 3)."),
        ({"k": 0}, "(k=...)` must be a positive integer, got 0."),
        ({"k": True}, "(k=...)` must be a positive integer, got True."),
        ({"k": 4}, "(k=...)` must be at most the size of the matrices, 3, got 4."),
        ({"on_failure": "explode"}, "got 'explode'."),
        ({"solution": None}, "(solution=...)` must be True or False, got None."),
    ],
)
def test_mistakes_are_told(name, changes, message):
    with pytest.raises(InvalidInputError, match=re.escape(message)) as error:
        CALLS[name](**{"X": torch.eye(3), **changes})
    assert name in str(error.value)
