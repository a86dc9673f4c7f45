"""What an experiment is: variants of one network, compared under several conditions, with several seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Experiment", "Outcome", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What a user can choose.

    Attributes:
        seeds: Number of seeds, counted from 0.
        epochs: Passes over the training data.
        device: Where to train and test, in PyTorch's words.
        quick: On a small part of the data: a check that all works, with meaningless numbers.
    """

    seeds: int
    epochs: int
    device: str = "cpu"
    quick: bool = False


class Outcome(NamedTuple):
    """One trained network.

    Attributes:
        validation: Its scores on the validation data, and whatever else explains them.
        test: Its scores on the test data, one dict per condition.
        weights: Its state dict, on the CPU.
    """

    validation: dict[str, float]
    test: list[dict[str, float]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Experiment:
    """One experiment; ``run`` and the names are all that the harness knows of it.

    Attributes:
        name: As the command line knows it.
        summary: One sentence.
        variants: What is compared; the first is the baseline.
        condition: What changes between the tests of one network; each score dict has it as a key.
        metrics: Key and title of each score; larger is better, in [0, 1].
        settings: What is used unless the user chooses.
        run: Trains and tests one variant with one seed; calls its last argument after every epoch. It runs in a
            process of its own, so it must be a function at the top of a module.
    """

    name: str
    summary: str
    variants: tuple[str, ...]
    condition: str
    metrics: dict[str, str]
    settings: Settings
    run: Callable[[str, int, Settings, Callable[[], None]], Outcome]
