"""What entropic transport costs against size and number of iterations, by five ways to its gradient.

All but ours take the plan after a given number of Sinkhorn iterations and differ in the backward pass: *unrolled* lets
autograd go back through them; *full inverse* solves with the matrix ``A H^-1 A^T`` of order m + n - 1; *block inverse*
with a Schur complement of order m - 1; *approximate* ignores the constraints. *torchddn* iterates until the
marginals are met, whatever that takes.

References:
    Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks, 2022,
    figure 3: time and memory at 10 iterations against size, and at size 500 against the number of iterations; batch
    size 1 on the CPU, 16 on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.measurement import both_passes
from torchddn.experiments.session import Session
from torchddn.functional import optimal_transport

__all__ = ["METHODS", "PROFILE_TRANSPORT", "ProfileTransport"]

_PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class ProfileTransport:
    """The configuration.

    Attributes:
        seeds: Of the costs; the spread of the tables is over them.
        methods: Which ways.
        sizes: n of the n x n costs, at ``num_steps`` iterations.
        num_steps: Iterations where the size varies.
        steps: Iterations where they vary, at ``size``.
        size: n where the number of iterations varies.
        gamma: Sharpness.
        batch_size: Problems in a call; 0 for 1 on a CPU and 16 on an accelerator.
        seconds: Of calls for each time.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ("unrolled", "full inverse", "block inverse", "approximate", "torchddn")
    sizes: tuple[int, ...] = (5, 10, 25, 50, 100, 200, 300, 500)
    num_steps: int = 10
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    size: int = 500
    gamma: float = 10.0
    batch_size: int = 0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise InvalidInputError(
                    f"`ProfileTransport(methods=...)` must be of {', '.join(METHODS)}, got {method!r}."
                )


def _prepare(config: ProfileTransport, data: Path | None) -> None:
    if data is not None:
        raise InvalidInputError("This experiment measures on random costs. Leave out --data.")


def _jobs(config: ProfileTransport) -> list[Job]:
    return [{"method": method, "seed": seed} for seed in config.seeds for method in config.methods]


def _run(config: ProfileTransport, job: Job, session: Session) -> list[Row]:
    """Measures one method at all sizes and numbers of iterations."""
    plan, rows = METHODS[job["method"]], []
    by_size = [("size", n, config.num_steps) for n in config.sizes]
    by_steps = [("steps", config.size, num_steps) for num_steps in config.steps]
    for done, (varied, n, num_steps) in enumerate(by_size + by_steps):
        M = _cost(config, n, job["seed"], session.device)
        costs = both_passes(
            lambda M, num_steps=num_steps: plan(M, config.gamma, num_steps), M, session.device, config.seconds
        )
        with torch.no_grad():
            P = plan(M, config.gamma, num_steps)
            error = ((P.sum(dim=2) - 1 / n).abs().sum(dim=1) + (P.sum(dim=1) - 1 / n).abs().sum(dim=1)).max().item()
        at = {"varied": varied, "n": n, "iterations": num_steps}
        rows += [{**at, "pass": name, **costs[name]._asdict()} for name in _PASSES]
        rows.append({**at, "pass": "accuracy", "error": error})
        session.advance(done + 1, len(by_size) + len(by_steps))
    return rows


def _cost(config: ProfileTransport, n: int, seed: int, device: torch.device) -> Tensor:
    batch_size = config.batch_size or (1 if device.type == "cpu" else 16)
    return torch.rand(batch_size, n, n, generator=torch.Generator().manual_seed(seed)).to(device)


def _sinkhorn(M: Tensor, gamma: float, num_steps: int) -> Tensor:
    """The plan after this many iterations, ``(B, m, n)``.

    As the reference has it: the plan itself is normalized, by rows and by columns, and autograd keeps each. (To iterate
    on two vectors of scalings would spare most of that memory, and none of the time.)
    """
    m, n = M.shape[1:]
    P = torch.exp(-gamma * (M - M.detach().amin(dim=(1, 2), keepdim=True)))
    for _ in range(num_steps):
        P = P / (m * P.sum(dim=2, keepdim=True))
        P = P / (n * P.sum(dim=1, keepdim=True))
    return P


class _Implicit(torch.autograd.Function):
    """The same plan; backward ``-gamma P (v - alpha - beta)`` with the multipliers that ``solve(P, g, h)`` finds."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        M: Tensor,
        gamma: float,
        num_steps: int,
        solve: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        P = _sinkhorn(M, gamma, num_steps)
        ctx.save_for_backward(P)
        ctx.gamma, ctx.solve = gamma, solve  # pyright: ignore[reportAttributeAccessIssue]
        return P

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (P,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        G = P * grads[0]
        alpha, beta = ctx.solve(P, G.sum(dim=2), G.sum(dim=1))  # pyright: ignore[reportAttributeAccessIssue]
        change = G - P * alpha.unsqueeze(2) - P * beta.unsqueeze(1)
        return -ctx.gamma * change, None, None, None  # pyright: ignore[reportAttributeAccessIssue]


def _full_inverse(P: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers of rows and columns; the first row, which the others imply, is left out."""
    rows, columns = torch.diag_embed(P.sum(dim=2)[:, 1:]), torch.diag_embed(P.sum(dim=1))
    top, bottom = torch.cat([rows, P[:, 1:]], dim=2), torch.cat([P[:, 1:].mT, columns], dim=2)
    z = (torch.linalg.inv(torch.cat([top, bottom], dim=1)) @ torch.cat([g[:, 1:], h], dim=1).unsqueeze(2)).squeeze(2)
    m = P.shape[1]
    return torch.nn.functional.pad(z[:, : m - 1], (1, 0)), z[:, m - 1 :]


def _block_inverse(P: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same by a Cholesky factor of ``diag(r) - P diag(c)^-1 P^T``."""
    Q, c = P[:, 1:], P.sum(dim=1)
    scaled = Q / c.unsqueeze(1)
    L = torch.linalg.cholesky(torch.diag_embed(P.sum(dim=2)[:, 1:]) - scaled @ Q.mT)
    right = g[:, 1:].unsqueeze(2) - scaled @ h.unsqueeze(2)
    alpha = torch.cholesky_solve(right, L)
    beta = (h.unsqueeze(2) - Q.mT @ alpha).squeeze(2) / c
    return torch.nn.functional.pad(alpha.squeeze(2), (1, 0)), beta


def _no_multipliers(P: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(g), torch.zeros_like(h)


METHODS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "unrolled": _sinkhorn,
    "full inverse": lambda M, gamma, num_steps: _Implicit.apply(M, gamma, num_steps, _full_inverse),
    "block inverse": lambda M, gamma, num_steps: _Implicit.apply(M, gamma, num_steps, _block_inverse),
    "approximate": lambda M, gamma, num_steps: _Implicit.apply(M, gamma, num_steps, _no_multipliers),
    "torchddn": lambda M, gamma, num_steps: optimal_transport(M, gamma=gamma),
}


def _tables(config: ProfileTransport) -> list[Table]:
    units = {"milliseconds": "time, ms", "mebibytes": "peak memory, MiB"}
    against = {
        "size": ("n", "n of n x n costs", f"{config.num_steps} iterations"),
        "steps": ("iterations", "iterations", f"n = {config.size}"),
    }
    tables = [
        Table(
            title=f"Forward and backward, {at}: {unit}",
            value=value,
            row=row,
            column="method",
            where={"varied": varied, "pass": "both"},
            log=True,
            row_title=title,
            value_title=unit,
        )
        for varied, (row, title, at) in against.items()
        for value, unit in units.items()
    ]
    tables += [
        Table(
            title=f"{which.capitalize()}, {config.num_steps} iterations: time, ms",
            value="milliseconds",
            row="n",
            column="method",
            where={"varied": "size", "pass": which},
            log=True,
            row_title="n of n x n costs",
            value_title="time, ms",
        )
        for which in _PASSES[:2]
    ]
    error = Table(
        title=f"Error of the marginals, n = {config.size}",
        value="error",
        row="iterations",
        column="method",
        where={"varied": "steps", "pass": "accuracy"},
        log=True,
        value_title="|P 1 - r| + |P' 1 - c|",
    )
    return [*tables, error]


PROFILE_TRANSPORT = Experiment(
    name="profile-transport",
    summary="Time and memory of entropic transport by five ways to its gradient (second paper, figure 3)",
    presets={
        "paper": ProfileTransport(),
        "small": ProfileTransport(
            seeds=(0, 1), sizes=(5, 10, 25, 50, 100, 200), steps=(1, 2, 4, 8, 16, 32), size=200, seconds=0.1
        ),
    },
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
    serial=True,
)
