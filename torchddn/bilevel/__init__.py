"""Bi-level optimization: an upper objective of the solution of a lower problem."""

from torchddn.bilevel.descent import minimize_bilevel
from torchddn.bilevel.hypergradient import Hypergradient, hypergradient
from torchddn.bilevel.pair import Answer, Bilevel
from torchddn.bilevel.quasi_newton import BFGS
from torchddn.bilevel.result import BilevelResult, UpperStep
from torchddn.bilevel.sets import Box, Positive, Simplex
from torchddn.bilevel.single_level import SingleLevel, single_level

__all__ = [
    "BFGS",
    "Answer",
    "Bilevel",
    "BilevelResult",
    "Box",
    "Hypergradient",
    "Positive",
    "Simplex",
    "SingleLevel",
    "UpperStep",
    "hypergradient",
    "minimize_bilevel",
    "single_level",
]
