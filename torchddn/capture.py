"""Which tensors a function or module uses without being given them, and the same thing with others in their place.

A gradient flows only through tensors that an ``autograd.Function`` receives. The parameters of a problem, and
whatever differentiable tensor its functions close over, must therefore become explicit arguments; and for a
second evaluation with other values (another thread, a vmapped axis, the second derivative) they must be
replaced without touching the original. Both are one traversal, :func:`rebuild`: a copy that shares everything
except the tensors and what leads to them.
"""

import functools
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["Fingerprint", "fingerprint", "is_live", "live_tensors", "rebuild"]

# What is the same if it is equal.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

# Functions of these packages hold no tensors of a user; walking into them would only cost time.
_FOREIGN = ("torch.", "numpy", "scipy", "functools", "itertools", "math", "builtins")


def is_live(tensor: Tensor) -> bool:
    """Whether a derivative of any kind may be asked for with respect to ``tensor``."""
    return tensor.is_floating_point() and (
        isinstance(tensor, nn.Parameter)
        or tensor.requires_grad
        or is_functorch_wrapped_tensor(tensor)
        or _has_tangent(tensor)
    )


def _has_tangent(tensor: Tensor) -> bool:
    return fwAD._current_level >= 0 and fwAD.unpack_dual(tensor).tangent is not None


def live_tensors(thing: Any) -> list[Tensor]:
    """The differentiable tensors that ``thing`` reaches, each once, in the order of the traversal.

    Example:
        >>> scale = nn.Parameter(Tensor([1.0, 2.0]))
        >>> len(live_tensors(lambda y: (scale * y).sum()))
        1
    """
    reader = _Reader()
    reader.visit(thing)
    return list(reader.live.values())


def rebuild(thing: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Returns ``thing`` with ``replace`` applied to every tensor it reaches.

    Goes through modules, functions (closures, defaults, globals they name), bound methods, partials, lists,
    tuples and dicts. What reaches no replaced tensor is shared, not copied; ``thing`` itself is never changed.
    """
    return _Rebuilder(replace).visit(thing)


class Fingerprint(NamedTuple):
    """What a thing computes with; see :func:`fingerprint`."""

    state: Hashable
    kept: list[Any]  # objects that the state knows by identity: it means something only as long as they live
    live: list[Tensor]  # as :func:`live_tensors`


def fingerprint(thing: Any) -> Fingerprint:
    """What ``thing`` computes with besides its arguments and its live tensors: equal as long as that is unchanged.

    Code, numbers, words and flags count by value, other tensors by identity and version, and objects by identity: what
    changes inside an object that :func:`rebuild` does not enter is not seen. Of modules the classes count too.

    Example:
        >>> factor = 2.0
        >>> before = fingerprint(lambda y: factor * y).state
        >>> factor = 3.0
        >>> fingerprint(lambda y: factor * y).state == before
        False
    """
    reader = _Reader()
    reader.visit(thing)
    reader.visit_classes()
    return Fingerprint(tuple(reader.notes), reader.kept, list(reader.live.values()))


class _Rebuilder:
    def __init__(self, replace: Callable[[Tensor], Tensor]) -> None:
        self.replace = replace
        self.done: dict[int, Any] = {}  # by identity of the original; also cuts cycles
        self.keep: list[Any] = []  # temporaries whose identity is in `done`

    def visit(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return self.replace(thing)
        rule = self._rule(thing)
        if rule is None:
            return thing
        key = id(thing)
        if key not in self.done:
            self.done[key] = thing  # a cycle back to here finds the original
            self.keep.append(thing)
            self.done[key] = rule(thing)
        return self.done[key]

    def _rule(self, thing: Any) -> Callable[[Any], Any] | None:
        if isinstance(thing, nn.Module):
            return self._module
        if isinstance(thing, types.FunctionType):
            return None if _is_foreign(thing) else self._function
        if isinstance(thing, types.MethodType):
            return self._method
        if isinstance(thing, functools.partial):
            return self._partial
        if type(thing) in (list, tuple):
            return lambda items: self._same_or(items, type(items)(self.visit(item) for item in items))
        if type(thing) is dict:
            return self._dict
        return None

    def _same_or(self, old: Any, new: Any) -> Any:
        unchanged = all(a is b for a, b in zip(old, new, strict=True))
        return old if unchanged else new

    def _dict(self, old: dict[Any, Any]) -> dict[Any, Any]:
        new = {key: self.visit(value) for key, value in old.items()}
        return old if all(new[key] is old[key] for key in old) else new

    def _module(self, module: nn.Module) -> nn.Module:
        parts = {key: self.visit(value) for key, value in module.__dict__.items() if not key.endswith("_hooks")}
        if all(value is module.__dict__[key] for key, value in parts.items()):
            return module
        replica = module.__new__(type(module))
        replica.__dict__ = {**module.__dict__, **parts}
        # `nn.Module` looks parameters up after plain attributes, and only the latter may be any tensor.
        parameters = parts["_parameters"]
        replica.__dict__["_parameters"] = {}
        replica.__dict__.update(parameters)
        return replica

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = function.__closure__ or ()
        filled = [(cell, _contents(cell)) for cell in cells]
        contents = [self.visit(content) for _, content in filled]
        defaults = self.visit(function.__defaults__)
        keywords = self.visit(function.__kwdefaults__)
        globals_ = {name: self.visit(value) for name, value in _named(function).items()}
        moved = {name: value for name, value in globals_.items() if value is not function.__globals__[name]}
        same_cells = all(new is old for new, (_, old) in zip(contents, filled, strict=True))
        if same_cells and not moved and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
            return function
        copy = types.FunctionType(
            function.__code__,
            {**function.__globals__, **moved} if moved else function.__globals__,
            function.__name__,
            defaults,
            tuple(
                cell if new is old else types.CellType(new) for new, (cell, old) in zip(contents, filled, strict=True)
            ),
        )
        copy.__kwdefaults__ = keywords
        return copy

    def _method(self, method: types.MethodType) -> types.MethodType:
        owner = self.visit(method.__self__)
        return method if owner is method.__self__ else types.MethodType(method.__func__, owner)

    def _partial(self, partial: functools.partial) -> functools.partial:
        old = (partial.func, *partial.args, *partial.keywords.values())
        new = [self.visit(part) for part in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return partial
        num_args = 1 + len(partial.args)
        keywords = dict(zip(partial.keywords, new[num_args:], strict=True))
        return functools.partial(new[0], *new[1:num_args], **keywords)


class _Reader:
    """Goes where a rebuilder goes, in the same order, and takes notes."""

    def __init__(self) -> None:
        self.notes: list[Hashable] = []
        self.kept: list[Any] = []
        self.live: dict[int, Tensor] = {}
        self._keep: list[Any] = []  # temporaries whose identity is in `_places`
        self._places: dict[int, int] = {}  # of what has been seen before
        self._classes: list[type] = []
        self._is_inside = True  # and not in the code of a class, where nothing is replaced

    def visit(self, thing: Any) -> None:
        if isinstance(thing, Tensor):
            self._tensor(thing)
            return
        parts = _parts(thing)
        if parts is None and isinstance(thing, _PLAIN):
            self.notes.append((type(thing), thing))
            return
        is_new = id(thing) not in self._places
        place = self._places.setdefault(id(thing), len(self._places))
        if parts is None:
            self.notes.append(id(thing))
            self.kept.append(thing)
            return
        self.notes.append((place, _shape(thing)))
        if is_new:
            self._keep.append(thing)
            if isinstance(thing, nn.Module):
                self._classes += [cls for cls in type(thing).__mro__ if cls not in self._classes and _is_of_user(cls)]
            for part in parts:
                self.visit(part)

    def visit_classes(self) -> None:
        """What the methods of a user's modules name, and the constants of their classes; after all else."""
        self._is_inside = False
        for cls in self._classes:  # it may grow meanwhile
            for name, value in vars(cls).items():
                if not (name.startswith("__") and isinstance(value, _PLAIN)):
                    self.visit(getattr(value, "__func__", getattr(value, "fget", value)))

    def _tensor(self, tensor: Tensor) -> None:
        place = self._places.setdefault(id(tensor), len(self._places))
        if self._is_inside and is_live(tensor):
            self.live.setdefault(id(tensor), tensor)
        if id(tensor) in self.live:
            self.notes.append(place)
            return
        self.kept.append(tensor)
        self.notes.append((id(tensor), None if tensor.is_inference() else tensor._version))


def _parts(thing: Any) -> Sequence[Any] | None:
    """What is entered of a thing; None if it is not."""
    kind = type(thing)
    if kind in _PLAIN:
        return None
    if kind is dict:
        return tuple(thing.values())
    if kind is tuple or kind is list:
        return thing
    if kind is types.FunctionType:
        if _is_foreign(thing):
            return None
        contents = [_contents(cell) for cell in thing.__closure__ or ()]
        named = _named(thing).values()
        return [*contents, thing.__defaults__, thing.__kwdefaults__, *named]
    if kind is types.MethodType:
        return (thing.__self__,)
    if isinstance(thing, nn.Module):
        return [value for key, value in thing.__dict__.items() if not key.endswith("_hooks")]
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    return None


def _shape(thing: Any) -> Hashable:
    """What distinguishes a thing that is entered from others of the same contents."""
    if isinstance(thing, dict):
        return tuple(thing)
    if isinstance(thing, nn.Module):
        return type(thing), tuple(key for key in thing.__dict__ if not key.endswith("_hooks"))
    if isinstance(thing, types.FunctionType):
        return thing.__code__
    if isinstance(thing, types.MethodType):
        return thing.__func__
    return type(thing), len(thing) if isinstance(thing, (list, tuple)) else tuple(thing.keywords)


def _named(function: types.FunctionType) -> dict[str, Any]:
    """What the function, or one that is defined inside it, may look up among the globals, by name."""
    return {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(sorted(set(code.co_names).union(*inner)))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not assigned yet
        return None


def _is_of_user(kind: type) -> bool:
    return not _is_foreign(kind) and not (kind.__module__ or "").startswith("torchddn.")


def _is_foreign(function: types.FunctionType | type) -> bool:
    module = function.__module__ or ""
    return module == "torch" or module.startswith(_FOREIGN)
