"""A positive number that a module holds: fixed, or learned."""

import torch
from torch import Tensor, nn

from torchddn.functional.nodes.arguments import check_flag, check_positive

__all__ = ["Scale"]


class Scale(nn.Module):
    """Holds ``value > 0``; calling it returns the value.

    A learned one is the exponential of the parameter ``log``, so it stays positive whatever the optimizer does.

    Args:
        call: Name that opens messages.
        name: The argument of ``call``, likewise.
        value: A positive number, or a tensor of such.
        learnable: Whether to make it a parameter.
    """

    log: nn.Parameter
    fixed: Tensor

    def __init__(self, call: str, name: str, value: float | Tensor, learnable: bool) -> None:
        super().__init__()
        check_positive(call, name, value)
        check_flag(call, f"learnable_{name}", learnable)
        self.learnable = learnable
        if learnable:
            self.log = nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().log())
        elif isinstance(value, Tensor):
            self.register_buffer("fixed", value.detach())
        else:
            self.number = value

    def forward(self) -> float | Tensor:
        if self.learnable:
            return self.log.exp()
        return self.number if hasattr(self, "number") else self.fixed

    def describe(self, name: str) -> str:
        """How ``extra_repr`` shows it."""
        value = self()
        if not isinstance(value, Tensor):
            return f"{name}={value}"
        shown = f"{value.item():.4g}" if value.dim() == 0 else f"tensor of shape {tuple(value.shape)}"
        return f"{name}={shown}, learnable_{name}=True" if self.learnable else f"{name}={shown}"
