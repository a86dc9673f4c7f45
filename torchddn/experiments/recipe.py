"""How a network is trained."""

from dataclasses import dataclass

from torchddn.errors import InvalidInputError

__all__ = ["Recipe"]

_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = ("step", "cosine", "one-cycle", "constant")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Items of a step, shared out to all processes.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        learning_rate: At the beginning; with ``"one-cycle"`` the highest.
        momentum: Of SGD.
        weight_decay: Of the optimizer.
        schedule: ``"step"`` (times ``decay_factor`` every ``decay_every`` epochs), ``"cosine"`` (to 0), ``"one-cycle"``
            or ``"constant"``.
        decay_every: Epochs, for ``"step"``.
        decay_factor: For ``"step"``.
        clip: Largest norm of the gradient of all parameters; ``None`` for no limit.
        validate_every: Epochs between two points of the curves.
    """

    epochs: int = 60
    batch_size: int = 24
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "step"
    decay_every: int = 20
    decay_factor: float = 0.5
    clip: float | None = None
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_every", "validate_every"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"`Recipe({name}=...)` must be positive, got {getattr(self, name)}.")
        for name in ("learning_rate", "decay_factor", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"`Recipe({name}=...)` must be positive, got {value}.")
        for name, known in (("optimizer", _OPTIMIZERS), ("schedule", _SCHEDULES)):
            if getattr(self, name) not in known:
                raise InvalidInputError(
                    f"`Recipe({name}=...)` must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
