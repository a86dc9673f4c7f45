"""Test problems with known answers, and checks for nodes of your own."""

from torchddn.testing.collection import collection, tags
from torchddn.testing.conformance import Check, Conformance, ConformanceError, check_node
from torchddn.testing.families import RandomFamily, families
from torchddn.testing.item import Item
from torchddn.testing.judge import Verdict, judge
from torchddn.testing.reference import ReferenceProblem

__all__ = [
    "Check",
    "Conformance",
    "ConformanceError",
    "Item",
    "RandomFamily",
    "ReferenceProblem",
    "Verdict",
    "check_node",
    "collection",
    "families",
    "judge",
    "tags",
]
