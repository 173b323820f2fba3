"""What travels in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

from smart_iqa import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without the index."""
    build = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path_factory.mktemp('wheel'))!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"smart_iqa-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(next(tmp_path_factory.getbasetemp().glob(f"wheel*/smart_iqa-{__version__}-*.whl")))


def test_its_top_level_names_are_the_two_packages_and_the_root_modules(wheel):
    names = {Path(name).parts[0] for name in wheel.namelist()} - {f"smart_iqa-{__version__}.dist-info"}
    assert names == {"iqa", "smart_iqa"} | {file.name for file in ROOT.glob("*.py")}
    assert len(names) == 11


def test_every_file_of_the_packages_and_every_configuration_is_in_it(wheel):
    packages = [f for name in ("iqa", "smart_iqa") for f in (ROOT / name).rglob("*") if f.is_file()]
    code = {str(f.relative_to(ROOT)) for f in packages if f.suffix in (".py", ".pyi", ".html")}
    configs = {f"iqa/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")}
    assert {"iqa/figures/page.html", "iqa/metrics/__init__.pyi"} <= code and len(configs) > 10
    weights = {str(file.relative_to(ROOT)) for file in (ROOT / "smart_iqa" / "weights").glob("*.safetensors")}
    assert weights
    assert code | configs | weights <= set(wheel.namelist())


def test_it_asks_for_the_pinned_packages_and_installs_one_command(wheel):
    folder = f"smart_iqa-{__version__}.dist-info"
    lines = wheel.read(f"{folder}/METADATA").decode().lower().replace("_", "-").splitlines()
    asked = {line.removeprefix("requires-dist: ") for line in lines if line.startswith("requires-dist: ")}
    asked = {line for line in asked if "; extra == " not in line}
    pinned = (ROOT / "requirements.txt").read_text().lower().replace("_", "-").splitlines()
    assert asked == {line for line in pinned if not line.startswith("#")} and len(asked) > 10
    entries = wheel.read(f"{folder}/entry_points.txt").decode().split()
    assert entries == ["[console_scripts]", "smart-iqa", "=", "smart_iqa.commands:main"]
