"""Numbers and tensors that a module holds as they are given: parameters, buffers, or plain numbers."""

from torch import Tensor, nn

__all__ = ["describe", "hold"]


def hold(module: nn.Module, **values: float | Tensor | None) -> None:
    """Makes ``values`` attributes of ``module``: a parameter is learned, another tensor moves with the module."""
    for name, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        elif isinstance(value, Tensor):
            module.register_buffer(name, value.detach())
        else:
            setattr(module, name, value)


def describe(**values: object) -> str:
    """How ``extra_repr`` shows them."""
    return ", ".join(
        f"{name}=tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name}={value}"
        for name, value in values.items()
    )
