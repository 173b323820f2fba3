"""What all tests share: seeds, one thread, and hypothesis without deadlines on a busy machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from written import Templates, write_all, write_images

from iqa.figures import STYLE
from iqa.system import declare_missing_operators

declare_missing_operators()  # so that tests may import timm and torchvision
# The networks of the tests are small: where cores are shared, a second thread costs more than it gives.
torch.set_num_threads(1)
# Rendering at print resolution would take most of the time of figures, and no test looks at pixels.
STYLE["savefig.dpi"] = 40


def pytest_configure(config: pytest.Config) -> None:
    """Try more examples where slow tests run too."""
    examples = 20 if "not slow" in config.getoption("markexpr") else 100
    settings.register_profile("house", deadline=None, derandomize=True, max_examples=examples)
    settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory) -> Iterator[None]:
    """What the tests decode goes to a folder of theirs, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def written(tmp_path_factory, worker_id) -> Templates:
    """What the commands record of one tiny run, made once for all processes of a test run."""
    if worker_id == "master":
        return Templates(write_all(tmp_path_factory.mktemp("written")))
    folder = tmp_path_factory.getbasetemp().parent / "written"  # of all workers
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            write_all(folder)
            (folder / "complete").touch()
    return Templates(folder)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """The folder of a table of ten made-up scenes, each at four degrees of blur."""
    return write_images(tmp_path_factory.mktemp("data") / "images").parent


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
