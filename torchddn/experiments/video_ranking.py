"""Rank pooling: videos in which the order of the frames carries the class.

A classifier per pooling over time and seed, end to end, on moving digits: each video comes forward and backward, with
opposite classes. What is without order, maximum and mean, can know the motion but not its direction.

References:
    Fernando, Gould, Learning End-to-end Video Classification with Rank-Pooling, 2016: 150 clips of ten sports from
    films, networks that were trained on ImageNet, C = 1. Here ten classes of generated videos, from scratch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchddn.datasets import MovingDigits
from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.scores import top_k
from torchddn.experiments.session import Session
from torchddn.models import SUMMARIES, SequenceClassifier

__all__ = ["VIDEO_RANKING", "VideoRanking"]

_FULL = Recipe(
    epochs=30,
    batch_size=32,
    optimizer="adamw",
    learning_rate=0.01,
    weight_decay=1e-3,
    schedule="one-cycle",
    clip=1.0,
)


@dataclass(frozen=True)
class VideoRanking:
    """The configuration.

    Attributes:
        seeds: Of networks and orders; the videos are the same for all.
        poolings: What is compared.
        C: Of rank pooling.
        num_frames: Of a video.
        size: Of a frame in pixels.
        per_class: Videos per class to train on; a quarter as many validate, half as many test.
        widths: Channels of the two convolutions.
        num_features: Of a frame.
        training: How the networks are trained.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    poolings: tuple[str, ...] = ("max", "mean", "rank")
    C: float = 1.0
    num_frames: int = 24
    size: int = 32
    per_class: int = 400
    widths: tuple[int, ...] = (16, 32)
    num_features: int = 64
    training: Recipe = _FULL

    def __post_init__(self) -> None:
        for pooling in self.poolings:
            if pooling not in SUMMARIES:
                raise InvalidInputError(f"`VideoRanking(poolings=...)` must be of {SUMMARIES}, got {pooling!r}.")


def _prepare(config: VideoRanking, data: Path | None) -> None:
    if data is not None:
        raise InvalidInputError("The videos of this experiment are generated. Leave out --data.")
    _videos(config, "validation")


def _jobs(config: VideoRanking) -> list[Job]:
    return [{"pooling": pooling, "seed": seed} for seed in config.seeds for pooling in config.poolings]


def _run(config: VideoRanking, job: Job, session: Session) -> list[Row]:
    """Trains one network and tests it."""
    torch.manual_seed(job["seed"])
    model = SequenceClassifier(
        job["pooling"],
        config.C,
        num_classes=len(MovingDigits.classes),
        widths=config.widths,
        num_features=config.num_features,
    )
    validation = _videos(config, "validation")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        videos, labels = batch
        return F.cross_entropy(model(videos), labels)

    def validate(model: nn.Module) -> dict[str, float]:
        logits, labels = session.predict(model, validation)
        return {"validation_top1": top_k(logits, labels)}

    training_set = _videos(config, "train")
    model = session.fit(model, training_set, config.training, loss, seed=job["seed"], validate=validate)
    logits, labels = session.predict(model, _videos(config, "test"))
    # Classes 2 k and 2 k + 1 are one motion in its two directions.
    pairs = logits.double().softmax(dim=1).unflatten(1, (-1, 2)).sum(dim=2)
    right = top_k(logits, labels)
    rows: list[Row] = [
        {"question": "motion and direction", "top1": right},
        {"question": "motion alone", "top1": top_k(pairs, labels // 2)},
    ]
    for first in range(0, len(MovingDigits.classes), 2):
        kept = labels // 2 == first // 2
        names = " or ".join(MovingDigits.classes[first : first + 2])
        rows.append({"question": names, "top1": top_k(logits[kept][:, first : first + 2], labels[kept] - first)})
    return rows


def _videos(config: VideoRanking, split: str) -> MovingDigits:
    shares = {"train": 1, "validation": 4, "test": 2}
    per_class = max(1, config.per_class // shares[split])
    return MovingDigits(split, num_frames=config.num_frames, size=config.size, per_class=per_class)


def _tables(config: VideoRanking) -> list[Table]:
    paper = {
        "source": "the slides: sports, ten classes, end to end",
        "motion and direction": {"max": 0.71, "mean": 0.70, "rank": 0.87},
    }
    return [
        Table(
            title="Accuracy: what happens in the video",
            value="top1",
            row="question",
            column="pooling",
            scale="percent",
            better="high",
            value_title="Accuracy",
            paper=paper,
        )
    ]


VIDEO_RANKING = Experiment(
    name="video-ranking",
    summary="Rank pooling of video against max and mean, where the order of the frames is the class",
    presets={
        "full": VideoRanking(),
        "small": VideoRanking(
            seeds=(0, 1, 2),
            num_frames=12,
            size=24,
            per_class=80,
            widths=(8, 16),
            num_features=32,
            training=Recipe(
                epochs=12,
                batch_size=32,
                optimizer="adamw",
                learning_rate=0.01,
                weight_decay=1e-3,
                schedule="one-cycle",
                clip=1.0,
                validate_every=3,
            ),
        ),
    },
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
)
