"""What all tests share: seeds, one thread, and hypothesis without deadlines on a busy machine."""

from __future__ import annotations

import gc
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from matplotlib.figure import Figure
from written import Templates, write_all, write_images

from iqa.figures import STYLE
from iqa.system import declare_missing_operators

declare_missing_operators()  # so that tests may import timm and torchvision
# The networks of the tests are small: where cores are shared, a second thread costs more than it gives.
torch.set_num_threads(1)
# Rendering at print resolution would take most of the time of figures, and no test looks at pixels.
STYLE["savefig.dpi"] = 40
# timm draws weights in steps that torch follows in Python where tensors have no storage, and so nothing to draw.
weight_init = importlib.import_module("timm.layers.weight_init")
draw = weight_init._trunc_normal_
weight_init._trunc_normal_ = lambda tensor, *how: tensor if tensor.is_meta else draw(tensor, *how)


def pytest_configure(config: pytest.Config) -> None:
    """Try more examples where slow tests run too."""
    examples = 20 if "not slow" in config.getoption("markexpr") else 100
    settings.register_profile("house", deadline=None, derandomize=True, max_examples=examples)
    settings.load_profile("house")


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what is there by now: much, and it stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory) -> Iterator[None]:
    """What the tests decode goes to a folder of theirs, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function of a name and of what fills a folder: the folder, filled once for all processes of a test run."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, complete = shared / "once" / name, shared / "once" / f"{name}.complete"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not complete.exists():
                fill(folder)
                complete.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def written(once) -> Templates:
    """What the commands record of one tiny run."""
    return Templates(once("written", write_all))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """The folder of a table of ten made-up scenes, each at four degrees of blur."""
    return write_images(tmp_path_factory.mktemp("data") / "images").parent


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Figures are drawn and their files are there, but empty: to put them into pixels takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: Path(file).touch())


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
