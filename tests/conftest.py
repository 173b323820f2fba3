"""What all tests share: seeds, one thread, and hypothesis without deadlines on a busy machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from iqa.torchvision_operators import declare_missing_operators

declare_missing_operators()  # so that tests may import timm and torchvision
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")
# The networks of the tests are small: where cores are shared, a second thread costs more than it gives.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
