"""The public set of test problems."""

import functools

from torchddn.errors import InvalidInputError
from torchddn.testing.degenerate import degenerate
from torchddn.testing.hock_schittkowski import hock_schittkowski
from torchddn.testing.reference import ReferenceProblem
from torchddn.testing.unconstrained import unconstrained
from torchddn.testing.unsolvable import unsolvable

__all__ = ["collection", "tags"]


def collection(*words: str) -> tuple[ReferenceProblem, ...]:
    """Returns the test problems, or those of them that all the words fit.

    Args:
        *words: Names (``"HS 71"``), kinds (``"unconstrained"``, ``"bounds"``, ``"equality"``, ``"inequality"``,
            ``"mixed"``), tags (:func:`tags`), or ``"solvable"`` and ``"regular"``.

    Raises:
        InvalidInputError: If a word fits no problem at all.

    Example:
        >>> [example.name for example in collection("equality", "weakly active")]
        []
        >>> [example.name for example in collection("no multipliers", "inequality")]
        ['HS 13']
    """
    for word in words:
        if not any(word in _words(example) for example in _all()):
            raise InvalidInputError(
                f"`collection(*words)`: no test problem is called, is of kind or is tagged {word!r}. Kinds and tags: "
                f"{', '.join(tags())}."
            )
    return tuple(example for example in _all() if set(words) <= _words(example))


def tags() -> tuple[str, ...]:
    """Returns every kind and tag that a test problem has, sorted."""
    return tuple(sorted(set().union(*(_words(example) - {example.name} for example in _all()))))


@functools.cache
def _all() -> tuple[ReferenceProblem, ...]:
    return (*hock_schittkowski(), *unconstrained(), *degenerate(), *unsolvable())


def _words(example: ReferenceProblem) -> set[str]:
    words = {example.name, example.kind, *example.tags}
    if example.solvable:
        words.add("solvable")
    if example.regular:
        words.add("regular")
    return words
