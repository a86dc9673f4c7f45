"""Robust pooling as modules, named and shaped as the average poolings of torch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchddn import penalties
from torchddn.errors import InvalidInputError
from torchddn.functional import robust_pool, robust_vector_pool
from torchddn.functional.nodes.arguments import check_flag, check_floating
from torchddn.nn._scale import Scale
from torchddn.penalties import Penalty
from torchddn.status import Solution, check_failure_policy

__all__ = ["RobustPool", "RobustPool2d", "RobustVectorPool", "RobustVectorPool2d"]


class RobustPool(nn.Module):
    """Pools axes of a tensor by :func:`torchddn.functional.robust_pool`.

    Args:
        penalty: As of the function.
        alpha: As of the function; a start if it is learned.
        dim: As of the function.
        keepdim: As of the function.
        learnable_alpha: Whether alpha is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.
        compile: As of the function.

    Example:
        >>> import torch
        >>> RobustPool("huber", dim=(1, 2))(torch.ones(4, 5, 6)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        penalty: str | Penalty = "huber",
        alpha: float | Tensor = 1.0,
        dim: int | tuple[int, ...] = -1,
        keepdim: bool = False,
        *,
        learnable_alpha: bool = False,
        on_failure: str = "warn",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.penalty = penalties.get(penalty, "RobustPool")
        self.scale = Scale("RobustPool", "alpha", alpha, learnable_alpha)
        check_flag("RobustPool", "keepdim", keepdim)
        check_failure_policy("RobustPool", on_failure)
        check_flag("RobustPool", "compile", compile)
        self.dim, self.keepdim, self.on_failure, self.compiled = dim, keepdim, on_failure, compile

    def forward(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Args as of the function."""
        given = {"weights": weights, "mask": mask, "on_failure": self.on_failure, "compile": self.compiled}
        return robust_pool(x, self.penalty, self.scale(), self.dim, self.keepdim, **given)

    def solve(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        given = {"weights": weights, "mask": mask, "on_failure": self.on_failure, "compile": self.compiled}
        return robust_pool(x, self.penalty, self.scale(), self.dim, self.keepdim, **given, solution=True)

    def extra_repr(self) -> str:
        return f"{_describe(self.penalty, self.scale)}, dim={self.dim}, keepdim={self.keepdim}"


class RobustPool2d(nn.Module):
    """Pools images ``(B, C, H, W)`` or ``(C, H, W)`` channel by channel, each number for itself.

    Without ``kernel_size`` the whole image, to ``(B, C)``; with it, windows as ``torch.nn.AvgPool2d`` does, to
    ``(B, C, H_out, W_out)``. Zeros from padding are pooled like any other number, as ``AvgPool2d`` does by default.

    Args:
        penalty: As of :func:`torchddn.functional.robust_pool`.
        alpha: Positive number, or ``(C,)``; a start if it is learned.
        kernel_size: Size of the window, a number or a pair; None for the whole image.
        stride: From window to window, a number or a pair; ``kernel_size`` unless given.
        padding: Zeros on each side, a number or a pair; at most half of ``kernel_size``.
        learnable_alpha: Whether alpha is a parameter, kept positive as the exponential of one.
        on_failure: As of :func:`torchddn.functional.robust_pool`.
        compile: As of :func:`torchddn.functional.robust_pool`.

    Example:
        >>> import torch
        >>> RobustPool2d("welsch", kernel_size=2)(torch.ones(4, 3, 8, 8)).shape
        torch.Size([4, 3, 4, 4])
    """

    def __init__(
        self,
        penalty: str | Penalty = "huber",
        alpha: float | Tensor = 1.0,
        kernel_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        learnable_alpha: bool = False,
        on_failure: str = "warn",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.penalty = penalties.get(penalty, "RobustPool2d")
        self.scale = Scale("RobustPool2d", "alpha", alpha, learnable_alpha)
        self.windows = _Windows("RobustPool2d", kernel_size, stride, padding)
        check_failure_policy("RobustPool2d", on_failure)
        check_flag("RobustPool2d", "compile", compile)
        self.on_failure, self.compiled = on_failure, compile

    def forward(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``weights`` and ``mask`` as of the function, broadcastable to ``x``; padding counts as any other number."""
        return robust_pool(self.windows(x), self.penalty, self._alpha(), (-2, -1), **self._given(x, weights, mask))

    def solve(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        given = self._given(x, weights, mask)
        return robust_pool(self.windows(x), self.penalty, self._alpha(), (-2, -1), **given, solution=True)

    def _given(self, x: Tensor, weights: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        cut = {
            name: None if t is None else self.windows.of_points(name, t, x.shape)
            for name, t in (("weights", weights), ("mask", mask))
        }
        return {**cut, "on_failure": self.on_failure, "compile": self.compiled}

    def _alpha(self) -> float | Tensor:
        alpha = self.scale()
        per_channel = isinstance(alpha, Tensor) and alpha.dim() == 1 and self.windows.kernel_size is not None
        return alpha[:, None, None] if per_channel else alpha

    def extra_repr(self) -> str:
        return f"{_describe(self.penalty, self.scale)}{self.windows.describe()}"


class RobustVectorPool(nn.Module):
    """Pools points ``(*B, n, m)`` to ``(*B, m)`` by :func:`torchddn.functional.robust_vector_pool`.

    Args:
        penalty: As of the function.
        alpha: As of the function; a start if it is learned.
        learnable_alpha: Whether alpha is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.
        compile: As of the function.

    Example:
        >>> import torch
        >>> RobustVectorPool("huber", alpha=0.5)(torch.ones(4, 100, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        penalty: str | Penalty = "huber",
        alpha: float | Tensor = 1.0,
        *,
        learnable_alpha: bool = False,
        on_failure: str = "warn",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.penalty = penalties.get(penalty, "RobustVectorPool")
        self.scale = Scale("RobustVectorPool", "alpha", alpha, learnable_alpha)
        check_failure_policy("RobustVectorPool", on_failure)
        check_flag("RobustVectorPool", "compile", compile)
        self.on_failure, self.compiled = on_failure, compile

    def forward(self, points: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Args as of the function."""
        given = {"weights": weights, "mask": mask, "on_failure": self.on_failure, "compile": self.compiled}
        return robust_vector_pool(points, self.penalty, self.scale(), **given)

    def solve(self, points: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        given = {"weights": weights, "mask": mask, "on_failure": self.on_failure, "compile": self.compiled}
        return robust_vector_pool(points, self.penalty, self.scale(), **given, solution=True)

    def extra_repr(self) -> str:
        return _describe(self.penalty, self.scale)


class RobustVectorPool2d(nn.Module):
    """Pools images ``(B, C, H, W)`` or ``(C, H, W)`` pixel by pixel: a pixel is a point in R^C.

    Without ``kernel_size`` the whole image, to ``(B, C)``; with it, windows as ``torch.nn.AvgPool2d`` does, to
    ``(B, C, H_out, W_out)``. Pixels from padding are points at the origin.

    Args:
        penalty: As of :func:`torchddn.functional.robust_vector_pool`.
        alpha: Positive number; a start if it is learned.
        kernel_size: Size of the window, a number or a pair; None for the whole image.
        stride: From window to window, a number or a pair; ``kernel_size`` unless given.
        padding: Zeros on each side, a number or a pair; at most half of ``kernel_size``.
        learnable_alpha: Whether alpha is a parameter, kept positive as the exponential of one.
        on_failure: As of :func:`torchddn.functional.robust_vector_pool`.
        compile: As of :func:`torchddn.functional.robust_vector_pool`.

    Example:
        >>> import torch
        >>> RobustVectorPool2d("huber")(torch.ones(4, 3, 8, 8)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        penalty: str | Penalty = "huber",
        alpha: float | Tensor = 1.0,
        kernel_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        learnable_alpha: bool = False,
        on_failure: str = "warn",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.penalty = penalties.get(penalty, "RobustVectorPool2d")
        self.scale = Scale("RobustVectorPool2d", "alpha", alpha, learnable_alpha)
        self.windows = _Windows("RobustVectorPool2d", kernel_size, stride, padding)
        check_failure_policy("RobustVectorPool2d", on_failure)
        check_flag("RobustVectorPool2d", "compile", compile)
        self.on_failure, self.compiled = on_failure, compile

    def forward(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``weights`` and ``mask`` as of the function, one for each pixel: broadcastable to ``x`` without its channels.

        Padding counts as any other pixel.
        """
        points = self._points(x)
        pooled = robust_vector_pool(points, self.penalty, self.scale(), **self._given(x, weights, mask))
        return pooled.movedim(-1, x.dim() - 3)

    def solve(self, x: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Solution:
        """As of the function: ``y`` has the channels last, other fields have no channels."""
        given = self._given(x, weights, mask)
        return robust_vector_pool(self._points(x), self.penalty, self.scale(), **given, solution=True)

    def _given(self, x: Tensor, weights: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        pixels = x.shape[:-3] + x.shape[-2:]
        cut = {
            name: None if t is None else self.windows.of_points(name, t, pixels).flatten(-2)
            for name, t in (("weights", weights), ("mask", mask))
        }
        return {**cut, "on_failure": self.on_failure, "compile": self.compiled}

    def _points(self, x: Tensor) -> Tensor:
        """``(*B, n, C)``, or ``(*B, H_out, W_out, n, C)``."""
        return self.windows(x).flatten(-2).movedim(x.dim() - 3, -1)

    def extra_repr(self) -> str:
        return f"{_describe(self.penalty, self.scale)}{self.windows.describe()}"


class _Windows:
    """Cuts images into windows: ``(*B, C, H, W)`` to ``(*B, C, H_out, W_out, *kernel_size)``, or leaves them whole."""

    def __init__(self, call: str, kernel_size: object, stride: object, padding: object) -> None:
        self.call = call
        self.kernel_size = None if kernel_size is None else _pair(call, "kernel_size", kernel_size, least=1)
        if self.kernel_size is None and (stride is not None or padding != 0):
            raise InvalidInputError(
                f"`{call}(kernel_size=...)` must be given with `stride` or `padding`, got None. Without it, the whole "
                f"image is pooled."
            )
        self.stride = self.kernel_size if stride is None else _pair(call, "stride", stride, least=1)
        self.padding = _pair(call, "padding", padding, least=0)
        if self.kernel_size is not None and any(2 * a > k for a, k in zip(self.padding, self.kernel_size, strict=True)):
            raise InvalidInputError(
                f"`{call}(padding=...)` must be at most half of the kernel size {self.kernel_size}, got {padding!r}."
            )

    def __call__(self, x: Tensor) -> Tensor:
        check_floating(self.call, "x", x, "(B, C, H, W) or (C, H, W)", 3)
        if x.dim() > 4:
            raise InvalidInputError(
                f"`{self.call}(x=...)` must have shape (B, C, H, W) or (C, H, W), got {tuple(x.shape)}."
            )
        lengths = [length + 2 * a for length, a in zip(x.shape[-2:], self.padding, strict=True)]
        if any(length < k for length, k in zip(lengths, self.kernel_size or (0, 0), strict=True)):
            raise InvalidInputError(
                f"`{self.call}(x=...)` must be at least as large as the window {self.kernel_size} after padding, got "
                f"{tuple(x.shape)}."
            )
        return self._cut(x, 0)

    def of_points(self, name: str, t: Tensor, shape: torch.Size) -> Tensor:
        """The windows of weights or a mask, first expanded to ``shape``, the axes of which end with those of images."""
        if not isinstance(t, Tensor):
            raise InvalidInputError(f"`{self.call}({name}=...)` must be a tensor, got {type(t).__name__}.")
        sizes = zip(reversed(t.shape), reversed(shape), strict=False)
        if t.dim() > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
            raise InvalidInputError(
                f"`{self.call}({name}=...)` must have a shape that broadcasts to {tuple(shape)}, got {tuple(t.shape)}."
            )
        return self._cut(t.broadcast_to(shape), 1)

    def _cut(self, x: Tensor, outside: int) -> Tensor:
        if self.kernel_size is None:
            return x
        (top, left), size, stride = self.padding, self.kernel_size, self.stride or self.kernel_size
        padded = F.pad(x, (left, left, top, top), value=outside) if top or left else x
        return padded.unfold(-2, size[0], stride[0]).unfold(-2, size[1], stride[1])

    def describe(self) -> str:
        if self.kernel_size is None:
            return ""
        return f", kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _pair(call: str, name: str, value: Any, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in pair):
        return pair
    raise InvalidInputError(
        f"`{call}({name}=...)` must be an integer of at least {least}, or a pair of such, got {value!r}."
    )


def _describe(penalty: Penalty, scale: Scale) -> str:
    return f"{penalty}, {scale.describe('alpha')}"
