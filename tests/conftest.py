"""What every test gets: a device, a seed, one thread, and float64 when it asks."""

import contextlib
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from torch import Tensor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the tests that use `device` run: cpu, cuda, ...")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("torchddn", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("torchddn")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of ``pytest --device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seed_and_device(device: torch.device) -> Iterator[None]:
    """Every test starts from the same seed, and makes its tensors on the device unless it says otherwise."""
    torch.manual_seed(0)
    with contextlib.nullcontext() if device.type == "cpu" else device:
        yield


@pytest.fixture
def randn(device: torch.device) -> Callable[..., Tensor]:
    """``torch.randn`` in float64 on the device."""

    def make(*size: int, requires_grad: bool = False) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, device=device, requires_grad=requires_grad)

    return make
