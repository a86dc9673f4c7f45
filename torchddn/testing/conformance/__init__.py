"""The conformance suite of nodes, and its report."""

from torchddn.testing.conformance.report import Check, Conformance, ConformanceError
from torchddn.testing.conformance.suite import check_node

__all__ = ["Check", "Conformance", "ConformanceError", "check_node"]
