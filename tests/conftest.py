"""What all tests share: seeds, one thread, and hypothesis without deadlines on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageFilter

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A table of ten made-up scenes, each at four degrees of blur."""
    folder, rng, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for scene in range(10):
        coarse = Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        sharp = coarse.resize((48, 40), Image.Resampling.NEAREST)
        for degree in range(4):
            name = f"scene{scene}_{degree}.png"
            sharp.filter(ImageFilter.GaussianBlur(1.5 * degree)).save(folder / name)
            rows.append({"image": name, "mos": 90 - 25 * degree + rng.normal(), "content": f"scene{scene}"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder
