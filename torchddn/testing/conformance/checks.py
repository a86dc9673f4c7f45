"""The checks. Each compares the node with its problem, or with itself in another way, and says what it found."""

import dataclasses
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from torchddn.door import prepare
from torchddn.errors import DDNError
from torchddn.inspection import flat_solution
from torchddn.node import DeclarativeNode
from torchddn.optimality import kkt_error, scales
from torchddn.problem import BatchedProblem
from torchddn.status import Solution, Status
from torchddn.testing.conformance.report import FailedError, SkippedError, first_line
from torchddn.testing.conformance.subject import Subject, Tensors, agreement, difference, slopes_of

__all__ = [
    "check_batch_independence",
    "check_call",
    "check_determinism",
    "check_device",
    "check_dtype",
    "check_empty_batch",
    "check_feasibility",
    "check_forward_mode",
    "check_nan_isolation",
    "check_optimality",
    "check_vmap",
]

_MOST_ITEMS = 4
_TOLERANCE = 1e-6  # of the optimality conditions, relative


def check_call(subject: Subject) -> str:
    """Finite tensors with the batch axis come out, and the inputs are left as they were."""
    before = [leaf.clone() for leaf in subject.leaves]
    outputs = subject.call(subject.leaves)
    for name, leaf, kept in zip(subject.names, subject.leaves, before, strict=True):
        if not torch.equal(leaf.nan_to_num(), kept.nan_to_num()):
            raise FailedError(f"Changes its input `{name}` in place. Work on a `.clone()`.")
    if not outputs:
        raise FailedError("Returns no floating-point tensor.")
    for i, output in enumerate(outputs):
        if output.shape[:1] != (subject.size,):
            raise FailedError(
                f"Output {i} has shape {tuple(output.shape)}: its first axis is not the batch of {subject.size} items."
            )
        bad = (~output.isfinite()).reshape(subject.size, -1).any(1).nonzero().flatten().tolist()
        if bad:
            raise FailedError(f"Output {i} is not finite for {_items(bad)}.")
    return f"{_shapes(subject.leaves)} -> {_shapes(outputs)}."


def check_determinism(subject: Subject) -> str:
    """A second call gives the same."""
    outputs, again = (subject.call(subject.leaves) for _ in range(2))
    worst = difference(again, outputs)
    # Rounding that differs (atomic additions, a warm start) is passed; finite differences would see more than that.
    if not worst <= torch.finfo(torch.float64).eps ** (2 / 3):
        raise FailedError(
            f"A second call on the same inputs differs by {worst:.1e} (relative). Give random parts a generator "
            f"that is reset, and call `.eval()` on dropout."
        )
    return f"A second call differs by {worst:.1e}."


def check_dtype(subject: Subject) -> str:
    """float64 in, float64 out; float32 in, float32 out, and nearly the same."""
    f, tensors, _ = subject.function()
    outputs = f(*tensors)
    for i, output in enumerate(outputs):
        if output.dtype != torch.float64:
            raise FailedError(
                f"Output {i} is {output.dtype} for torch.float64 inputs. Look for `.float()` and constants."
            )
    try:
        f_narrow, narrow, _ = subject.to(torch.float32, subject.leaves[0].device).function()
        outputs_narrow = f_narrow(*narrow)
    except Exception as error:
        raise FailedError(f"Raises for torch.float32 inputs: {first_line(error)}") from error
    for i, output in enumerate(outputs_narrow):
        if output.dtype != torch.float32:
            raise FailedError(f"Output {i} is {output.dtype} for torch.float32 inputs.")
    worst = difference([t.double() for t in outputs_narrow], outputs)
    if not worst <= 1e-3:
        raise FailedError(f"float32 and float64 differ by {worst:.1e} (relative), much more than rounding.")
    slopes, slopes_narrow = slopes_of(subject, outputs, tensors), slopes_of(subject, outputs_narrow, narrow)
    worst_slope = difference([t.double() for t in slopes_narrow], slopes)
    if not worst_slope <= 2e-2:
        raise FailedError(f"The gradients in float32 and float64 differ by {worst_slope:.1e} (relative).")
    return f"float32 differs by {worst:.1e}, its gradient by {worst_slope:.1e}."


class _Solved(NamedTuple):
    """What a DeclarativeNode returned, as its problem sees it."""

    problem: BatchedProblem
    x: tuple[Tensor, ...]
    y: Tensor
    dual: Tensor
    solution: Solution


def _solve(subject: Subject) -> _Solved:
    node = subject.node
    if not isinstance(node, DeclarativeNode):
        raise SkippedError("Only a DeclarativeNode says which problem it solves.")
    with torch.no_grad():
        solution = node.solve(*subject.inputs)
        prepared = prepare(subject.name, node.problem, tuple(subject.inputs), "auto")
    problem, x = prepared.problem, tuple(tensor.detach() for tensor in prepared.x)
    y, dual = flat_solution(problem, solution, x[-1])
    return _Solved(problem, x, y, dual, solution)


def check_optimality(subject: Subject) -> str:
    """Every item of a DeclarativeNode converged, and satisfies the optimality conditions."""
    problem, x, y, dual, solution = _solve(subject)
    status, steps = solution.status, int(solution.num_steps.max())
    failed = (status != Status.CONVERGED).nonzero().flatten().tolist()
    if failed:
        codes = sorted(set(status[failed].tolist()))
        named = ", ".join(f"{int((status == code).sum())} x {Status(code).name}" for code in codes)
        raise FailedError(
            f"{len(failed)} of {subject.size} items are not solutions ({_items(failed)}: {named}; stationarity "
            f"{_worst(solution.stationarity):.1e}, feasibility {_worst(solution.feasibility):.1e}). "
            f"{Status(codes[0]).advice}"
        )
    if problem.kind == "minimize":
        error, _ = kkt_error(problem, y, dual, x, scales(problem, y, dual, x))
    else:
        error = problem.residual(y, x).abs().amax(1) / (1 + y.abs().amax(1))
    if not _worst(error) <= _TOLERANCE:
        item = int(error.nan_to_num(nan=torch.inf).argmax())
        raise FailedError(f"Item {item} is CONVERGED, and violates the optimality conditions by {_worst(error):.1e}.")
    return f"All items CONVERGED, by {solution.solver} in {steps} steps; optimality conditions to {_worst(error):.1e}."


def check_feasibility(subject: Subject) -> str:
    """Every item of a DeclarativeNode satisfies its constraints."""
    problem, x, y, dual, _ = _solve(subject)
    if problem.kind != "minimize" or not (problem.p or problem.q or problem.has_bounds):
        raise SkippedError("There are no constraints.")
    units = scales(problem, y, dual, x)
    rows = problem.constraints(y, x) / (units.rows * units.length[:, None])
    lower, upper = problem.bounds(x)
    violations = {
        "equality": rows[:, : problem.p].abs(),
        "inequality": rows[:, problem.p :],
        "lower": (lower - y) / units.length[:, None],
        "upper": (y - upper) / units.length[:, None],
    }
    worst, where = 0.0, ""
    for name, violation in violations.items():
        if violation.numel() and not float(violation.max()) <= worst:
            item, row = divmod(int(violation.nan_to_num(nan=torch.inf).argmax()), violation.shape[1])
            worst = float(violation[item, row])
            where = f"Item {item} violates `{name}[{row}]` by {worst:.1e} of the size of `y`."
    if not worst <= _TOLERANCE:
        raise FailedError(where)
    return f"Largest violation {worst:.1e} of the size of `y`."


def check_forward_mode(subject: Subject) -> str:
    """Forward and reverse mode agree along a random direction."""
    f, tensors, _ = subject.function()
    outputs = f(*tensors)
    slopes = slopes_of(subject, outputs, tensors)
    tangents = subject.random(*tensors)
    with fwAD.dual_level():
        duals = [fwAD.make_dual(t.detach(), d) for t, d in zip(tensors, tangents, strict=True)]
        moved = [fwAD.unpack_dual(output).tangent for output in f(*duals)]
    if all(tangent is None for tangent in moved):
        raise FailedError("Forward mode finds no dependence on the inputs, reverse mode does.")
    cotangents = subject.random(*outputs)
    forward = sum(float((c * t).sum()) for c, t in zip(cotangents, moved, strict=True) if t is not None)
    reverse = sum(float((s * d).sum()) for s, d in zip(slopes, tangents, strict=True))
    size = sum(float((s * d).abs().sum()) for s, d in zip(slopes, tangents, strict=True))
    error = abs(forward - reverse) / (1e-3 + size)
    if not error <= agreement(outputs):
        raise FailedError(f"Along a random direction forward mode gives {forward:.6g} and reverse mode {reverse:.6g}.")
    return f"Agrees with reverse mode to {error:.1e}."


def check_vmap(subject: Subject) -> str:
    """``torch.func.vmap`` of the node and of its gradient is a loop."""
    subject = subject.items(slice(_MOST_ITEMS))
    stacked = [torch.stack([leaf, leaf.flip(0)]) for leaf in subject.leaves]

    def slope(*leaves: Tensor) -> tuple[Tensor, ...]:
        def loss(*moved: Tensor) -> Tensor:
            mixed = list(leaves)
            for i, tensor in zip(subject.moving, moved, strict=True):
                mixed[i] = tensor
            outputs = subject.call(mixed)
            pairs = zip(subject.random(*outputs), outputs, strict=True)
            return torch.stack([(v * o).sum() for v, o in pairs]).sum()

        moved = tuple(leaves[i] for i in subject.moving)
        return torch.func.grad(loss, argnums=tuple(range(len(moved))))(*moved)

    worst = 0.0
    for what, function in (("it", lambda *leaves: subject.call(leaves)), ("its gradient", slope)):
        looped = [function(*(t[k] for t in stacked)) for k in range(2)]
        try:
            mapped = torch.func.vmap(function)(*stacked)
        except Exception as error:
            raise FailedError(f"`torch.func.vmap` cannot map {what}: {first_line(error)}") from error
        error = difference(mapped, [torch.stack(pair) for pair in zip(*looped, strict=True)])
        if not error <= agreement(mapped):
            raise FailedError(f"`torch.func.vmap` of {what} differs from a loop by {error:.1e} (relative).")
        worst = max(worst, error)
    return f"Agrees with a loop to {worst:.1e}."


def check_batch_independence(subject: Subject) -> str:
    """An item alone, and its gradient, are those of the item in its batch."""
    if subject.size < 2:
        raise SkippedError("Needs at least two items.")
    together, slopes = _outputs_andslopes_of(subject)
    worst = 0.0
    for i in range(min(subject.size, _MOST_ITEMS)):
        item = slice(i, i + 1)
        alone, slopes_alone = _outputs_andslopes_of(subject.items(item), item, subject.size)
        for what, found, expected in (
            ("it is", alone, [t[item] for t in together]),
            ("its gradient is", slopes_alone, [t[item] for t in slopes]),
        ):
            error = difference(found, expected)
            if not error <= agreement(together):
                raise FailedError(
                    f"Item {i} depends on its batch mates: alone {what} different by {error:.1e} (relative) from "
                    f"what it is in the batch of {subject.size}. Look for means, norms or stopping tests over the "
                    f"batch axis."
                )
            worst = max(worst, error)
    return f"An item alone differs from the item in its batch by {worst:.1e}."


def _outputs_andslopes_of(
    subject: Subject, item: slice | None = None, size: int = 0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs, and gradients in the inputs of a random sum of them: an item's weights are those of its batch."""
    leaves = list(subject.leaves)
    for i in subject.moving:
        leaves[i] = leaves[i].detach().clone().requires_grad_()
    outputs = subject.call(leaves)
    weights = subject.random(*(o if item is None else o.new_empty(size, *o.shape[1:]) for o in outputs))
    weights = [w if item is None else w[item] for w in weights]
    moving = [leaves[i] for i in subject.moving]
    slopes = torch.autograd.grad(outputs, moving, weights, materialize_grads=True)
    return tuple(o.detach() for o in outputs), slopes


def check_nan_isolation(subject: Subject) -> str:
    """An item that is NaN becomes NaN and changes neither the others nor their gradients."""
    if subject.size < 2:
        raise SkippedError("Needs at least two items.")
    bad = subject.size // 2
    others = [i for i in range(subject.size) if i != bad]
    floating = [leaf.is_floating_point() for leaf in subject.leaves]
    poisoned = [leaf.clone() for leaf in subject.leaves]
    for leaf, has_nan in zip(poisoned, floating, strict=True):
        if has_nan:
            leaf[bad] = torch.nan
    results = []
    for leaves in (subject.leaves, tuple(poisoned)):
        f, tensors, names = dataclasses.replace(subject, leaves=leaves).function()
        try:
            outputs = f(*tensors)
        except DDNError as error:
            if getattr(subject.node, "on_failure", None) == "raise":
                raise SkippedError("A node with on_failure='raise' raises for such an item.") from error
            raise
        kept = [o[others] for o in outputs]
        slopes = torch.autograd.grad(kept, tensors, subject.random(*kept), materialize_grads=True)
        num_inputs = len(subject.moving)
        # The gradient of an ordinary layer in its weights contains 0 * NaN; that of a DeclarativeNode must not.
        shared = slopes[num_inputs:] if isinstance(subject.node, DeclarativeNode) else ()
        slopes = (*(s[others] for s in slopes[:num_inputs]), *shared)
        results.append((outputs, kept, slopes))
    (_, kept, slopes), (outputs, kept_dirty, slopes_dirty) = results
    error = difference(kept_dirty, kept)
    if not error <= agreement(kept):
        raise FailedError(f"With NaN in item {bad}, the other items change by {error:.1e} (relative).")
    for name, found, expected in zip(names, slopes_dirty, slopes, strict=False):
        error_slope = difference([found], [expected])
        if not error_slope <= agreement(kept):
            raise FailedError(
                f"With NaN in item {bad}, the gradient of the others with respect to `{name}` changes by "
                f"{error_slope:.1e} (relative)."
            )
    if not any(o[bad].isnan().any() for o in outputs):
        raise FailedError(f"Item {bad} is NaN, and its answer is finite: a number that nobody computed.")
    return f"With NaN in item {bad}, the others change by {error:.1e}."


def check_empty_batch(subject: Subject) -> str:
    """No items in, no items out, with a graph."""
    expected = [o.shape[1:] for o in subject.call(subject.leaves)]
    f, tensors, _ = subject.items(slice(0)).function()
    outputs = f(*tensors)
    shapes = [o.shape for o in outputs]
    if shapes != [(0, *shape) for shape in expected]:
        raise FailedError(f"For no items it returns {_shapes(outputs)}, for one (1, ...) of {expected}.")
    if not all(o.requires_grad for o in outputs):
        raise FailedError("For no items its output carries no graph, and `backward` would raise.")
    torch.autograd.grad(outputs, tensors, outputs, materialize_grads=True)
    return f"For no items it returns {_shapes(outputs)}."


def check_device(subject: Subject) -> str:
    """The answer on the other device, CUDA or CPU, is the same."""
    if not torch.cuda.is_available():
        raise SkippedError("There is no CUDA device.")
    here = subject.leaves[0].device
    there = torch.device("cpu" if here.type == "cuda" else "cuda")
    outputs, slopes = _outputs_andslopes_of(subject)
    try:
        found, found_slopes = _outputs_andslopes_of(subject.to(torch.float64, there))
    except Exception as error:
        raise FailedError(f"Raises on {there}: {first_line(error)}") from error
    for i, output in enumerate(found):
        if output.device.type != there.type:
            raise FailedError(f"Output {i} is on {output.device} for inputs on {there}.")
    worst = difference([t.to(here) for t in (*found, *found_slopes)], [*outputs, *slopes])
    if not worst <= agreement(outputs):
        raise FailedError(f"The answers or gradients on {there} and {here} differ by {worst:.1e} (relative).")
    return f"{there} differs from {here} by {worst:.1e}."


def _worst(numbers: Tensor) -> float:
    return float(numbers.detach().abs().max())


def _items(items: list[int]) -> str:
    shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
    return f"item{'s' * (len(items) > 1)} {shown}"


def _shapes(tensors: Tensors) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)
