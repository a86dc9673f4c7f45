"""For every argument of every public call a wrong value is tried, and the answer says what to do.

A new argument that is not in the table below fails the last test.
"""

import inspect
import re

import pytest
import torch
from problems import randn
from test_known_answers import Sphere
from torch import Tensor
from wrong_arguments import POLICY, READY_NODES, call

import torchddn as ddn
from torchddn import datasets, functional, models, solvers


def square(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).square().sum()


X = randn(2, 3)
IMAGES, LABELS = torch.zeros(4, 1, 8, 8), torch.arange(4)
START = torch.zeros(3, dtype=torch.float64)
TOLERANCES = {"rtol": (-1.0, "rtol"), "atol": (-1.0, "atol"), "max_steps": (0, "max_steps")}
NODE = {
    "solver": ("newtn", "'newtn'"),
    "adjoint": ("exact", "must be an adjoint such as"),
    "on_failure": ("explode", POLICY),
}
CALL = {
    **NODE,
    "y0": ("zero", "`initial` must be a tensor"),
    "x": ("x", "`x[0]` must be a tensor"),
    "start": ("cold", "must be 'auto', 'item' or 'batch', got 'cold'."),
    "solution": ("yes", "(solution=...)` must be True or False, got 'yes'."),
}


def with_inputs(function, letter, f):
    def run(**changes):
        given = {letter: f, "y0": START, "x": X, **changes}
        return function(given.pop(letter), given.pop("y0"), given.pop("x"), **given)

    return run


FUNCTION = (3.0, "must be a function of (y, *x), got 3.0.")

TABLE = {
    ddn.argmin: (
        with_inputs(ddn.argmin, "f", square),
        {
            "f": FUNCTION,
            "equality": FUNCTION,
            "inequality": FUNCTION,
            "bounds": ((0,), "must be a pair (lower, upper)"),
            **CALL,
        },
    ),
    ddn.root: (with_inputs(ddn.root, "F", lambda y, x: y - x), {"F": FUNCTION, **CALL}),
    ddn.fixed_point: (with_inputs(ddn.fixed_point, "T", lambda y, x: 0.5 * x), {"T": FUNCTION, **CALL}),
    ddn.DeclarativeNode: (
        call(ddn.DeclarativeNode, problem=Sphere()),
        {"problem": (Sphere, "object"), "compile": ("yes", "compile"), **NODE},
    ),
    ddn.Problem.from_functions: (
        lambda **c: ddn.DeclarativeNode(ddn.Problem.from_functions(**{"objective": square, "initial": START, **c}))(X),
        {
            "objective": FUNCTION,
            "equality": FUNCTION,
            "inequality": FUNCTION,
            "bounds": ((0,), "must be a pair (lower, upper)"),
            "initial": ("zero", "`initial` must be a tensor"),
        },
    ),
    ddn.Implicit: (
        ddn.Implicit,
        {
            "linear": ("qr", "'qr'"),
            "on_singular": ("ignore", "on_singular"),
            "damping": (-1.0, "damping"),
            "rtol": (-1.0, "rtol"),
            "weakly_active": ("both", "must be 'active' or 'inactive', got 'both'"),
            "structure": ("diagonal", "(structure=...)` must be 'auto', 'dense', a declaration of `torchddn.linear`"),
        },
    ),
    ddn.explain: (
        lambda **c: ddn.explain(c.pop("problem", Sphere()), c.pop("x", X), **c),
        {
            "problem": (Sphere, "must be a Problem or a DeclarativeNode"),
            "x": (3.0, "`x[0]` must be a tensor"),
            "item": (2, "must be an item of the batch, 0 to 1, got 2."),
            "num_directions": (0, "num_directions"),
            "seed": (-1, "seed"),
        },
    ),
    ddn.IgnoreConstraints: (ddn.IgnoreConstraints, {"linear": ("qr", "'qr'")}),
    ddn.Unrolled: (ddn.Unrolled, {"num_steps": (0, "num_steps")}),
    **READY_NODES,
    solvers.Newton: (solvers.Newton, TOLERANCES),
    solvers.SQP: (solvers.SQP, TOLERANCES),
    solvers.InteriorPoint: (solvers.InteriorPoint, TOLERANCES),
    solvers.GaussNewton: (solvers.GaussNewton, TOLERANCES),
    solvers.LevenbergMarquardt: (solvers.LevenbergMarquardt, TOLERANCES),
    solvers.LBFGS: (solvers.LBFGS, {**TOLERANCES, "history": (-1, "history"), "search": ("armijo", "search")}),
    solvers.GradientDescent: (
        solvers.GradientDescent,
        {**TOLERANCES, "step_size": (-1.0, "step_size"), "momentum": (1.0, "momentum")},
    ),
    solvers.StrongWolfe: (solvers.StrongWolfe, {"decrease": (-1.0, "decrease"), "curvature": (2.0, "curvature")}),
    solvers.Anderson: (
        solvers.Anderson,
        {
            **TOLERANCES,
            "history": (-1, "history"),
            "mixing": (0.0, "mixing"),
            "regularization": (-1.0, "regularization"),
        },
    ),
    solvers.Broyden: (solvers.Broyden, {**TOLERANCES, "history": (0, "history")}),
    solvers.Bisection: (
        call(solvers.Bisection, lower=0.0, upper=1.0),
        {**TOLERANCES, "lower": (2.0, "lower"), "upper": (-1.0, "upper")},
    ),
    solvers.AugmentedLagrangian: (solvers.AugmentedLagrangian, {**TOLERANCES, "history": (-1, "history")}),
    solvers.MultiStart: (
        call(solvers.MultiStart, solver=solvers.Newton()),
        {
            "solver": ("Newton", "solver"),
            "num_starts": (0, "num_starts"),
            "spread": (-1.0, "spread"),
            "sampler": (3, "sampler"),
            "generator": (3, "generator"),
        },
    ),
    solvers.WarmStart: (solvers.WarmStart, {"solver": ("Newton", "solver")}),
    solvers.SciPy: (
        solvers.SciPy,
        {
            "method": ("simplex", "method"),
            "rtol": (-1.0, "rtol"),
            "max_steps": (0, "max_steps"),
            "options": (3, "options"),
            "num_workers": (0, "num_workers"),
        },
    ),
    solvers.Ipopt: (
        solvers.Ipopt,
        {"rtol": (0.0, "rtol"), "max_steps": (0, "max_steps"), "options": (3, "options")},
    ),
    solvers.get: (solvers.get, {"solver": ("newtn", "'newtn'")}),
    ddn.penalties.get: (call(ddn.penalties.get), {"penalty": ("l1", "'l1'")}),
    datasets.load_digits: (datasets.load_digits, {"num_points": ("many", "num_points"), "seed": ("x", "seed")}),
    datasets.replace_with_outliers: (
        call(
            datasets.replace_with_outliers, points=torch.zeros(1, 4, 3), fraction=0.5, generator=torch.Generator("cpu")
        ),
        {
            "points": ([1], "points"),
            "fraction": ("half", "fraction"),
            "generator": (3, "generator"),
            "within": ("cube", "within"),
        },
    ),
    datasets.load_digit_images: (datasets.load_digit_images, {}),
    datasets.Labeled: (
        call(datasets.Labeled, inputs=IMAGES, labels=LABELS),
        {"inputs": ([1], "inputs"), "labels": (LABELS[:3], "labels"), "classes": (("one",), "classes")},
    ),
    datasets.Solids: (
        datasets.Solids,
        {
            "split": ("dev", "split"),
            "num_points": (0, "num_points"),
            "per_class": (0, "per_class"),
            "seed": ("x", "seed"),
            "pose": ("upside down", "pose"),
            "cache": (3, "cache"),
        },
    ),
    datasets.ModelNet40: (
        call(datasets.ModelNet40, root="no such folder"),
        {
            "root": ("no such folder", "no such folder"),
            "split": ("dev", "split"),
            "num_points": (0, "num_points"),
            "features": (("color",), "features"),
            "classes": ((), "classes"),
            "seed": ("x", "seed"),
            "num_workers": (-1, "num_workers"),
            "cache": (3, "cache"),
        },
    ),
    datasets.ImageFolder: (
        call(datasets.ImageFolder, root="no such folder"),
        {
            "root": ("no such folder", "no such folder"),
            "split": ("dev", "split"),
            "layout": ("heap", "layout"),
            "crop": (0, "crop"),
            "resize": (0, "resize"),
            "augment": ("much", "augment"),
            "transform": (3, "transform"),
            "seed": ("x", "seed"),
        },
    ),
    datasets.MovingDigits: (
        datasets.MovingDigits,
        {
            "split": ("dev", "split"),
            "num_frames": (0, "num_frames"),
            "size": (0, "size"),
            "per_class": (0, "per_class"),
            "seed": ("x", "seed"),
        },
    ),
    datasets.Puzzles: (
        call(datasets.Puzzles, images=datasets.Labeled(IMAGES, LABELS)),
        {"images": (3, "images"), "grid": ((0, 3), "grid"), "seed": ("x", "seed"), "fresh": ("often", "fresh")},
    ),
    datasets.check: (
        call(datasets.check, path="no such folder"),
        {"path": (3, "path"), "thorough": ("very", "thorough")},
    ),
    datasets.hold_out: (
        call(datasets.hold_out, data=datasets.Labeled(IMAGES, LABELS)),
        {"data": (IMAGES, "data"), "share": (2.0, "share"), "seed": ("x", "seed")},
    ),
    datasets.loader: (
        call(datasets.loader, data=datasets.Labeled(IMAGES, LABELS), batch_size=2),
        {
            "data": (3, "data"),
            "batch_size": (0, "batch_size"),
            "shuffle": ("well", "shuffle"),
            "seed": ("x", "seed"),
            "num_workers": (-1, "num_workers"),
            "rank": (1, "rank"),
            "num_ranks": (0, "num_ranks"),
            "drop_last": ("no", "drop_last"),
        },
    ),
    models.PointNet: (
        models.PointNet,
        {
            "pooling": ("median", "pooling"),
            "alpha": (-1.0, "alpha"),
            "num_features": (0, "num_features"),
            "num_classes": ("ten", "num_classes"),
            "widths": ((), "widths"),
            "head": ((), "head"),
            "dropout": (1.0, "dropout"),
            "transform": ("yes", "transform"),
        },
    ),
    models.ResNet18: (
        models.ResNet18,
        {
            "num_classes": (0, "num_classes"),
            "projection": ("cube", "projection"),
            "p": (0.5, "p=...)"),
            "radius": (-1.0, "radius"),
            "in_channels": (0, "in_channels"),
            "width": (0, "width"),
            "small_images": ("yes", "small_images"),
        },
    ),
    models.SequenceClassifier: (
        models.SequenceClassifier,
        {
            "pooling": ("median", "pooling"),
            "C": (-1.0, "C=...)"),
            "num_classes": (0, "num_classes"),
            "in_channels": (0, "in_channels"),
            "widths": ((), "widths"),
            "num_features": (0, "num_features"),
        },
    ),
    models.PermutationNet: (
        call(models.PermutationNet, num_patches=4),
        {
            "num_patches": (0, "num_patches"),
            "relaxation": ("softmax of softmaxes", "relaxation"),
            "gamma": (-1.0, "gamma"),
            "in_channels": (0, "in_channels"),
            "widths": ((), "widths"),
            "num_features": (0, "num_features"),
            "num_layers": (0, "num_layers"),
        },
    ),
}
CASES = [(function, name) for function, (_, wrong) in TABLE.items() for name in wrong]
# Made by the library and read by users; `OneStep` has no options; the internal letters of a message are no argument.
NOT_CALLED_BY_USERS = {
    *(ddn.Solution, ddn.Status, ddn.Problem, ddn.LeastSquares, ddn.OneStep, ddn.diagnostics),
    *(solvers.Result, solvers.Solver, solvers.Composite, solvers.choose, solvers.solve, solvers.unroll),
    *(datasets.Check, datasets.Data, datasets.DigitImages, datasets.Digits, datasets.InMemory, datasets.Part),
    *(datasets.PointSets, datasets.Shards),
    *(functional.CloudSolution, functional.KernelMachine),
    ddn.nn.LinearFit,
    ddn.PrimalDual,  # what it holds is checked by the node that receives it
}


@pytest.mark.parametrize("function, name", CASES, ids=lambda part: getattr(part, "__qualname__", part))
def test_a_wrong_value_is_refused_by_name(function, name):
    run, wrong = TABLE[function]
    value, message = wrong[name]
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        run(**{name: value})


@pytest.mark.parametrize("namespace", [ddn, functional, ddn.nn, solvers, datasets, models], ids=lambda m: m.__name__)
def test_no_argument_of_a_public_call_is_left_out(namespace):
    for name in namespace.__all__:
        function = getattr(namespace, name)
        is_error = inspect.isclass(function) and issubclass(function, Exception)
        if not callable(function) or is_error or function in NOT_CALLED_BY_USERS:
            continue
        arguments = set(inspect.signature(function).parameters) - {"self"}
        assert arguments == set(TABLE[function][1]), name
