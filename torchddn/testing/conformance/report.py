"""How the checks of a node ended, and how that reads."""

import dataclasses

from torchddn.errors import DDNError

__all__ = ["Check", "Conformance", "ConformanceError", "FailedError", "SkippedError", "first_line"]


@dataclasses.dataclass(frozen=True)
class Check:
    """How one check ended.

    Attributes:
        name: Which check.
        outcome: ``"passed"``, ``"failed"`` or ``"skipped"``.
        sentence: What was found, with numbers.
    """

    name: str
    outcome: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.outcome:8} {self.name}: {self.sentence}"


@dataclasses.dataclass(frozen=True)
class Conformance:
    """What :func:`check_node` found; ``print`` shows it.

    Attributes:
        node: Name of the node.
        checks: Every check, in the order in which they ran.
    """

    node: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        counts = [(word, sum(c.outcome == word for c in self.checks)) for word in ("passed", "failed", "skipped")]
        head = f"{self.node}: " + ", ".join(f"{count} {word}" for word, count in counts if count)
        return "\n".join([head, *(f"  {check}" for check in self.checks)])


class ConformanceError(DDNError, AssertionError):
    """At least one check of a node failed; ``report`` is the :class:`Conformance`."""

    def __init__(self, report: Conformance) -> None:
        lines = "\n".join(f"  {check.name}: {check.sentence}" for check in report.failures)
        super().__init__(f"`{report.node}` fails {len(report.failures)} of {len(report.checks)} checks:\n{lines}")
        self.report = report


class FailedError(Exception):
    """Ends a check; the sentence says what is wrong."""


class SkippedError(Exception):
    """Ends a check that cannot be made; the sentence says why."""


def first_line(error: Exception) -> str:
    """What an exception says, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else f"{type(error).__name__}."
