"""What was found out about an item, and how it reads."""

import dataclasses
import math
from collections.abc import Iterable

import torch

from torchddn.explain.anatomy import ActiveConstraint
from torchddn.explain.effects import Effect
from torchddn.status import Status

__all__ = ["Explanation"]

_MOST_NAMES = 8


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What :func:`torchddn.explain` found out; ``print`` shows it. What could not be looked at is None.

    Attributes:
        node: Name of the node.
        item: Which item.
        kind: ``"minimize"``, ``"feasibility"`` (no objective), ``"root"`` or ``"fixed_point"``.
        n: Numbers in the item's inputs.
        m: Unknowns.
        p: Equalities.
        q: Inequalities.
        num_bounds: Finite bounds.
        dtype: Precision.
        solver: Which solver answered; empty if none was asked, because the inputs are not finite.
        status: How the solve ended.
        num_steps: Its steps.
        objective: ``f`` at the answer.
        kkt_error: How far the answer is from the optimality conditions, relative.
        violated: Names of constraints that the answer violates, each with by how much of the size of ``y``.
        active: The active constraints.
        singular_values: Of the gradients of the active constraints, each of length one, largest first.
        freedom: In how many directions ``y`` can move without leaving the active constraints.
        curvature: Lowest eigenvalue of ``L_yy`` along these directions, relative to its size: positive at a minimum
            that is isolated (the second-order condition).
        condition: Condition number of the matrix ``K``, rows and columns scaled.
        structure: What the backward pass made of the structure of ``K``.
        method: Linear solver of the backward pass.
        certificate: ``|K u - v| / |v|`` of the backward pass.
        notes: What else the diagnostics of the backward pass say.
        error: Largest relative difference of the gradient and of central finite differences along random directions.
        kink: Largest relative difference of the two one-sided differences.
        effects: What each input and parameter does.
        warned: What was warned of on the way.
        advice: What to do, a sentence each; empty if all is well.
    """

    node: str
    item: int
    kind: str
    n: int
    m: int
    p: int
    q: int
    num_bounds: int
    dtype: torch.dtype
    solver: str
    status: Status
    num_steps: int
    objective: float
    kkt_error: float
    violated: tuple[tuple[str, float], ...]
    active: tuple[ActiveConstraint, ...]
    singular_values: tuple[float, ...] | None
    freedom: int | None
    curvature: float | None
    condition: float | None
    structure: str
    method: str
    certificate: float | None
    notes: tuple[str, ...]
    error: float | None
    kink: float | None
    effects: tuple[Effect, ...]
    warned: tuple[str, ...]
    advice: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("problem", self._problem()), ("solution", self._solution()), *self._geometry(), *self._gradient()]
        rows += [("warned", text) for text in self.warned] + [("advice", text) for text in self.advice]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join([f"{self.node}, item {self.item}", *(f"  {name:{width}}{text}" for name, text in rows)])

    def _problem(self) -> str:
        counts = [(self.p, "equality", "equalities"), (self.q, "inequality", "inequalities")]
        counts.append((self.num_bounds, "bound", "bounds"))
        parts = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
        constraints = ", ".join(parts) or "no constraints"
        return f"{self.kind}, n = {self.n}, m = {self.m}, {constraints}, {self.dtype}"

    def _solution(self) -> str:
        if not self.solver:
            return f"{self.status.name}, not solved"
        text = f"{self.status.name} by {self.solver} in {self.num_steps} steps, f = {self.objective:.6g}"
        if not math.isnan(self.kkt_error):
            text += f", optimality conditions to {self.kkt_error:.1e}"
        return text

    def _geometry(self) -> list[tuple[str, str]]:
        """What holds at the point: constraints, freedom, curvature."""
        rows = []
        if self.violated:
            rows.append(("violated", _list(f"{name} ({size:.1e} of the size of y)" for name, size in self.violated)))
        if self.p + self.q + self.num_bounds and not math.isnan(self.kkt_error):
            named = [f"{c.name} ({'weak' if c.weak else f'multiplier {c.multiplier:.3g}'})" for c in self.active]
            rows.append(("active", f"{len(named)}: {_list(named)}" if named else "none"))
        if self.singular_values:
            dependent = [c.name for c in self.active if c.dependent]
            holds = f"fails ({_list(dependent)})" if dependent else "holds"
            values = self.singular_values
            text = f"LICQ {holds}: singular values of the active gradients {values[0]:.2g} to {values[-1]:.2g}"
            rows.append(("regularity", text))
        if self.freedom is not None:
            rows.append(("freedom", f"{self.freedom} of {self.m} direction{'s' * (self.m > 1)}"))
        if self.curvature is not None:
            holds = "fails" if self.is_flat else "holds"
            text = f"{holds}: lowest curvature in these directions {self.curvature:.1e} of the size of L_yy"
            rows.append(("second order", text))
        if self.condition is not None:
            rows.append(("conditioning", f"{self.condition:.1e}"))
        return rows

    def _gradient(self) -> list[tuple[str, str]]:
        """How the gradient was computed, whether it is right, and what it is."""
        rows = [("structure", self.structure)] if self.structure else []
        if self.certificate is not None:
            rows.append(("backward", f"{self.method}, certificate {self.certificate:.1e}"))
        rows += [("note", note) for note in self.notes]
        if self.error is not None:
            text = f"the gradient is off by {self.error:.1e}, its two sides differ by {self.kink:.1e}"
            rows.append(("differences", text))
        for effect in self.effects:
            where = ", ".join(effect.enters) or "nothing active"
            asked = "" if effect.requires_grad else "; given without requires_grad"
            rows.append((effect.name, f"gradient {effect.gradient:.2e}, enters {where}{asked}"))
        return rows

    @property
    def is_flat(self) -> bool:
        """Whether the second-order condition fails, as far as can be told in this precision."""
        return self.curvature is not None and self.curvature <= torch.finfo(self.dtype).eps ** 0.5


def _list(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:_MOST_NAMES]) + (", ..." if len(texts) > _MOST_NAMES else "")
