"""First and second derivatives of batched functions, as products and as dense matrices.

A batched function maps ``(B, m)`` to ``(B,)`` or ``(B, r)`` and treats its items as strangers: row b of the
result depends on row b of the argument alone. So one reverse pass over the batch gives every item's
vector-Jacobian product at once, and r of them its dense Jacobian.

Everything here is reverse mode only (a forward product is two reverse ones), because forward mode cannot be
nested inside a user's own forward mode. Results carry a graph exactly when grad mode is on, so that calls nest.

Two engines serve the same calls. Plain ``torch.autograd`` on the vmapped function is the cheaper one by two to
eight times (``benchmarks/derivatives.py``) and is used wherever it is right. Inside a ``torch.func`` transform
it is not, since the tensors belong to a level of that transform, and ``torch.func`` does the same work there.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks

__all__ = [
    "Linearization",
    "dense_rows",
    "gradient",
    "hessian",
    "hessian_products",
    "inside_transform",
    "jacobian",
    "jvp",
    "outer_gradient",
    "private_graph",
    "value_and_gradient",
    "value_and_vjp",
    "vjp",
]

Batched = Callable[..., Tensor]

# Rows of a dense Jacobian are taken together until this many numbers of the argument are in flight: small
# problems pay the fixed cost of one pass only, large ones stay at the memory of one product.
ROWS_BUDGET = 2**18
# Of what is recorded for the compiler, which keeps most of them in registers and makes one loop of each pass.
_RECORDED_BUDGET = 2**22


def inside_transform() -> bool:
    """Whether a ``torch.func`` transform (grad, vmap, jvp, ...) is running around this call."""
    return torch._C._are_functorch_transforms_active()


def _is_recorded() -> bool:
    """Whether ``make_fx`` is writing down what is done."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


@contextlib.contextmanager
def private_graph() -> Iterator[None]:
    """For graphs that do not outlive the block: a user's hooks on saved tensors do not see what they save.

    Otherwise ``save_on_cpu`` would copy every intermediate of a solver, and a checkpoint would count them.
    """
    if _top_saved_tensors_default_hooks(True) is None:  # a transform, for one, allows no hooks at all
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


def _leaf(tensor: Tensor, keep_graph: bool) -> Tensor:
    """A stand-in for ``tensor`` with respect to which a *partial* derivative is taken.

    Differentiating with respect to the alias and not the tensor itself cuts the paths that reach the tensor
    through other arguments (``y`` depends on ``x``), yet keeps the result differentiable in it.
    """
    if keep_graph and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def vjp(function: Batched, primals: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """Returns ``cotangent . d function / d primals``, one tensor for each of ``primals``.

    Args:
        function: Takes the tensors of ``primals``.
        primals: Where to differentiate; any shapes.
        cotangent: Shaped as the function's value.

    Example:
        >>> with torch.no_grad():
        ...     vjp(lambda y: y.square(), (torch.tensor([[1.0, 3.0]]),), torch.ones(1, 2))
        (tensor([[2., 6.]]),)
    """
    return value_and_vjp(function, primals, cotangent)[1]


def value_and_vjp(
    function: Batched, primals: Sequence[Tensor], cotangent: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns the function's value and :func:`vjp` from one evaluation; a cotangent None stands for ones."""
    if inside_transform():
        value, pull = _functional_vjp(function, *primals)
        return value, pull(torch.ones_like(value) if cotangent is None else cotangent)
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(tensor, keep_graph) for tensor in primals]
        value = function(*leaves)
        if not value.requires_grad:
            return value, tuple(torch.zeros_like(leaf) for leaf in leaves)
        grads = torch.autograd.grad(
            value,
            leaves,
            torch.ones_like(value) if cotangent is None else cotangent,
            create_graph=keep_graph,
            materialize_grads=True,
        )
    return value if keep_graph else value.detach(), grads


def value_and_gradient(function: Batched, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``f(y)`` of shape ``(B,)`` and ``f_y`` of shape ``(B, m)``."""
    value, (f_y,) = value_and_vjp(function, (y,), None)
    return value, f_y


def gradient(function: Batched, y: Tensor) -> Tensor:
    """Returns ``f_y``, ``(B, m)``, of a function with values ``(B,)``."""
    return value_and_gradient(function, y)[1]


def outer_gradient(function: Batched, y: Tensor) -> Tensor:
    """:func:`gradient` for a user's own graph, of whose dual numbers it carries the tangents as well.

    Everything else here runs inside an opaque function, where there are none; ``torch.func`` is not used without need,
    since it does not run under a checkpoint's hooks.
    """
    if fwAD._current_level < 0:
        return gradient(function, y)
    value, pull = _functional_vjp(function, y)
    return pull(torch.ones_like(value))[0]


def jvp(function: Batched, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """Returns ``d function / d primals . tangents``; a tangent None stands for zero.

    ``J t = d/dv (v . J) t``, and ``v . J`` is linear in ``v``: two reverse passes, no forward mode.
    """
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
    directions = [tangents[i] for i in moving]

    def along(*moved: Tensor) -> Tensor:
        arguments = list(primals)
        for i, tensor in zip(moving, moved, strict=True):
            arguments[i] = tensor
        return function(*arguments)

    starts = tuple(primals[i] for i in moving)
    if inside_transform():
        value, pull = _functional_vjp(along, *starts)
        _, push = _functional_vjp(pull, torch.zeros_like(value))
        return push(tuple(directions))[0]
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(tensor, keep_graph) for tensor in starts]
        value = along(*leaves)
        if not value.requires_grad:
            return torch.zeros_like(value)
        v = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, leaves, v, create_graph=True, allow_unused=True)
        pairs = [(p, t) for p, t in zip(pulled, directions, strict=True) if p is not None and p.requires_grad]
        if not pairs:
            return torch.zeros_like(value)
        (product,) = torch.autograd.grad(
            [p for p, _ in pairs], v, [t for _, t in pairs], create_graph=keep_graph, materialize_grads=True
        )
    return product


def jacobian(function: Batched, y: Tensor, work: int = 0) -> Tensor:
    """Returns the dense ``(B, r, m)`` Jacobian of a function from ``(B, m)`` to ``(B, r)``.

    Args:
        function: Batched function.
        y: Where, ``(B, m)``.
        work: How many numbers one evaluation touches (the size of the inputs); it bounds how many rows are
            taken in one pass, and so the memory.
    """
    if inside_transform():
        value, pull = _functional_vjp(function, y)
        rows = torch.func.vmap(lambda v: pull(v)[0])(_basis(value))
        return rows.movedim(0, 1)
    return Linearization(function, y, work).dense()


def hessian(function: Batched, y: Tensor, work: int = 0) -> Tensor:
    """Returns ``f_yy``, ``(B, m, m)``, of a function with values ``(B,)``; ``work`` as for :func:`jacobian`."""
    return jacobian(lambda y: gradient(function, y), y, work)


def hessian_products(function: Batched, y: Tensor, vectors: Tensor, work: int = 0) -> Tensor:
    """Returns ``f_yy z`` for each row ``z`` of ``vectors``, ``(k, m)``, the same for all items: ``(k, B, m)``."""
    columns = vectors.unsqueeze(1).expand(-1, y.shape[0], -1)
    if inside_transform():
        _, pull = _functional_vjp(lambda y: gradient(function, y), y)
        return torch.func.vmap(lambda v: pull(v)[0])(columns)
    return Linearization(lambda y: gradient(function, y), y, work).vjps(columns)


class Linearization:
    """The Jacobian ``K`` of a batched function at a point, evaluated once and multiplied often.

    For plain tensors only (an opaque solve inside a step), not inside a ``torch.func`` transform. Products carry
    a graph exactly when grad mode was on at construction.

    Args:
        function: From ``(B, m)`` to ``(B, r)``.
        y: Where, ``(B, m)``.
        work: As for :func:`jacobian`.
    """

    def __init__(self, function: Batched, y: Tensor, work: int = 0) -> None:
        self._work = max(work, y.numel(), 1)
        self._keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            self._y = _leaf(y, self._keep_graph)
            self.value = function(self._y)
            self._v: Tensor | None = None
            self._pulled: Tensor | None = None

    def vjp(self, v: Tensor) -> Tensor:
        """``v K`` of shape ``(B, m)`` for ``v`` of shape ``(B, r)``."""
        if not self.value.requires_grad:
            return torch.zeros_like(self._y)
        return self._grad(self.value, self._y, v)

    def vjps(self, v: Tensor) -> Tensor:
        """``v K`` for several ``v``, ``(k, B, r)``: ``(k, B, m)``, some at a time."""
        if not self.value.requires_grad or not v.numel():
            return self._y.new_zeros(*v.shape[:2], self._y.shape[1])
        return _products(self.value, self._y, v, self._work, self._keep_graph)

    def vjp_and(self, v: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """:meth:`vjp`, and from the same pass what is pulled back to ``others``, leaves that the function uses."""
        if not self.value.requires_grad:
            return torch.zeros_like(self._y), [None] * len(others)
        leaves = (self._y, *others)
        product, *pulled = torch.autograd.grad(self.value, leaves, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self._y) if product is None else product, pulled

    def jvp(self, t: Tensor) -> Tensor:
        """``K t`` of shape ``(B, r)`` for ``t`` of shape ``(B, m)``."""
        if not self.value.requires_grad:
            return torch.zeros_like(self.value)
        if self._pulled is None:
            with torch.enable_grad():
                self._v = torch.zeros_like(self.value, requires_grad=True)
                (self._pulled,) = torch.autograd.grad(
                    self.value, self._y, self._v, create_graph=True, materialize_grads=True
                )
        if not self._pulled.requires_grad:
            return torch.zeros_like(self.value)
        return self._grad(self._pulled, self._v, t)

    def dense(self, num_rows: int | None = None) -> Tensor:
        """``K`` itself, ``(B, r, m)``, or its first rows, some at a time."""
        return dense_rows(self.value, self._y, self._work, self._keep_graph, num_rows)

    def _grad(self, output: Tensor, leaf: Tensor | None, v: Tensor) -> Tensor:
        assert leaf is not None
        return _product(output, leaf, v, self._keep_graph)


def dense_rows(value: Tensor, y: Tensor, work: int, keep_graph: bool, num_rows: int | None = None) -> Tensor:
    """The Jacobian of ``value``, ``(B, r)``, in the leaf ``y``, ``(B, r, m)``, or its first rows, some at a time.

    Args:
        value: With a graph that leads to ``y``, or without one.
        y: ``(B, m)``.
        work: As for :func:`jacobian`.
        keep_graph: Whether the rows are to be differentiable.
        num_rows: How many rows; None for all.
    """
    num_items, all_rows = value.shape
    num_rows = all_rows if num_rows is None else num_rows
    if not value.requires_grad or not num_items * num_rows:
        return y.new_zeros(num_items, num_rows, y.shape[1])
    rows = _products(value, y, _basis(value)[:num_rows], work, keep_graph).movedim(0, 1)
    return rows.contiguous() if _is_recorded() else rows  # compiled, they are written in that order at once


def _products(value: Tensor, y: Tensor, vectors: Tensor, work: int, keep_graph: bool) -> Tensor:
    """``v K`` for each ``v`` of ``vectors``, ``(k, B, r)``, with K the Jacobian of ``value``: ``(k, B, m)``."""

    def product(v: Tensor) -> Tensor:
        return _product(value, y, v, keep_graph)

    budget = _RECORDED_BUDGET if _is_recorded() else ROWS_BUDGET
    chunks = vectors.split(max(1, budget // max(work, y.numel(), 1)))
    # Not `is_grads_batched`: its older vmap cannot enter an autograd.Function, such as a node inside a node.
    parts = [product(chunk[0])[None] if len(chunk) == 1 else torch.func.vmap(product)(chunk) for chunk in chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _product(output: Tensor, leaf: Tensor, v: Tensor, keep_graph: bool) -> Tensor:
    (product,) = torch.autograd.grad(output, leaf, v, retain_graph=True, create_graph=keep_graph, allow_unused=True)
    # `materialize_grads` would read the shape of `leaf` in a graph that may not contain it.
    return torch.zeros_like(leaf) if product is None else product


def _functional_vjp(function: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[..., Any]]:
    value, pull, *_ = torch.func.vjp(function, *primals)
    return value, pull


def _basis(value: Tensor) -> Tensor:
    """Unit cotangents ``(r, B, r)`` for a value ``(B, r)``."""
    num_items, num_rows = value.shape
    # Not `torch.eye`: compiled, that one compares integers, number by number.
    counting = torch.promote_types(value.dtype, torch.float32)  # half precision counts to 256 only
    index = torch.arange(num_rows, dtype=counting, device=value.device)
    eye = (index[:, None] == index).to(value.dtype)
    return eye[:, None, :].expand(num_rows, num_items, num_rows)
