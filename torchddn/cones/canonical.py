r"""What cvxpy makes of a problem: a cone program whose data are affine functions of the parameters.

::

    min_x  1/2 x'P x + q'x + d   subject to   A x + s = b,  s in K

The functions are read from cvxpy's canonical form once; cvxpy takes no part afterwards.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.cones.optimality import ConeData
from torchddn.cones.product import ProductCone

__all__ = ["AffineMap", "Canonical", "Leaf", "canonicalize"]


class AffineMap(NamedTuple):
    """A vector whose entries are affine in the parameters, as a constant and the entries of a sparse matrix."""

    constant: Tensor  # (size,)
    places: Tensor
    columns: Tensor
    weights: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        """``(R, size)`` of parameters ``(R, p)``."""
        constant, places, columns, weights = (part.to(theta.device) for part in self)
        start = constant.expand(theta.shape[0], -1)
        return start.index_add(1, places, theta[:, columns] * weights) if len(places) else start


class Leaf(NamedTuple):
    """Where the entries of a parameter or of a variable are, in the order of rows.

    Of a parameter: its entries which the canonical form knows, in the order of those. Of a variable: its place in x for
    each entry, -1 for one that is always zero.
    """

    shape: tuple[int, ...]
    places: Tensor
    is_log: bool = False


@dataclasses.dataclass(frozen=True)
class Canonical:
    """The canonical form of a problem.

    Attributes:
        cone: What the slacks lie in.
        sign: -1 for a problem that maximizes, whose objective is negated here.
        in_logs: Whether the variables are the logarithms of those of the problem, a geometric program.
        parameters: Index of a parameter and the :class:`Leaf` of its entries, in the order of the parameter vector.
        variables: Of each variable.
        P: Its entries; so are q, A, b, and d, a single number.
        pattern: Rows and columns of the entries of P, then those of A.
    """

    cone: ProductCone
    sign: float
    in_logs: bool
    parameters: tuple[tuple[int, Leaf], ...]
    variables: tuple[Leaf, ...]
    P: AffineMap
    q: AffineMap
    A: AffineMap
    b: AffineMap
    d: AffineMap
    pattern: tuple[Tensor, Tensor, Tensor, Tensor]

    def data(self, theta: Tensor) -> ConeData:
        """The programs of parameter vectors ``(R, p)``."""
        R = theta.shape[0]
        pattern = [part.to(theta.device).expand(R, -1) for part in self.pattern]
        return ConeData(self.P(theta), self.q(theta), self.A(theta), self.b(theta), *pattern)


def canonicalize(problem: Any, parameters: Sequence[Any], variables: Sequence[Any], gp: bool) -> Canonical:
    """The canonical form of a cvxpy problem that is DPP and whose leaves are real."""
    with warnings.catch_warnings():
        # Of parameters without a value, which it looks for and does not need.
        warnings.simplefilter("ignore")
        # A problem of its own: what cvxpy keeps in one that is used again needs values, too.
        own = type(problem)(problem.objective, problem.constraints)
        data, chain, _ = own.get_problem_data("CLARABEL", gp=gp, enforce_dpp=True)
    program, dims = data["param_prob"], data["dims"]
    cone = ProductCone(
        zero=int(dims.zero),
        nonnegative=int(dims.nonneg),
        second_order=tuple(int(length) for length in dims.soc),
        semidefinite=tuple(int(order) for order in dims.psd),
        exponential=int(dims.exp),
        power=(
            *((float(a), 1 - float(a)) for a in dims.p3d),
            *(tuple(float(a) for a in exponents) for exponents in dims.pnd),
        ),
    )
    n, m, p = int(program.x.size), cone.size, int(program.total_param_size)
    if program.P is None:
        P, P_rows, P_columns = _read_matrix(np.zeros(0, int), np.zeros(0, int), np.zeros(0), n, p)
    else:
        at, columns, weights = _entries(program.P)
        mirrored = at % n * n + at // n
        P, P_rows, P_columns = _read_matrix(
            np.r_[at, mirrored], np.r_[columns, columns], np.r_[weights, weights] / 2, n, p
        )
    at, columns, weights = _entries(program.A)
    of_b = at >= m * n
    A, A_rows, A_columns = _read_matrix(at[~of_b], columns[~of_b], -weights[~of_b], m, p)
    b = _read_vector(at[of_b] - m * n, columns[of_b], weights[of_b], m, p)
    at, columns, weights = _entries(program.q)
    of_d = at >= n
    q = _read_vector(at[~of_d], columns[~of_d], weights[~of_d], n, p)
    d = _read_vector(at[of_d] - n, columns[of_d], weights[of_d], 1, p)
    return Canonical(
        cone=cone,
        sign=-1.0 if type(problem.objective).__name__ == "Maximize" else 1.0,
        in_logs=gp,
        parameters=_find_parameters(program, chain, parameters),
        variables=tuple(_find_variable(program, chain, variable) for variable in variables),
        P=P,
        q=q,
        A=A,
        b=b,
        d=d,
        pattern=(P_rows, P_columns, A_rows, A_columns),
    )


def _entries(tensor: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = importlib.import_module("scipy.sparse").coo_array(tensor)
    return found.row.astype(np.int64), found.col.astype(np.int64), found.data


def _read_matrix(
    at: np.ndarray, columns: np.ndarray, weights: np.ndarray, num_rows: int, p: int
) -> tuple[AffineMap, Tensor, Tensor]:
    """The map of entries that may differ from zero, in the order of columns, and where they are."""
    used, places = np.unique(at, return_inverse=True)
    values = _read_vector(places, columns, weights, len(used), p)
    rows = max(num_rows, 1)
    return values, torch.as_tensor(used % rows)[None], torch.as_tensor(used // rows)[None]


def _read_vector(places: np.ndarray, columns: np.ndarray, weights: np.ndarray, size: int, p: int) -> AffineMap:
    """Column ``p`` of the sparse matrix is the constant."""
    fixed = columns == p
    constant = np.bincount(places[fixed], weights[fixed], minlength=size).astype(float)
    parts = (constant, places[~fixed], columns[~fixed], weights[~fixed].astype(float))
    return AffineMap(*(torch.as_tensor(part) for part in parts))


def _find_parameters(program: Any, chain: Any, parameters: Sequence[Any]) -> tuple[tuple[int, Leaf], ...]:
    """Which entries of which parameter make up the parameter vector, following what the reductions put in its place."""
    found: list[tuple[int, int, Leaf]] = []
    for index, parameter in enumerate(parameters):
        # What stands for the parameter, and whether for its logarithm.
        known = [(parameter, False)]
        for reduction in chain.reductions:
            methods = getattr(reduction, "canon_methods", None)
            in_logs = getattr(methods, "_parameters", None)
            if in_logs is not None:
                known += [(in_logs[parameter], True)] if parameter in in_logs else []
        for leaf, is_log in known:
            shape = tuple(leaf.shape)
            places = np.arange(int(np.prod(shape))).reshape(shape)
            smaller = _smaller(chain, "_parameters", leaf)
            if smaller is not None:
                places = np.asarray(_attributes().lower_value(leaf, places))
                leaf = smaller
            column = program.param_id_to_col.get(leaf.id)
            if column is not None:
                flat = torch.as_tensor(places.astype(np.int64).flatten(order="F"))
                found.append((column, index, Leaf(shape, flat, is_log)))
    return tuple((index, leaf) for _, index, leaf in sorted(found, key=lambda one: one[0]))


def _find_variable(program: Any, chain: Any, variable: Any) -> Leaf:
    leaf, is_log = variable, False
    for reduction in chain.reductions:
        in_logs = getattr(getattr(reduction, "canon_methods", None), "_variables", None)
        if in_logs is not None and variable in in_logs:
            leaf, is_log = in_logs[variable], True
    smaller = _smaller(chain, "_variables", leaf)
    name = leaf.id if smaller is None else smaller.id
    start, size = program.var_id_to_col[name], program.id_to_var[name].size
    shape = tuple(variable.shape)
    numbers = np.arange(1, size + 1, dtype=float)
    if size == leaf.size and not leaf._has_dim_reducing_attr:
        places = numbers.reshape(shape, order="F")
    else:
        places = _attributes().recover_value_for_leaf(leaf, numbers, project=False)
        places = np.asarray(places.toarray() if hasattr(places, "toarray") else places)
    places = np.where(places > 0, places - 1 + start, -1).astype(np.int64)
    return Leaf(shape, torch.as_tensor(places.flatten()), is_log)


def _smaller(chain: Any, kind: str, leaf: Any) -> Any:
    """The leaf that holds the entries which are not determined by others, if there is one."""
    for reduction in chain.reductions:
        if type(reduction).__name__ == "CvxAttr2Constr" and leaf in getattr(reduction, kind, {}):
            return getattr(reduction, kind)[leaf]
    return None


def _attributes() -> Any:
    return importlib.import_module("cvxpy.reductions.cvx_attr2constr")
