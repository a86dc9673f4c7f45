"""Classifiers that are fitted inside the network: the margins are the largest, and the gradients are exact."""

import re

import cvxpy as cp
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC, LinearSVC
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchddn as ddn
from torchddn.functional import ridge_head, support_vector_machine, weighted_least_squares

D = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def episodes(B: int, way: int, shot: int, m: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features ``(B, way * shot, m)`` around a center for each class, and labels."""
    labels = torch.arange(way).repeat_interleave(shot)
    return randn(B, way, m, seed=seed)[:, labels] + spread * randn(B, way * shot, m, seed=seed + 1), labels


def radial(x: Tensor, z: Tensor, gamma: float) -> Tensor:
    return (-gamma * torch.cdist(x, z).square()).exp()


X, LABELS = episodes(2, 3, 3, 4)
SMALL, SMALL_LABELS = episodes(2, 3, 2, 3)
C = torch.tensor([[0.7], [1.3]], dtype=D)


@pytest.mark.parametrize("way, shot, m, C", [(3, 4, 2, 0.5), (3, 4, 2, 20.0), (4, 2, 10, 1.0), (5, 5, 8, 0.1)])
def test_the_machine_is_that_of_scikit_learn(way, shot, m, C):
    X, labels = episodes(2, way, shot, m)
    ours = support_vector_machine(X, labels, C).weights
    for x, weights in zip(X, ours, strict=True):
        theirs = LinearSVC(
            C=C, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=500_000, random_state=0
        ).fit(x.numpy(), labels.numpy())
        torch.testing.assert_close(weights, torch.from_numpy(theirs.coef_), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_two_classes_are_the_ordinary_machine_with_half_the_weights_each(kernel):
    """``w_1 = -w_0 = w / 2``, and ``|w_0|^2 + |w_1|^2 = |w|^2 / 2``: the same problem with twice the C.

    The machine of scikit-learn has an intercept: mirrored examples make it zero.
    """
    (x, *_), _ = episodes(1, 2, 5, 3)
    x, labels = torch.cat([x, -x]), torch.tensor([0] * 10 + [1] * 10)
    K = x @ x.mT if kernel == "linear" else radial(x, x, 0.4) - radial(x, -x, 0.4)
    machine = support_vector_machine(K, labels, 0.6, kernel="precomputed")
    theirs = SVC(C=1.2, kernel="precomputed", tol=1e-10).fit(K.numpy(), labels.numpy())
    logits = machine.predict(K)
    expected = torch.from_numpy(theirs.decision_function(K.numpy()))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_the_kernel_machine_solves_the_problem_that_cvxpy_states():
    price = torch.tensor([0.3, 0.5, 0.7, 0.4, 0.6, 0.8, 0.2, 0.9, 1.0], dtype=D)
    found = support_vector_machine(X[0], LABELS, price, kernel="rbf", gamma=0.3, solution=True)
    K, own = radial(X[0], X[0], 0.3), torch.nn.functional.one_hot(LABELS).to(D)
    a = cp.Variable((9, 3))
    objective = 0.5 * sum(cp.quad_form(a[:, k], cp.psd_wrap(K.numpy())) for k in range(3)) - cp.sum(
        cp.multiply(own.numpy(), a)
    )
    limits = (price.unsqueeze(1) * own).numpy()
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(a, axis=1) == 0, a <= limits])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    torch.testing.assert_close(found.y.coefficients, torch.from_numpy(a.value), rtol=1e-6, atol=1e-7)
    assert found.objective.item() == pytest.approx(problem.value, abs=1e-9)
    assert found.feasibility < 1e-12


def primal(X: Tensor, labels: Tensor, weights: Tensor, C: Tensor) -> Tensor:
    scores = X @ weights.mT
    own = scores.gather(-1, labels.expand(len(X), -1).unsqueeze(-1))
    margins = (scores - own + 1).scatter(-1, labels.expand(len(X), -1).unsqueeze(-1), 0.0)
    return 0.5 * weights.square().sum((1, 2)) + (C * margins.amax(-1)).sum(-1)


def test_primal_and_dual_objective_agree():
    found = support_vector_machine(X, LABELS, C, solution=True)
    torch.testing.assert_close(primal(X, LABELS, found.y.weights, C), -found.objective)


def test_a_kernel_that_is_the_linear_one_gives_the_same_logits():
    query = randn(2, 5, 4, seed=9)
    linear = support_vector_machine(X, LABELS, C).predict(query)
    given = support_vector_machine(X @ X.mT, LABELS, C, kernel="precomputed").predict(query @ X.mT)
    torch.testing.assert_close(given, linear)


def machine_outputs(X: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    found = support_vector_machine(X, SMALL_LABELS, C, solution=True)
    return found.y.coefficients, found.y.weights


def test_derivatives_of_the_machine():
    inputs = (SMALL.clone().requires_grad_(), C.clone().requires_grad_())
    assert gradcheck(machine_outputs, inputs, check_forward_ad=True)
    assert gradgradcheck(machine_outputs, inputs)


def test_derivatives_of_the_radial_machine_and_of_a_price_for_each_example():
    def logits(X, price, gamma, query):
        return support_vector_machine(X, SMALL_LABELS, price, kernel="rbf", gamma=gamma).predict(query)

    price = (0.2 + randn(2, 6, seed=4).abs()).requires_grad_()
    gamma = torch.tensor([0.2, 0.5], dtype=D, requires_grad=True)
    inputs = (SMALL.clone().requires_grad_(), price, gamma, randn(2, 2, 3, seed=5).requires_grad_())
    assert gradcheck(logits, inputs)
    assert gradgradcheck(logits, inputs)


def test_more_examples_than_features_leave_the_gradient_exact():
    """The kernels are singular; which examples support is not in doubt."""
    X, labels = episodes(2, 3, 4, 2, spread=0.8, seed=3)
    X.requires_grad_()
    assert gradcheck(lambda X: support_vector_machine(X, labels, 0.5).weights, X)


def test_an_example_given_twice_makes_coefficients_many_and_weights_one():
    twice = torch.cat([X, X], dim=1).requires_grad_()
    once = X.clone().requires_grad_()
    v = randn(2, 3, 4, seed=3)
    weights = support_vector_machine(twice, LABELS.repeat(2), 0.5 * C).weights
    expected = support_vector_machine(once, LABELS, C).weights
    torch.testing.assert_close(weights, expected)
    (theirs,) = torch.autograd.grad((expected * v).sum(), once)
    (ours,) = torch.autograd.grad((weights * v).sum(), twice)
    torch.testing.assert_close(ours[:, :9] + ours[:, 9:], theirs)


HEADS = {
    "machine": lambda X: support_vector_machine(X, LABELS, 0.7).weights,
    "ridge": lambda X: ridge_head(X, torch.nn.functional.one_hot(LABELS).to(X), 0.7).weights,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_vmap_of_the_value_and_of_the_gradient_is_a_loop(head):
    X, _ = episodes(6, 3, 3, 4)
    X = X.reshape(3, 2, 9, 4)
    torch.testing.assert_close(torch.func.vmap(head, 1, 1)(X), torch.stack([head(x) for x in X.unbind(1)], 1))
    gradient = torch.func.grad(lambda x: head(x).sin().sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(X), torch.stack([gradient(x) for x in X]))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_poisoned_item_harms_nobody(head):
    X, _ = episodes(5, 3, 3, 4)
    bad = X.clone()
    bad[2, 1, 1] = torch.nan
    bad.requires_grad_()
    good = X.clone().requires_grad_()
    with pytest.warns(ddn.ConvergenceWarning, match="1 of 5 items"):
        poisoned = head(bad)
    clean = head(good)
    rest = [0, 1, 3, 4]
    assert poisoned[2].isnan().all()
    torch.testing.assert_close(poisoned[rest], clean[rest])
    (ours,) = torch.autograd.grad(poisoned[rest].sin().sum() + poisoned[2].sum(), bad)
    (theirs,) = torch.autograd.grad(clean[rest].sin().sum(), good)
    torch.testing.assert_close(ours[rest], theirs[rest])
    assert (ours[2] == 0).all()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_an_item_alone_is_the_item_in_its_batch(head):
    X, _ = episodes(4, 3, 3, 4)
    torch.testing.assert_close(head(X), torch.cat([head(x[None]) for x in X]), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(head(X[0]), head(X)[0], rtol=1e-12, atol=1e-13)
    assert head(X[:0]).shape == (0, 3, 4)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_single_precision_agrees(head):
    X, _ = episodes(4, 3, 3, 4)
    single = X.float().requires_grad_()
    double = X.clone().requires_grad_()
    y, expected = head(single), head(double)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-4)
    (ours,), (theirs,) = (torch.autograd.grad(y.sin().sum(), x) for y, x in ((y, single), (expected, double)))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-3)


def test_one_class_of_many_may_have_no_examples():
    machine = support_vector_machine(X, LABELS, num_classes=5)
    assert machine.weights.shape == (2, 5, 4)
    torch.testing.assert_close(machine.weights.sum(1), torch.zeros(2, 4, dtype=D), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n, m", [(4, 9), (9, 4), (5, 5)])
def test_ridge_is_least_squares_with_a_penalty(n, m):
    X, T = randn(3, n, m), randn(3, n, 2, seed=1)
    penalty = torch.tensor([0.1, 1.0, 5.0], dtype=D)
    head = ridge_head(X, T, penalty)
    torch.testing.assert_close(head.weights.mT, weighted_least_squares(X, T, ridge=penalty.unsqueeze(1)))
    torch.testing.assert_close(head.coefficients.mT @ X, head.weights)


def test_ridge_is_that_of_scikit_learn():
    x, t, query = randn(8, 3), randn(8, 2, seed=1), randn(5, 3, seed=2)
    for kernel, gamma in (("linear", None), ("rbf", 0.7)):
        theirs = KernelRidge(alpha=0.3, kernel=kernel, gamma=gamma).fit(x.numpy(), t.numpy()).predict(query.numpy())
        ours = ridge_head(x, t, 0.3, kernel=kernel, gamma=gamma).predict(query)
        torch.testing.assert_close(ours, torch.from_numpy(theirs))


def test_the_objective_of_ridge_is_its_value():
    x, t = randn(8, 3), randn(8, 2, seed=1)
    found = ridge_head(x, t, 0.3, solution=True)
    weights = found.y.weights
    expected = (x @ weights.mT - t).square().sum() + 0.3 * weights.square().sum()
    torch.testing.assert_close(found.objective, expected)
    assert found.stationarity < 1e-13


@pytest.mark.parametrize("n, m", [(3, 5), (5, 3)])
def test_derivatives_of_ridge(n, m):
    def outputs(X, T, penalty):
        return ridge_head(X, T, penalty)[:2]

    penalty = torch.tensor([0.4, 1.2], dtype=D, requires_grad=True)
    inputs = (randn(2, n, m).requires_grad_(), randn(2, n, 2, seed=1).requires_grad_(), penalty)
    assert gradcheck(outputs, inputs, check_forward_ad=True)
    assert gradgradcheck(outputs, inputs)


def test_half_precision_computes_in_single():
    machine = support_vector_machine(X.half(), LABELS)
    assert machine.weights.dtype == machine.coefficients.dtype == torch.float16
    torch.testing.assert_close(machine.weights.double(), support_vector_machine(X, LABELS).weights, rtol=0, atol=0.01)


WRONG = {
    "one axis": ({"support": X[0, 0]}, "(support=...)` must have shape (*B, n, m)"),
    "no features": ({"support": X[..., :0]}, "must have examples and features"),
    "float labels": ({"labels": LABELS.double()}, "must be a tensor of integers"),
    "labels of another length": ({"labels": LABELS[:-1]}, "(labels=...)` must have shape"),
    "a negative label": ({"labels": LABELS - 1}, "must be classes from 0 to"),
    "a label beyond": ({"num_classes": 2}, "must be classes from 0 to 1, got 2"),
    "one class": ({"num_classes": 1}, "must be an integer of at least 2"),
    "gamma without use": ({"gamma": 1.0}, "belongs to `kernel='rbf'`"),
    "a matrix that is not square": ({"kernel": "precomputed"}, "must be the square matrix"),
    "an asymmetric matrix": (
        {"kernel": "precomputed", "support": torch.ones(9, 9, dtype=D).triu()},
        "must be a symmetric matrix of kernels, but that of item 0",
    ),
    "an indefinite matrix": (
        {"kernel": "precomputed", "support": -torch.eye(9, dtype=D)},
        "must be a positive semidefinite matrix",
    ),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        support_vector_machine(**{"support": X, "labels": LABELS, **changes})


def test_a_query_of_another_size_is_refused():
    with pytest.raises(ddn.InvalidInputError, match=re.escape("must have shape (*B, q, 4), got (5, 3).")):
        support_vector_machine(X, LABELS).predict(randn(5, 3))


def test_labels_without_values_need_the_number_of_classes():
    def head(labels):
        return support_vector_machine(X[0], labels).weights

    with pytest.raises(ddn.InvalidInputError, match="must be given here"):
        torch.func.vmap(head)(LABELS.expand(2, -1))


def test_a_limit_of_steps_is_reported():
    machine = support_vector_machine(X, LABELS, C, max_steps=1, on_failure="nan", solution=True)
    assert set(machine.status.tolist()) <= {int(ddn.Status.MAX_STEPS), int(ddn.Status.CONVERGED)}


def test_modules_hold_what_the_functions_take_and_learn_it():
    svm = ddn.nn.SupportVectorMachine(0.5, learnable_C=True).double()
    ridge = ddn.nn.RidgeHead(0.5, learnable_penalty=True).double()
    query, targets = randn(2, 2, 4, seed=3), torch.nn.functional.one_hot(LABELS).to(D).expand(2, -1, -1)
    torch.testing.assert_close(svm(X, LABELS, query), support_vector_machine(X, LABELS, 0.5).predict(query))
    torch.testing.assert_close(ridge(X, targets, query), ridge_head(X, targets, 0.5).predict(query))
    (svm(X, LABELS, query).square().sum() + ridge(X, targets, query).square().sum()).backward()
    assert svm.C.log.grad.abs() > 0
    assert ridge.penalty.log.grad.abs() > 0
    assert "learnable_C=True" in repr(svm) and "penalty=0.5" in repr(ridge)
