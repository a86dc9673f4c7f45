"""Ipopt through CasADi, whose wheels bring it along, on functions that CasADi cannot differentiate."""

from collections.abc import Callable

import casadi
import numpy as np

from benchmarks.collection import MAX_STEPS, Answer
from torchddn import Status
from torchddn.testing import Item

__all__ = ["solve"]

_STATUS = {
    "Solve_Succeeded": Status.CONVERGED,
    "Feasible_Point_Found": Status.CONVERGED,  # of a square system
    "Infeasible_Problem_Detected": Status.INFEASIBLE,
    "Diverging_Iterates": Status.UNBOUNDED,
    "Maximum_Iterations_Exceeded": Status.MAX_STEPS,
}


class _Function(casadi.Callback):
    """A function of NumPy vectors with the inputs and outputs that CasADi expects under the name that it gives it."""

    def __init__(
        self,
        name: str,
        function: Callable[..., tuple[object, ...]],
        inputs: dict[str, casadi.Sparsity],
        outputs: dict[str, casadi.Sparsity],
    ) -> None:
        casadi.Callback.__init__(self)
        self._function = function
        self._inputs, self._outputs = list(inputs.items()), list(outputs.items())
        self.construct(name)

    def get_n_in(self) -> int:
        return len(self._inputs)

    def get_n_out(self) -> int:
        return len(self._outputs)

    def get_name_in(self, i: int) -> str:
        return self._inputs[i][0]

    def get_name_out(self, i: int) -> str:
        return self._outputs[i][0]

    def get_sparsity_in(self, i: int) -> casadi.Sparsity:
        return self._inputs[i][1]

    def get_sparsity_out(self, i: int) -> casadi.Sparsity:
        return self._outputs[i][1]

    def eval(self, inputs: list[casadi.DM]) -> list[casadi.DM]:
        values = self._function(*(np.array(value).ravel() for value in inputs))
        pairs = zip(values, self._outputs, strict=True)
        return [casadi.project(casadi.DM(value), sparsity) for value, (_, sparsity) in pairs]


def solve(item: Item) -> Answer:
    """Wächter and Biegler's interior-point method."""
    m, num_rows = len(item.start), item.p + item.q
    dense, upper_half = casadi.Sparsity.dense, casadi.Sparsity.upper(m)
    y = {"x": dense(m, 1), "p": casadi.Sparsity(0, 1)}
    dual = {"lam_f": dense(1, 1), "lam_g": dense(num_rows, 1)}
    f, g = {"f": dense(1, 1)}, {"g": dense(num_rows, 1)}
    parts = {
        "nlp": ((lambda y, _: (item.objective(y), item.constraints(y))), y, f | g),
        "nlp_grad_f": (
            (lambda y, _: (item.objective(y), item.gradient(y))),
            y,
            f | {"grad_f_x": dense(m, 1)},
        ),
        "nlp_jac_g": (
            (lambda y, _: (item.constraints(y), item.jacobian(y))),
            y,
            g | {"jac_g_x": dense(num_rows, m)},
        ),
        "nlp_hess_l": (
            (lambda y, _, weight, dual: (item.hessian(y, dual, float(weight[0])),)),
            y | dual,
            {"triu_hess_gamma_x_x": upper_half},
        ),
    }
    functions = {name: _Function(name, *part) for name, part in parts.items()}
    options = {
        "grad_f": functions["nlp_grad_f"],
        "jac_g": functions["nlp_jac_g"],
        "hess_lag": functions["nlp_hess_l"],
        "no_nlp_grad": True,
        "print_time": False,
        "show_eval_warnings": False,
        "ipopt": {
            "print_level": 0,
            "sb": "yes",
            "max_iter": MAX_STEPS,
            "tol": 1e-9,
            # What its scaling of the problem and its relaxed bounds would let pass.
            **dict.fromkeys(("dual_inf_tol", "constr_viol_tol", "compl_inf_tol"), 1e-8),
            "bound_relax_factor": 0.0,
        },
    }
    solver = casadi.nlpsol("solver", "ipopt", functions["nlp"], options)
    found = solver(
        x0=item.start,
        lbx=item.lower,
        ubx=item.upper,
        lbg=np.r_[np.zeros(item.p), np.full(item.q, -np.inf)],
        ubg=np.zeros(num_rows),
    )
    seen = solver.stats()
    status = _STATUS.get(seen["return_status"], Status.STALLED)
    return Answer(np.array(found["x"]).ravel(), status, seen["iter_count"])
