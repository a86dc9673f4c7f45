"""What robust vector pooling costs against the size of the feature map, for each penalty.

Time and peak memory of the forward and the backward pass, of :func:`torchddn.functional.robust_vector_pool` and of the
way of the reference: L-BFGS forward, from the mean, and for penalties that are not convex from the median too; backward
one linear system of order m.

References:
    Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks, 2022,
    figure 1: a map of 128 channels, batch size one, on the CPU.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from torchddn import penalties
from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.measurement import both_passes
from torchddn.experiments.session import Session
from torchddn.functional import robust_vector_pool

__all__ = ["PROFILE_POOLING", "ProfilePooling"]

_PENALTIES = ("quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")
_METHODS = ("torchddn", "L-BFGS")
_PASSES = ("forward", "backward", "both")
_MAX_STEPS = 100


@dataclass(frozen=True)
class ProfilePooling:
    """The configuration.

    Attributes:
        seeds: Of the features; the spread of the tables is over them.
        penalties: Which ones.
        methods: ``"torchddn"``, ``"L-BFGS"`` (the way of the reference).
        sides: Of the feature maps, which have that squared points.
        channels: Numbers per point.
        batch_size: Feature maps in a call.
        outliers: Share of the points that lie ten times as far out.
        seconds: Of calls for each time.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    penalties: tuple[str, ...] = _PENALTIES
    methods: tuple[str, ...] = _METHODS
    sides: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    channels: int = 128
    batch_size: int = 1
    outliers: float = 0.1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        for name, values, known in (("penalties", self.penalties, _PENALTIES), ("methods", self.methods, _METHODS)):
            for value in values:
                if value not in known:
                    raise InvalidInputError(
                        f"`ProfilePooling({name}=...)` must be of {', '.join(known)}, got {value!r}."
                    )


def _prepare(config: ProfilePooling, data: Path | None) -> None:
    if data is not None:
        raise InvalidInputError("This experiment measures on random features. Leave out --data.")


def _jobs(config: ProfilePooling) -> list[Job]:
    return [
        {"method": method, "penalty": penalty, "seed": seed}
        for seed in config.seeds
        for method in config.methods
        for penalty in config.penalties
    ]


def _run(config: ProfilePooling, job: Job, session: Session) -> list[Row]:
    """Measures one method with one penalty at all sizes."""
    rows: list[Row] = []
    for done, side in enumerate(config.sides):
        x = _features(config, side, job["seed"]).to(session.device)
        penalty = job["penalty"]

        def pool(x: Tensor, penalty: str = penalty) -> Tensor:
            return robust_vector_pool(x, penalty) if job["method"] == "torchddn" else _Published.apply(x, penalty)

        costs = both_passes(pool, x, session.device, config.seconds)
        rows += [{"pass": name, "points": side**2, **costs[name]._asdict()} for name in _PASSES]
        session.advance(done + 1, len(config.sides))
    return rows


def _features(config: ProfilePooling, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(config.batch_size, side**2, config.channels, generator=generator) / config.channels**0.5
    far = torch.rand(config.batch_size, side**2, 1, generator=generator) < config.outliers
    return torch.where(far, 10 * x, x)


class _Published(torch.autograd.Function):
    """Points ``(B, n, m)`` to ``(B, m)`` as the reference describes it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, name: str) -> Tensor:
        kind = penalties.get(name)
        starts = [x.mean(dim=1)]
        if not kind.convex:
            starts.append(x.median(dim=1).values)
        found = starts[:1] if name == "quadratic" else [_minimize(x, start, kind) for start in starts]
        values = torch.stack([_objective(x, y, kind) for y in found])  # (starts, B)
        y = torch.stack(found)[values.argmin(dim=0), torch.arange(len(x), device=x.device)]
        ctx.save_for_backward(x, y)
        ctx.kind = kind  # pyright: ignore[reportAttributeAccessIssue]
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        kind = ctx.kind  # pyright: ignore[reportAttributeAccessIssue]
        r = y.unsqueeze(1) - x
        z = r.norm(dim=2, keepdim=True)
        kappa1, kappa2 = kind.kappa1(z, 1.0), kind.kappa2(z, 1.0)
        H = torch.diag_embed(kappa1.sum(dim=1).expand_as(y)) + r.mT @ (kappa2 * r)
        w = torch.linalg.solve(H, grads[0].unsqueeze(2))
        # Equation 10 of the reference: the inner product with w before the outer one with r.
        return kappa1 * w.mT + kappa2 * (r @ w) * r, None


def _minimize(x: Tensor, start: Tensor, kind: penalties.Penalty) -> Tensor:
    with torch.enable_grad():
        y = start.clone().requires_grad_()
        solver = torch.optim.LBFGS([y], max_iter=_MAX_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            value = _objective(x.detach(), y, kind).sum()
            value.backward()
            return value

        solver.step(closure)
    return y.detach()


def _objective(x: Tensor, y: Tensor, kind: penalties.Penalty) -> Tensor:
    # The square root has no derivative at zero, where the mean may be a point of the data.
    z = (y.unsqueeze(1) - x).square().sum(dim=2).add(1e-12).sqrt()
    return kind.phi(z, 1.0).sum(dim=1)


def _tables(config: ProfilePooling) -> list[Table]:
    units = {"milliseconds": "time, ms", "mebibytes": "peak memory, MiB"}
    return [
        Table(
            title=f"{method}, {which}: {unit}",
            value=value,
            row="points",
            column="penalty",
            where={"method": method, "pass": which},
            log=True,
            row_title="points, n",
            value_title=unit,
        )
        for method in config.methods
        for value, unit in units.items()
        for which in _PASSES[:2]
    ]


PROFILE_POOLING = Experiment(
    name="profile-pooling",
    summary="Time and memory of robust vector pooling against size (second paper, figure 1)",
    presets={
        "paper": ProfilePooling(),
        "small": ProfilePooling(seeds=(0, 1), sides=(4, 8, 16, 32, 64), seconds=0.2),
    },
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
    serial=True,
)
