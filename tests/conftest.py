"""What all tests share: seeds, one thread, and hypothesis without deadlines on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from written import Templates, write_all, write_images

from iqa.system import declare_missing_operators

declare_missing_operators()  # so that tests may import timm and torchvision
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")
# The networks of the tests are small: where cores are shared, a second thread costs more than it gives.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory) -> Iterator[None]:
    """What the tests decode goes to a folder of theirs, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Templates:
    """What the commands record of one tiny run."""
    return Templates(write_all(tmp_path_factory.mktemp("written")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """The folder of a table of ten made-up scenes, each at four degrees of blur."""
    return write_images(tmp_path_factory.mktemp("data") / "images").parent
