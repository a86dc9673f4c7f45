"""A mistake raises at the door: type of the error, and what its message says."""

import re

import pytest
import torch
from problems import randn
from test_known_answers import Sphere

import torchddn as ddn


def square(y, x):
    return 0.5 * (y - x).square().sum()


def argmin(**changes):
    given = {"f": square, "y0": torch.zeros(3, dtype=torch.float64), "x": (randn(2, 3),), **changes}
    f, y0, x = given.pop("f"), given.pop("y0"), given.pop("x")
    return ddn.argmin(f, y0, *x, **given)


def refused(message):
    return pytest.raises(ddn.InvalidInputError, match=re.escape(message))


BAD_ARGMIN = {
    "f is no function": ({"f": 3.0}, "`argmin(f=...)` must be a function of (y, *x), got 3.0."),
    "no problem at all": ({"f": None}, "needs `objective`, `equality` or `inequality`"),
    "equality is no function": ({"equality": "h"}, "`argmin(equality=...)` must be a function of (y, *x), got 'h'."),
    "inequality is no function": ({"inequality": 1}, "`argmin(inequality=...)` must be a function of (y, *x), got 1."),
    "inequality of rank two": ({"inequality": lambda y, x: torch.outer(y, x)}, "`inequality` must return a scalar or"),
    "bounds are no pair": ({"bounds": 1.0}, "`argmin(bounds=...)` must be a pair (lower, upper), or a function"),
    "three bounds": ({"bounds": (0.0, 1.0, 2.0)}, "`argmin(bounds=...)` must be a pair (lower, upper)"),
    "bounds return no pair": ({"bounds": lambda x: x}, "must be a pair (lower, upper), got Tensor"),
    "bound of another size": (
        {"bounds": (torch.zeros(4), None)},
        "shape (4,) does not broadcast to `y`, which is (3,)",
    ),
    "bound is a word": ({"bounds": (None, "high")}, "the upper limit must be a real tensor, a number or None"),
    "bound is boolean": ({"bounds": (torch.ones(3) > 0, None)}, "the lower limit must be a real tensor"),
    "bounds of another structure": (
        {"bounds": ({"a": 0.0, "b": 1.0}, None)},
        "the lower limits must be structured as `y`, or one number or tensor for all of it",
    ),
    "unknown solver": ({"solver": "newtn"}, "'newtn'"),
    "solver class": ({"solver": ddn.solvers.Newton}, "solver"),
    "adjoint class": ({"adjoint": ddn.Implicit}, "`argmin(adjoint=...)` must be an adjoint such as"),
    "adjoint word": ({"adjoint": "implicit"}, "got 'implicit'."),
    "on_failure": ({"on_failure": "explode"}, "must be one of 'warn', 'raise', 'nan', 'ignore', got 'explode'."),
    "start": ({"start": "cold"}, "`argmin(start=...)` must be 'auto', 'item' or 'batch', got 'cold'."),
    "start of the wrong batch": (
        {"y0": torch.zeros(3, 3).double(), "start": "batch"},
        "a batch of starts needs 2 items",
    ),
    "y0 number": ({"y0": 0.0}, "`initial` must be a tensor (or a nested tuple, list or dict of tensors), got float."),
    "y0 None": ({"y0": None}, "needs `initial(*x)`"),
    "y0 empty": ({"y0": ()}, "`initial` must be a tensor or a tree of tensors, got ()."),
    "y0 without entries": ({"y0": torch.zeros(0).double()}, "the decision `y` has no entries"),
    "y0 integer": ({"y0": torch.zeros(3, dtype=torch.long)}, "must be a real floating-point tensor, got torch.int64"),
    "y0 of another dtype": ({"y0": torch.zeros(3)}, "all inputs must share one dtype"),
    "y0 on another device": ({"y0": torch.zeros(3, device="meta").double()}, "all inputs must share one device"),
    "x number": ({"x": (1.0,)}, "`x[0]` must be a tensor (or a nested tuple, list or dict of tensors), got float."),
    "x nested number": ({"x": ({"a": [2]},)}, "`x[0]['a'][0]` must be a tensor"),
    "x integer": ({"x": (torch.ones(2, 3, dtype=torch.int32),)}, "`x[0]` must be a real floating-point tensor"),
    "x complex": ({"x": (torch.ones(2, 3, dtype=torch.complex64),)}, "got torch.complex64"),
    "x without batch axis": ({"x": (torch.tensor(1.0).double(),)}, "`x[0]` has no batch axis."),
    "batch sizes": (
        {"f": lambda y, a, b: y.sum(), "x": (randn(2, 3), randn(4, 3))},
        "got 2 for `x[0]` and 4 for `x[1]`",
    ),
    "dtypes": ({"f": lambda y, a, b: y.sum(), "x": (randn(2, 3), randn(2, 3).float())}, "`x[1]` with torch.float32"),
    "devices": ({"f": lambda y, a, b: y.sum(), "x": (randn(2), randn(2).to("meta"))}, "`x[1]` with meta"),
    "all items infinite": ({"x": (torch.full((2, 3), torch.inf).double(),)}, "of items 0, 1 is not finite"),
    "objective not scalar": (
        {"f": lambda y, x: y - x},
        "`objective` must return a scalar for each item, got shape (3,)",
    ),
    "objective not tensor": ({"f": lambda y, x: "zero"}, "`objective` must return a tensor, got str"),
    "objective of another dtype": ({"f": lambda y, x: y.float().sum()}, "must compute in the dtype of its arguments"),
    "equality of wrong rank": (
        {"equality": lambda y, x: torch.outer(y, y)},
        "`equality` must return a scalar or a vector for each item, got shape (3, 3)",
    ),
    "x sparse": ({"x": (randn(2, 3).to_sparse(),)}, "`x[0]` must be dense, got torch.sparse_coo. Use `.to_dense()`."),
    "objective without y": (
        {"f": lambda y, x: x.sum()},
        "no function of the problem depends on `y` in a way that torch can differentiate",
    ),
    "objective detached": ({"f": lambda y, x: square(y.detach(), x)}, "Look for `.detach()`, `.item()`, NumPy"),
    "objective in numpy": ({"f": lambda y, x: float(y.numpy().sum())}, "cannot batch a function of the problem"),
    "random objective": ({"f": lambda y, x: square(y, x * torch.randn(3))}, "called random operation"),
    "equality that branches": (
        {"equality": lambda y, x: y.sum() if y[0] > 0 else -y.sum()},
        "cannot batch a function of the problem",
    ),
    "branch on a value": (
        {"f": lambda y, x: y.sum() if y[0] > 0 else -y.sum()},
        "cannot batch a function of the problem",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGMIN)
def test_argmin_refuses(name):
    changes, message = BAD_ARGMIN[name]
    with refused(message):
        argmin(**changes)


@pytest.mark.parametrize("call, letter", [(ddn.root, "F"), (ddn.fixed_point, "T")])
def test_root_and_fixed_point_refuse(call, letter):
    name, x, y0 = call.__name__, randn(2, 3), torch.zeros(3, dtype=torch.float64)
    with refused(f"`{name}({letter}=...)` must be a function of (y, *x), got None."):
        call(None, y0, x)
    with refused(f"`{letter}(y, x)` must be shaped as `y`, (3,), got (2,)"):
        call(lambda y, x: y[:2], y0, x)
    with refused(f"`{name}(start=...)` must be"):
        call(lambda y, x: y - x, y0, x, start=0)
    with refused(f"`{name}(on_failure=...)` must be one of"):
        call(lambda y, x: y - x, y0, x, on_failure=None)
    with refused(f"`{name}(adjoint=...)` must be an adjoint"):
        call(lambda y, x: y - x, y0, x, adjoint=3)
    with refused("'sovler'"):
        call(lambda y, x: y - x, y0, x, solver="sovler")
    with refused("`initial` must be a tensor"):
        call(lambda y, x: y - x, "zero", x)
    with refused("`x[0]` must be a tensor"):
        call(lambda y, x: y - x, y0, "x")


def test_declarative_node_refuses():
    with refused("`DeclarativeNode(problem=...)` must be a `torchddn.Problem` object"):
        ddn.DeclarativeNode(Sphere)
    with refused("'newtn'"):
        ddn.DeclarativeNode(Sphere(), solver="newtn")
    with refused("`DeclarativeNode(adjoint=...)` must be an adjoint"):
        ddn.DeclarativeNode(Sphere(), adjoint="exact")
    with refused("`DeclarativeNode(on_failure=...)` must be one of"):
        ddn.DeclarativeNode(Sphere(), on_failure=1)
    with pytest.raises(TypeError, match="sovler"):
        ddn.DeclarativeNode(Sphere(), sovler="newton")
    with refused("without inputs the batch size comes from the start"):
        ddn.DeclarativeNode(Sphere())()
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        ddn.DeclarativeNode(Sphere())(randn(2, 3), randn(2, 3))


def test_problem_from_functions_refuses():
    for name in ("objective", "equality", "inequality"):
        with refused(f"`Problem.from_functions({name}=...)` must be a function of (y, *x), got 3."):
            ddn.Problem.from_functions(**{"objective": square, name: 3})
    with refused("needs `objective`, `equality` or `inequality`"):
        ddn.Problem.from_functions()
    with refused("`initial` must be a tensor (or a nested tuple, list or dict of tensors), got str."):
        ddn.DeclarativeNode(ddn.Problem.from_functions(square, initial="zero"))(randn(2, 3))
    with refused("`initial` must return a tensor, got str."):
        ddn.DeclarativeNode(ddn.Problem.from_functions(square, initial=lambda x: "zero"))(randn(2, 3))
    with refused("`Problem.from_functions(bounds=...)` must be a pair"):
        ddn.Problem.from_functions(square, bounds=(0,))


def test_a_problem_without_start_or_solver_is_refused():
    with refused("the problem needs `initial(*x)`"):
        ddn.DeclarativeNode(ddn.Problem.from_functions(square))(randn(2, 3))


def test_implicit_refuses():
    for changes, message in [
        ({"linear": "qr"}, "'qr'"),
        (
            {"on_singular": "ignore"},
            "`Implicit(on_singular=...)` must be 'least_squares', 'damp' or 'raise', got 'ignore'.",
        ),
        ({"damping": -1.0}, "`Implicit(damping=...)` must be a positive number, got -1.0."),
        ({"damping": "small"}, "`Implicit(damping=...)` must be a positive number, got 'small'."),
        ({"rtol": 0.0}, "`Implicit(rtol=...)` must be a positive number, got 0.0."),
    ]:
        with refused(message):
            ddn.Implicit(**changes)
    with refused("'qr'"):
        ddn.IgnoreConstraints(linear="qr")


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, "all"])
def test_unrolled_refuses(num_steps):
    with refused(f"`Unrolled(num_steps=...)` must be a positive integer or None, got {num_steps!r}."):
        ddn.Unrolled(num_steps=num_steps)


def test_unrolling_a_users_own_solver_is_refused():
    class Own(Sphere):
        def solve(self, x):
            return x / x.norm(dim=1, keepdim=True)

    with refused("the problem brings its own `solve`, whose steps are not known"):
        ddn.DeclarativeNode(Own(), adjoint=ddn.Unrolled())(randn(2, 3))


def test_an_item_that_is_not_finite_is_named_where_failures_raise():
    x = randn(5, 3)
    x[3, 1] = torch.nan
    with refused("the input or start of item 3 is not finite"):
        ddn.DeclarativeNode(Sphere(), on_failure="raise")(x)


def test_a_parameter_that_is_not_finite_is_refused():
    scale = torch.tensor(torch.nan, dtype=torch.float64, requires_grad=True)
    with refused("a tensor that all items share (a parameter or a captured tensor) is not finite"):
        argmin(f=lambda y, x: scale * square(y, x))


def test_a_parameter_of_another_dtype_is_refused():
    class Weighted(Sphere):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    with refused("`a parameter of the problem` with torch.float32"):
        ddn.DeclarativeNode(Weighted())(randn(2, 3))


def test_a_hidden_differentiable_tensor_is_refused():
    class Box:
        def __init__(self):
            self.weight = torch.ones(3, dtype=torch.float64, requires_grad=True)

    box = Box()
    with refused("uses a tensor that requires grad and is hidden in an object"):
        argmin(f=lambda y, x: (box.weight * (y - x).square()).sum())


def test_own_solver_without_initial_inside_a_transform_is_refused():
    class Own(ddn.Problem):
        def objective(self, y, x):
            return square(y, x)

        def solve(self, x):
            return x

    with refused("inside a `torch.func` transform a problem with its own `solve` needs `initial`"):
        torch.func.vmap(ddn.DeclarativeNode(Own()))(randn(2, 2, 3))


def test_no_inputs_and_no_batch_of_starts_is_refused():
    with refused("without inputs the batch size comes from the start"):
        ddn.argmin(lambda y: y.square().sum(), torch.tensor(1.0))
