"""Why a gradient is what it is: a report about one item of a node, in words and numbers."""

from torchddn.explain.anatomy import ActiveConstraint
from torchddn.explain.effects import Effect
from torchddn.explain.examination import explain
from torchddn.explain.report import Explanation

__all__ = ["ActiveConstraint", "Effect", "Explanation", "explain"]
