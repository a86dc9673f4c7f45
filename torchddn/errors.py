"""The exceptions and warnings of torchddn.

A wrong argument raises :class:`InvalidInputError` before anything is computed. A solve that does not
succeed is reported per item (:class:`torchddn.Status`) and becomes one of the errors or warnings below
as ``on_failure=`` says.
"""

__all__ = [
    "CompileWarning",
    "ConvergenceWarning",
    "DDNError",
    "DegenerateGradientWarning",
    "InfeasibleError",
    "InvalidInputError",
    "SingularError",
    "SolveError",
    "UnboundedError",
]


class DDNError(Exception):
    """Every error that torchddn raises on purpose."""


class InvalidInputError(DDNError, ValueError):
    """An argument is wrong; the message names call, argument, what came and what to do."""


class SolveError(DDNError, RuntimeError):
    """A problem was not solved and ``on_failure="raise"`` asked to hear of it."""


class InfeasibleError(SolveError):
    """No point satisfies the constraints of at least one item."""


class UnboundedError(SolveError):
    """The objective of at least one item decreases without limit."""


class SingularError(SolveError):
    """A gradient is not determined by the problem and ``on_singular="raise"`` asked to hear of it."""


class ConvergenceWarning(UserWarning):
    """Some items of a batch were not solved to tolerance."""


class DegenerateGradientWarning(UserWarning):
    """Some items of a batch have a gradient that the problem does not determine uniquely."""


class CompileWarning(UserWarning):
    """A node that was asked to be compiled runs, in part, as if it had not been."""
