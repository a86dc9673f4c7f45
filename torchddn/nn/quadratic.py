"""Quadratic programs as a module."""

from typing import Any

from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import quadratic_program
from torchddn.status import Solution

__all__ = ["QuadraticProgram"]

_DATA = ("Q", "q", "A", "b", "G", "h", "lower", "upper")


class QuadraticProgram(nn.Module):
    """Solves the programs of :func:`torchddn.functional.quadratic_program`, some of whose data it keeps.

    What is given here is kept: an ``nn.Parameter`` is learned, a tensor is a buffer that moves with the module. The
    rest is given to ``forward``, by name.

    Args:
        Q: As of the function, or to be given to ``forward``; likewise all others.
        q: As of the function.
        A: As of the function.
        b: As of the function.
        G: As of the function.
        h: As of the function.
        lower: As of the function.
        upper: As of the function.
        smoothing: As of the function.
        weakly_active: As of the function.
        backend: As of the function.
        infeasible: As of the function.
        check: As of the function.
        max_steps: As of the function.
        on_failure: As of the function.

    Raises:
        InvalidInputError: On a call, as the function; and if something is given twice, here and there.

    Example:
        >>> import torch
        >>> layer = QuadraticProgram(Q=torch.eye(2), A=nn.Parameter(torch.ones(1, 2)), b=torch.ones(1))
        >>> layer(q=torch.tensor([-1.0, 1.0]))
        tensor([ 1.5000, -0.5000], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self,
        Q: Tensor | None = None,
        q: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        G: Tensor | None = None,
        h: Tensor | None = None,
        lower: Tensor | float | None = None,
        upper: Tensor | float | None = None,
        *,
        smoothing: float = 0.0,
        weakly_active: str = "active",
        backend: str = "torchddn",
        infeasible: str = "warn",
        check: bool = True,
        max_steps: int = 60,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        for name, value in zip(_DATA, (Q, q, A, b, G, h, lower, upper), strict=True):
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif value is None or isinstance(value, Tensor):
                self.register_buffer(name, value)
            elif name in ("lower", "upper") and isinstance(value, (int, float)) and not isinstance(value, bool):
                setattr(self, name, float(value))
            else:
                raise InvalidInputError(
                    f"`QuadraticProgram({name}=...)` must be a tensor or None, got {type(value).__name__}."
                )
        self.smoothing, self.weakly_active, self.infeasible = smoothing, weakly_active, infeasible
        self.backend, self.check, self.max_steps, self.on_failure = backend, check, max_steps, on_failure

    def forward(
        self,
        Q: Tensor | None = None,
        q: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        G: Tensor | None = None,
        h: Tensor | None = None,
        lower: Tensor | float | None = None,
        upper: Tensor | float | None = None,
    ) -> Tensor:
        given = self._data((Q, q, A, b, G, h, lower, upper))
        return quadratic_program(*given, **self._options())

    def solve(
        self,
        Q: Tensor | None = None,
        q: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        G: Tensor | None = None,
        h: Tensor | None = None,
        lower: Tensor | float | None = None,
        upper: Tensor | float | None = None,
    ) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        given = self._data((Q, q, A, b, G, h, lower, upper))
        return quadratic_program(*given, **self._options(), solution=True)

    def _data(self, given: tuple[Tensor | float | None, ...]) -> tuple[Any, ...]:
        kept = [getattr(self, name) for name in _DATA]
        for name, mine, yours in zip(_DATA, kept, given, strict=True):
            if mine is not None and yours is not None:
                raise InvalidInputError(
                    f"`QuadraticProgram.forward({name}=...)` must not be given: the module has a `{name}` of its own."
                )
        return tuple(yours if mine is None else mine for mine, yours in zip(kept, given, strict=True))

    def _options(self) -> dict[str, Any]:
        names = ("smoothing", "weakly_active", "backend", "infeasible", "check", "max_steps", "on_failure")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Which data are learned and kept, for ``print``."""
        kept = [name for name in _DATA if name not in self._parameters and getattr(self, name) is not None]
        return f"learned: {', '.join(self._parameters) or 'nothing'}; kept: {', '.join(kept) or 'nothing'}"
