"""Parts of K that never change: read until it is seen that they do not, then remembered."""

import dataclasses

import torch
from torch import Tensor

__all__ = ["Constant"]


@dataclasses.dataclass
class Constant:
    """The products that read a part of K, as long as they are the same for all items and at every pass.

    A part that is remembered is verified as all that is believed, by the certificate of the solve. One that has changed
    once is read at every pass from then on.

    Attributes:
        products: Those of the last pass, for any item, ``(k, m)``; None before it, or if they vary.
        varies: Whether they have been seen to change.
        is_known: Whether two passes agreed.
    """

    products: Tensor | None = None
    varies: bool = False
    is_known: bool = False

    def learn(self, products: Tensor) -> None:
        """Takes notice of the products of a pass, ``(k, B, m)``."""
        if self.varies or not products.shape[1] or not bool(products.isfinite().all()):
            return
        first = products[:, 0].clone()
        if not bool((products == first.unsqueeze(1)).all()):
            self.forget()
        elif self.products is None:
            self.products = first
        elif torch.equal(first, self.products):
            self.is_known = True
        else:
            self.forget()

    def recall(self, batch: int) -> Tensor:
        """The products of a pass, ``(k, B, m)``."""
        assert self.products is not None, "what is known has products"
        return self.products.unsqueeze(1).expand(-1, batch, -1)

    def forget(self) -> None:
        """Gives up."""
        self.products, self.varies, self.is_known = None, True, False
