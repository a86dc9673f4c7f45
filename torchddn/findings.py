"""What a backward pass found out about its gradient, and how it tells: one warning per kind, and a record."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.active_set import WEAK, ActiveSet
from torchddn.diagnostics import Record
from torchddn.errors import DegenerateGradientWarning
from torchddn.linear import Certified, Operator, Saddle
from torchddn.problem import BatchedProblem

__all__ = ["Findings"]


class Findings(NamedTuple):
    """One linear solve of a backward pass. Flags are ``(B,)``; ``active`` is None where there are equalities only."""

    problem: BatchedProblem
    certified: Certified
    sound: Tensor
    active: ActiveSet | None
    weak: Tensor | None  # sound items with a weakly active constraint
    operator: Operator | None  # None only if every item is certified, and none is singular
    v: Tensor  # the incoming gradient
    structure: str  # what the derivatives look like, in words
    notes: tuple[str, ...]  # what there is to say of it

    def record(self, seconds: float) -> Record:
        """The record for whoever listens."""
        residual = self.certified.residual
        redundant = _items(self._redundant())
        return Record(
            call=self.problem.call,
            stage="backward",
            method=", ".join(sorted(set(self.certified.method))),
            seconds=seconds,
            num_items=len(residual),
            statuses={},
            num_steps=0,
            residual=float(residual.max()) if len(residual) else 0.0,
            degenerate=_items(self.certified.degenerate),
            weakly_active=() if self.weak is None else _items(self.weak),
            redundant=redundant,
            structure=self.structure,
            notes=(*self.notes, *((self._describe_redundant(),) if redundant else ())),
        )

    def warn(self) -> None:
        """Warns of sound items whose gradient is asked for and one of several, not certified, or one-sided."""
        if self.operator is not None:
            self._warn_of_degenerate()
            self._warn_of_redundant()
        if self.weak is not None:
            self._warn_of_weak(self.weak)

    def _asked(self, which: Tensor, first: int = 0) -> Tensor:
        """Those of ``which`` with an incoming gradient from the unknown ``first`` on; usually there are none at all."""
        return which & (self.v[:, first:] != 0).flatten(1).any(1) if bool(which.any()) else which

    def _redundant(self) -> Tensor:
        return self.certified.singular & ~self.certified.degenerate & self.sound

    def _warn_of_degenerate(self) -> None:
        degenerate, certified = self.certified.degenerate, self.certified.certified
        doubtful = self._asked((degenerate | ~certified) & self.sound)
        if not bool(doubtful.any()):
            return
        self._say(
            degenerate & doubtful,
            "is one of many, because the solution is not isolated there",
            "Add a regularizer or a constraint that singles one out; `Implicit(on_singular=...)` says what is "
            "returned meanwhile (minimum norm unless said otherwise).",
        )
        self._say(
            doubtful & ~degenerate,
            "could not be certified",
            "Its system is too ill-conditioned for this dtype: use float64 or rescale the problem.",
        )

    def _describe_redundant(self) -> str:
        item = _items(self._redundant())[0]
        names = self._dependent_rows(item)
        return f"active constraints depend on each other (of item {item}: {', '.join(names) or 'not known which'})"

    def _warn_of_redundant(self) -> None:
        # The gradient of y does not mind; that of multipliers is one choice among many, if somebody asks for it.
        asked = self._asked(self._redundant(), self.problem.m)
        if bool(asked.any()):
            self._say(
                asked,
                f"is one of many for the multipliers, because {self._describe_redundant()}",
                "It is the one of minimum norm. Leave redundant constraints out.",
            )

    def _warn_of_weak(self, weak: Tensor) -> None:
        weak = self._asked(weak)
        if not bool(weak.any()):
            return
        assert self.active is not None
        item = _items(weak)[0]
        names = ", ".join(self.active.names(item, WEAK)[:8])
        self._say(
            weak,
            f"is one-sided, because a constraint is active without a multiplier (of item {item}: {names})",
            "`Implicit(weakly_active=...)` chooses the side: 'active' keeps the constraint, 'inactive' lets go of it.",
        )

    def _dependent_rows(self, item: int) -> list[str]:
        """Names of the constraints of an item whose gradients, along the free variables, are linearly dependent."""
        if not isinstance(self.operator, Saddle):
            return []
        m = self.problem.m
        own = self.operator.select(torch.tensor([item], device=self.operator.device))
        A = own.dense()[0, m:, :m]
        rows = torch.ones(len(A), dtype=torch.bool, device=A.device)
        rows = rows if self.operator.active is None else self.operator.active[item]
        size = A.square().sum(1, keepdim=True).sqrt()
        A = A / torch.where(size > 0, size, 1.0) * rows[:, None]
        left, values, _ = torch.linalg.svd(A)
        rank = int((values > torch.finfo(A.dtype).eps ** 0.5 * values[:1]).sum())
        involved = (left[:, rank:].square() * rows[:, None]).sum(1) > torch.finfo(A.dtype).eps ** 0.5
        p = self.problem.p
        names = [f"equality[{i}]" if i < p else f"inequality[{i - p}]" for i in _items(involved)]
        return names[:8]

    def _say(self, which: Tensor, reason: str, advice: str) -> None:
        items = _items(which)
        if not items:
            return
        shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
        worst = self.certified.residual[which].max().item()
        warnings.warn(
            f"`{self.problem.call}`: the gradient of {len(items)} of {len(which)} items {reason} (items {shown}; worst "
            f"residual {worst:.2e}). {advice}",
            DegenerateGradientWarning,
            stacklevel=2,
        )


def _items(mask: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(mask).flatten().tolist())
