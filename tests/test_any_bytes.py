"""Whatever stands in a file or on a command line: it is taken, or one line says what is wrong with it."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import ROOT, long, make_run
from hypothesis import HealthCheck, example, given, settings, strategies as st

from iqa.checkpoint import read_checkpoint
from iqa.config import load_config
from iqa.data import Database, read_split
from iqa.errors import UserError
from iqa.pretrained import read_state_dict
from iqa.results import read_epochs, read_published, read_recorded, read_results, verify
from run_ablations import read_ablation
from smart_iqa.commands import COMMANDS

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["2001-13-45", "0o9", "1_0", "!!python/object:os.system", "&a [*a]", "nan"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
RESULTS_KEYS = st.sampled_from("config metrics predictions protocol test image mos score n srcc rows kind".split())
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(RESULTS_KEYS | TEXTS, inner), max_leaves=12
)
BYTES = st.binary(max_size=200)
DEEP = [
    b"[" * 2000,
    b'{"a":' * 2000,
    b"- " * 2000,
    b"9" * 5000,
    b"\xff\xfe\x00",
    b"",
    b"{",
    b"? [a]\n: 1",
    b"a: 2001-13-45",
]


def taken_or_one_line(read: Callable[[], object], named: object = "") -> object:
    """What was read, or None; a refusal is one line with the name in it."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1 and str(named) in said, said
    return None


def with_examples(test: Callable) -> Callable:
    for content in DEEP:
        test = example(content)(test)
    return test


# Split files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    images = [f"{i}.png" for i in range(20)]
    table = pd.DataFrame({"image": images, "path": images, "mos": range(20), "content": images})
    return Database("csv", Path(), table.assign(split="", file_hash=images, distortion=""), (0, 100), False)


NAMES = st.sampled_from([f"{i}.png" for i in range(22)]) | TEXTS
ENTRIES = NAMES | st.fixed_dictionaries({"image": NAMES | VALUES}, optional={"score": VALUES, "mos": VALUES}) | VALUES
SPLITS = st.dictionaries(
    st.sampled_from("train val test training Test partial fingerprint database seed".split()) | TEXTS,
    st.lists(ENTRIES, max_size=8) | VALUES,
)


@MANY
@given(SPLITS | st.lists(ENTRIES) | JSON)
@example({"train": ["1.png"], "test": ["2.png"], "partial": True, "fingerprint": 5})
@example({"train": ["1.png"], "test": ["2.png"], "partial": True, "database": []})
@example({"train": ["1.png"], "test": [{"image": "2.png", "score": 10**400}], "partial": True})
def test_any_split_file_is_a_split_or_one_line(tmp_path: Path, database: Database, content: object) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content))
    split = taken_or_one_line(lambda: read_split(file, database))
    assert split is None or (len(split) == 20 and set(split) <= {"", "train", "val", "test"})


@MANY
@with_examples
@given(BYTES)
def test_any_bytes_are_a_split_file_or_one_line(tmp_path: Path, database: Database, content: bytes) -> None:
    (tmp_path / "split.json").write_bytes(content)
    assert taken_or_one_line(lambda: read_split(tmp_path / "split.json", database), "split.json") is None


# YAML -----------------------------------------------------------------------------------------------------------

YAML_READERS = {
    "config": load_config,
    "ablation": lambda file: read_ablation(str(file), None, None, "results"),
    "published": read_published,
}


@pytest.mark.parametrize("kind", ["published", long("config"), long("ablation")])  # each reads by `load_yaml`
@MANY
@with_examples
@given(BYTES | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_yaml_settings_or_one_line(kind: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    taken_or_one_line(lambda: YAML_READERS[kind](tmp_path / "a.yaml"), "a.yaml")


@pytest.mark.parametrize("kind", YAML_READERS)
@MANY
@given(st.data())
def test_a_committed_yaml_file_with_one_thing_changed_is_taken_or_one_line(kind: str, tmp_path: Path, data) -> None:
    files = {
        "config": [ROOT / "configs" / "demo.yaml"],
        "ablation": sorted((ROOT / "configs" / "ablations").glob("*.yaml")),
        "published": [ROOT / "configs" / "published_results.yaml"],
    }[kind]
    content = yaml.safe_load(data.draw(st.sampled_from(files)).read_text())
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(one_thing_changed(content, data)))
    taken_or_one_line(lambda: YAML_READERS[kind](tmp_path / "a.yaml"), "a.yaml")


def one_thing_changed(content: object, data: st.DataObject) -> object:
    """A copy in which any one value, at any depth, is replaced or gone."""
    changed = place = copy.deepcopy(content)
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        del place[key]
    return changed


# Results --------------------------------------------------------------------------------------------------------

RESULT_READERS = {
    "results": read_results,
    "verified": verify,
    "recorded": lambda file: read_recorded([str(file)]),
    "epochs": read_epochs,
}


@pytest.mark.parametrize("kind", RESULT_READERS)
@MANY
@with_examples
@given(BYTES | JSON.map(lambda content: json.dumps(content).encode()))
def test_any_bytes_are_results_or_one_line(kind: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    taken_or_one_line(lambda: RESULT_READERS[kind](tmp_path / "results.json"), "results.json")


# Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (make_run(tmp_path_factory.mktemp("run"), "single") / "best.safetensors").read_bytes()


@pytest.mark.parametrize("read", [read_checkpoint, read_state_dict])
@MANY
@given(st.integers(0, 4000), st.integers(0, 20), st.binary(max_size=9), st.floats(0, 1))
@example(0, 0, b"", 0.0)
@example(0, 8, b"\xff" * 8, 1.0)
def test_a_changed_or_cut_checkpoint_is_read_or_one_line(
    read: Callable, tmp_path: Path, checkpoint: bytes, start: int, gone: int, new: bytes, kept: float
) -> None:
    content = checkpoint[:start] + new + checkpoint[start + gone :]
    (tmp_path / "a.safetensors").write_bytes(content[: int(kept * len(content))])
    taken_or_one_line(lambda: read(tmp_path / "a.safetensors"), "a.safetensors")


@MANY
@with_examples
@given(BYTES)
def test_any_bytes_are_weights_or_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(content)
        assert taken_or_one_line(lambda: read_state_dict(tmp_path / name), name) is None  # noqa: B023


# Command lines --------------------------------------------------------------------------------------------------


def flags_of(name: str) -> list[str]:
    parser = importlib.import_module(COMMANDS[name][0]).make_parser()
    return sorted({flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"})


WORDS = TEXTS | st.sampled_from(["-1", "0", "1e999", "--", "-", "=", "a/b.png", "csv", "live", "\ud800", "x" * 300])


@pytest.mark.parametrize("name", COMMANDS)
@MANY
@given(data=st.data())
def test_any_command_line_is_understood_or_one_line(name: str, data) -> None:
    words = st.lists(st.sampled_from(flags_of(name)) | WORDS, max_size=6)
    arguments = data.draw(words)
    parser = importlib.import_module(COMMANDS[name][0]).make_parser()
    taken_or_one_line(lambda: parser.parse_args(arguments))
