"""Classifiers that are fitted to few examples inside the network: a support vector machine and ridge regression."""

from torch import Tensor, nn

from torchddn.functional import ridge_head, support_vector_machine
from torchddn.functional.learning.kernels import KernelMachine
from torchddn.nn._held import hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["RidgeHead", "SupportVectorMachine"]


class SupportVectorMachine(nn.Module):
    """Logits of queries by :func:`torchddn.functional.support_vector_machine` on labeled examples.

    Args:
        C: As of the function; a start if it is learned.
        kernel: As of the function.
        gamma: As of the function.
        num_classes: As of the function.
        learnable_C: Whether C is a parameter, kept positive as the exponential of one.
        max_steps: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> X = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> SupportVectorMachine(C=10.0)(X, torch.tensor([0, 1]), torch.tensor([[0.0, 2.0]])).argmax(-1)
        tensor([0])
    """

    gamma: float | Tensor | None

    def __init__(
        self,
        C: float | Tensor = 0.1,
        *,
        kernel: str = "linear",
        gamma: float | Tensor | None = None,
        num_classes: int | None = None,
        learnable_C: bool = False,
        max_steps: int = 60,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        self.C = Scale("SupportVectorMachine", "C", C, learnable_C)
        check_failure_policy("SupportVectorMachine", on_failure)
        hold(self, gamma=gamma)
        self.kernel, self.num_classes = kernel, num_classes
        self.max_steps, self.on_failure = max_steps, on_failure

    def forward(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """Logits, ``(*B, q, k)``, of ``query``, ``(*B, q, m)``."""
        return self.fit(support, labels).predict(query)

    def fit(self, support: Tensor, labels: Tensor) -> KernelMachine:
        """The machine, with its coefficients and weights."""
        return self.solve(support, labels).y

    def solve(self, support: Tensor, labels: Tensor) -> Solution:
        """What ``fit`` returns, as ``y`` of all that is known about it."""
        return support_vector_machine(
            support,
            labels,
            self.C(),
            num_classes=self.num_classes,
            kernel=self.kernel,
            gamma=self.gamma,
            max_steps=self.max_steps,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        return f"{self.C.describe('C')}, kernel={self.kernel!r}"


class RidgeHead(nn.Module):
    """Values at queries by the ridge regression on examples: :func:`torchddn.functional.ridge_head`.

    Args:
        penalty: As of the function; a start if it is learned.
        kernel: As of the function.
        gamma: As of the function.
        learnable_penalty: Whether the penalty is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> RidgeHead(penalty=1e-6)(torch.eye(2), torch.tensor([[1.0], [3.0]]), torch.ones(1, 2))
        tensor([[4.0000]])
    """

    gamma: float | Tensor | None

    def __init__(
        self,
        penalty: float | Tensor = 1.0,
        *,
        kernel: str = "linear",
        gamma: float | Tensor | None = None,
        learnable_penalty: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        self.penalty = Scale("RidgeHead", "penalty", penalty, learnable_penalty)
        check_failure_policy("RidgeHead", on_failure)
        hold(self, gamma=gamma)
        self.kernel, self.on_failure = kernel, on_failure

    def forward(self, support: Tensor, targets: Tensor, query: Tensor) -> Tensor:
        """Values, ``(*B, q, k)``, at ``query``, ``(*B, q, m)``."""
        return self.fit(support, targets).predict(query)

    def fit(self, support: Tensor, targets: Tensor) -> KernelMachine:
        """The function, with its coefficients and weights."""
        return self.solve(support, targets).y

    def solve(self, support: Tensor, targets: Tensor) -> Solution:
        """What ``fit`` returns, as ``y`` of all that is known about it."""
        return ridge_head(
            support,
            targets,
            self.penalty(),
            kernel=self.kernel,
            gamma=self.gamma,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        return f"{self.penalty.describe('penalty')}, kernel={self.kernel!r}"
