"""What every script of the gallery may rely on: it runs after others, in one process."""

from pathlib import Path
from typing import Any

import torch


def reset_dtype(gallery_conf: dict[str, Any], script: Path) -> None:
    """Undoes a default dtype that the script before has set."""
    torch.set_default_dtype(torch.float32)
