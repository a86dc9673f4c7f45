"""Which of the public test problems does a solver solve, how often does it claim so wrongly, and how long does it take?

Every solver gets the same problems from the same starts: each with its standard data and three perturbed ones. The
solvers of this library solve the four as one batch, the others one after the other, with exact derivatives by torch
and, beside their defaults, tolerances and limits that suit the question. ``torchddn.testing.judge`` decides: a solver
has *solved* a problem if it stops at a minimum, within ``SOLVED``, whatever it says (SLSQP often cannot tell); a *false
success* is a claim at a point that is none, by far (``FALSE``), or where there is none.

Writes tables, picture and record to ``docs/_static/collection``. Ipopt takes part where CasADi is installed.
"""

import dataclasses
import importlib
import importlib.util
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import machine, table
from torchddn import Status
from torchddn.testing import Item, ReferenceProblem, collection, judge

SIZE, LARGE = 4, 64  # items of a batch: of which claims are judged; of which another time is taken
SOLVED, FALSE, PRECISE = 1e-6, 1e-4, 1e-8  # residuals
MAX_STEPS = 1000  # of the others
OUTPUT = Path("docs/_static/collection")

# Okabe and Ito's palette, told apart by the color-blind too; ours are solid.
STYLES = {
    "torchddn": ("#000000", "-"),
    "InteriorPoint": ("#E69F00", "-"),
    "SQP": ("#009E73", "-"),
    "AugmentedLagrangian": ("#CC79A7", "-"),
    "SLSQP": ("#0072B2", "--"),
    "trust-constr": ("#D55E00", "--"),
    "Ipopt": ("#56B4E9", "--"),
}


class Answer(NamedTuple):
    """What a solver says of one item."""

    y: np.ndarray
    claim: int  # a Status
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Solver:
    """One line of the tables.

    ``solve`` takes a problem and its data, ``(B, n)``, and returns an answer per item, or None if the problem is of a
    kind that it does not take. A ``batched`` one needs less time per item for many.
    """

    name: str
    solve: Callable[[ReferenceProblem, Tensor], list[Answer] | None]
    batched: bool = False


class Judged(NamedTuple):
    """What an answer is worth."""

    residual: float
    minimum: bool  # within SOLVED
    precise: bool  # within PRECISE, and called a success
    wrong: bool  # called a success, and no minimum within FALSE
    optimal: bool  # of the least objective known, which is known for the standard data


class Run(NamedTuple):
    """One item of one problem as one solver left it."""

    problem: str
    item: int
    claim: int
    num_steps: int
    residual: float
    minimum: bool
    precise: bool
    wrong: bool
    optimal: bool
    seconds: float  # alone
    seconds_of_many: float  # per item


# The solvers


def ours(solver: Any) -> Callable[[ReferenceProblem, Tensor], list[Answer] | None]:
    """A solver of this library, as a node runs it."""

    def solve(example: ReferenceProblem, x: Tensor) -> list[Answer] | None:
        try:
            with torch.no_grad():
                found = ddn.DeclarativeNode(example.problem, solver=solver, on_failure="ignore").solve(x)
        except ddn.InvalidInputError:
            return None
        return [
            Answer(*answer)
            for answer in zip(found.y.numpy(), found.status.tolist(), found.num_steps.tolist(), strict=True)
        ]

    return solve


def one_by_one(solve: Callable[[Item], Answer]) -> Callable[[ReferenceProblem, Tensor], list[Answer]]:
    """A solver of another library, in a loop. Bounds that cross, which it may refuse, it has understood."""

    def solve_all(example: ReferenceProblem, x: Tensor) -> list[Answer]:
        answers = []
        for data in x:
            item = Item(example.problem, data)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    answers.append(solve(item))
            except (ValueError, ArithmeticError, RuntimeError):
                crossed = (item.lower > item.upper).any()
                answers.append(Answer(item.start, Status.INFEASIBLE if crossed else Status.STALLED, 0))
        return answers

    return solve_all


def slsqp(item: Item) -> Answer:
    """Kraft's sequential least squares programming."""
    rows = [
        {"type": "eq", "fun": item.equality, "jac": lambda y: item.jacobian(y)[: item.p]},
        {"type": "ineq", "fun": lambda y: -item.inequality(y), "jac": lambda y: -item.jacobian(y)[item.p :]},
    ]
    found = scipy.optimize.minimize(
        item.objective,
        item.start,
        jac=item.gradient,
        method="SLSQP",
        bounds=scipy.optimize.Bounds(item.lower, item.upper),
        constraints=[row for row, size in zip(rows, (item.p, item.q), strict=True) if size],
        options={"maxiter": MAX_STEPS, "ftol": 1e-12},
    )
    status = {0: Status.CONVERGED, 4: Status.INFEASIBLE, 9: Status.MAX_STEPS}
    return Answer(found.x, status.get(found.status, Status.STALLED), found.nit)


def trust_constr(item: Item) -> Answer:
    """Byrd and Omojokun's method, with a barrier for inequalities."""
    limits = np.r_[np.zeros(item.p), np.full(item.q, -np.inf)]
    rows = scipy.optimize.NonlinearConstraint(
        item.constraints, limits, 0.0, item.jacobian, lambda y, dual: item.hessian(y, dual, 0.0)
    )
    bounded = np.isfinite(item.lower).any() or np.isfinite(item.upper).any()
    found = scipy.optimize.minimize(
        item.objective,
        item.start,
        jac=item.gradient,
        hess=lambda y: item.hessian(y, np.zeros(item.p + item.q)),
        method="trust-constr",
        bounds=scipy.optimize.Bounds(item.lower, item.upper) if bounded else None,
        constraints=rows if item.p + item.q else (),
        options={"maxiter": MAX_STEPS, "gtol": 1e-12, "xtol": 1e-12, "barrier_tol": 1e-10},
    )
    # Its small trust region may have shrunk anywhere: SciPy calls that success, too.
    status = {0: Status.MAX_STEPS, 1: Status.CONVERGED, 2: Status.CONVERGED}
    return Answer(found.x, status.get(found.status, Status.STALLED), found.nit)


def solvers() -> list[Solver]:
    """The lines of the tables."""
    found = [
        Solver("torchddn", ours("auto"), batched=True),
        Solver("InteriorPoint", ours(ddn.solvers.InteriorPoint()), batched=True),
        Solver("SQP", ours(ddn.solvers.SQP()), batched=True),
        Solver("AugmentedLagrangian", ours(ddn.solvers.AugmentedLagrangian()), batched=True),
        Solver("SLSQP", one_by_one(slsqp)),
        Solver("trust-constr", one_by_one(trust_constr)),
    ]
    if importlib.util.find_spec("casadi") is not None:
        found.append(Solver("Ipopt", one_by_one(importlib.import_module("benchmarks.ipopt").solve)))
    return found


# Measuring


def measure(solver: Solver, example: ReferenceProblem) -> list[Run]:
    """What the solver makes of the problem; nothing if it does not take it."""
    x = torch.cat((example.x(), example.perturb(LARGE - 1, torch.Generator().manual_seed(1))))
    answers, seconds = timed(lambda: solver.solve(example, x[:SIZE]))
    if answers is None:
        return []
    verdicts = [verdict(example, x[i], answer) for i, answer in enumerate(answers)]
    alone = of_many = seconds / SIZE
    if solver.batched and verdicts[0].minimum:
        alone = timed(lambda: solver.solve(example, x[:1]))[1]
        of_many = timed(lambda: solver.solve(example, x))[1] / LARGE
    return [
        Run(example.name, i, answer.claim, answer.num_steps, *judged, alone, of_many)
        for i, (answer, judged) in enumerate(zip(answers, verdicts, strict=True))
    ]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the processor's time: all solvers run in one thread, and a shared machine does not disturb it."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def verdict(example: ReferenceProblem, x: Tensor, answer: Answer) -> Judged:
    """What the point is worth, and what a claim of success."""
    found = judge(Item(example.problem, x), answer.y)
    claims = answer.claim == Status.CONVERGED
    best = example.optimum is not None and found.objective <= example.optimum + 1e-5 * max(1.0, abs(example.optimum))
    minimum = example.solvable and found.is_minimum(SOLVED)
    return Judged(
        float(found.residual),
        minimum=bool(minimum),
        precise=bool(minimum and claims and found.residual <= PRECISE),
        wrong=bool(claims and not (example.solvable and found.is_minimum(FALSE))),
        optimal=bool(minimum and best),
    )


# Showing


def success_table(runs: dict[str, list[Run]]) -> str:
    """What becomes of problems that have a solution."""
    solvable = {example.name for example in collection("solvable")}
    rows = []
    for name, all_runs in runs.items():
        mine = [run for run in all_runs if run.problem in solvable]
        good = [run for run in mine if run.minimum]
        standard = [run for run in mine if run.item == 0]
        rows.append(
            (
                name,
                len(standard),
                percent(good, mine),
                percent([run for run in mine if run.precise], mine),
                percent([run for run in standard if run.optimal], standard),
                sum(run.wrong for run in mine),
                round(statistics.median(run.num_steps for run in good)),
                milliseconds(run.seconds for run in good if run.item == 0),
                milliseconds(run.seconds_of_many for run in good if run.item == 0),
            )
        )
    head = (
        "solver",
        "problems",
        "solved",
        f"and says so, to {PRECISE:.0e}",
        "best minimum",
        "false successes",
        "steps",
        "ms, alone",
        f"ms, one of {LARGE}",
    )
    return table("Problems with a solution", head, rows)


def kinds_table(runs: dict[str, list[Run]]) -> str:
    """Solve rates by kind."""
    kinds = ("unconstrained", "bounds", "equality", "inequality", "mixed", "nonconvex", "LICQ fails", "badly scaled")
    rows = []
    for kind in kinds:
        names = {example.name for example in collection("solvable", kind)}
        groups = [[run for run in mine if run.problem in names] for mine in runs.values()]
        rates = [percent([run for run in mine if run.minimum], mine) for mine in groups]
        rows.append((kind, len(names), *rates))
    return table("Solved, by kind", ("kind", "problems", *runs), rows)


def unsolvable_table(runs: dict[str, list[Run]]) -> str:
    """What becomes of problems that have none."""
    tags = ("infeasible", "unbounded", "infimum at infinity")
    examples = {tag: {example.name: example for example in collection(tag)} for tag in tags}
    rows = []
    for name, all_runs in runs.items():
        cells: list[object] = [name]
        for tag in tags:
            mine = [run for run in all_runs if run.problem in examples[tag]]
            if tag != "infimum at infinity":
                cells.append(percent([run for run in mine if run.claim in examples[tag][run.problem].outcomes], mine))
            cells.append(f"{sum(run.claim == Status.CONVERGED for run in mine)} of {len(mine)}")
        rows.append(cells)
    head = ("solver", "infeasible: said", "success", "unbounded: said", "success", "infimum at infinity: success")
    return table("Problems without a solution", head, rows)


def percent(part: Sequence[object], whole: Sequence[object]) -> str:
    return f"{100 * len(part) / len(whole):.1f} %" if whole else "-"


def milliseconds(seconds: Iterable[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.3g}"


def draw_profile(runs: dict[str, list[Run]], path: Path) -> None:
    """Performance profiles: the part of the problems that a solver solves within ``tau`` times the best time.

    References:
        Dolan, Moré, Benchmarking Optimization Software with Performance Profiles, Mathematical Programming 91, 2002.
    """
    names = [example.name for example in collection("solvable")]
    panels = (("seconds", "one problem alone"), ("seconds_of_many", f"per problem, {LARGE} of a kind at a time"))
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, (field, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        times = {}
        for solver, mine in runs.items():
            solved = {run.problem: getattr(run, field) for run in mine if run.item == 0 and run.minimum}
            times[solver] = np.array([solved.get(name, math.inf) for name in names])
        best = np.min(list(times.values()), axis=0)
        with np.errstate(invalid="ignore"):
            ratios = {solver: np.sort(mine / best) for solver, mine in times.items()}
        for solver, ratio in ratios.items():
            ratio = ratio[np.isfinite(ratio)]
            color, line = STYLES[solver]
            share = np.arange(1, len(ratio) + 1) / len(names)
            ends = np.r_[ratio, 1e4], np.r_[share, share[-1:]]
            axes.step(*ends, where="post", color=color, linestyle=line, label=solver, linewidth=1.6)
        axes.set(xscale="log", xlim=(1, 1e3), ylim=(0, 1.02), title=title, xlabel="times the best time")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("part of the problems solved")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def run() -> str:
    """The tables; writes them, the picture and the record."""
    lines, examples = solvers(), collection()
    runs: dict[str, list[Run]] = {}
    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for solver in lines:
            task = progress.add_task(solver.name, total=len(examples))
            runs[solver.name] = []
            for example in examples:
                runs[solver.name] += measure(solver, example)
                progress.advance(task)
    tables = "\n".join((success_table(runs), kinds_table(runs), unsolvable_table(runs)))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "table.md").write_text(tables)
    draw_profile(runs, OUTPUT / "profile.png")
    write_record(runs, OUTPUT / "results.json")
    return tables


def write_record(runs: dict[str, list[Run]], path: Path) -> None:
    """Writes what each solver made of the standard data, a line each."""
    installed = [name for name in ("torch", "scipy", "casadi") if importlib.util.find_spec(name) is not None]
    head = {
        "command": "python -m benchmarks collection",
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in installed},
        "columns": ["solver", *Run._fields],
    }
    lines = [
        # JSON has no word for what is not finite.
        json.dumps([name, *(float(f"{v:.4g}") if isinstance(v, float) else v for v in run)])
        .replace("Infinity", "null")
        .replace("NaN", "null")
        for name, mine in runs.items()
        for run in mine
        if run.item == 0
    ]
    rows = ",\n  ".join(lines)
    path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n  {rows}\n ]\n}}\n')
