"""Convex quadratic programs in batches: solved exactly, or proved to have no solution.

Plain tensors in and out; :func:`torchddn.functional.quadratic_program` is the node.
"""

from torchddn.quadratic.program import Data, Program
from torchddn.quadratic.solution import Answer, solve_program

__all__ = ["Answer", "Data", "Program", "solve_program"]
