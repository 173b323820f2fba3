"""The three commands of the design, on 24 images in KonIQ-10k's official layout. Slow: full Swin-Tiny."""

from __future__ import annotations

import json

import pytest
import trees
from helpers import command, long

COMMANDS = {
    "plain": "--dataset koniq-10k --epochs 30 --batch_size 4",
    "attention": "--dataset koniq-10k --epochs 30 --batch_size 4 --attention_fusion --patience 7 "
    "--lr_scheduler cosine --no_spaq",
    "single": "--dataset koniq-10k --epochs 30 --no_multiscale --no_spaq",
}
FUSION = {"plain": "concat", "attention": "channel", "single": "single"}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    trees.koniq(root / "koniq-10k", trees.koniq_rows(24), size=(512, 384))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_design_trains_and_tests(name, data_root, tmp_path):
    small = "--no_pretrained --epochs 1 --train_patch_num 1 --test_patch_num 2 --num_workers 0".split()
    arguments = [*COMMANDS[name].split(), *small, "--data_root", data_root, "--results_dir", tmp_path, "--name", name]
    assert command("train_swin", *arguments) == 0
    results = json.loads((tmp_path / name / "results.json").read_text())
    assert results["config"]["fusion"] == FUSION[name] and results["config"]["backbone"] == "tiny"
    assert results["protocol"]["split"] == "official"
    assert results["metrics"]["test"]["n"] == 4


@pytest.mark.parametrize(
    "name", [long("attention"), *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "single"))]
)
def test_without_weights_a_command_says_what_to_do(name, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("iqa.pretrained._hub_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    arguments = [*COMMANDS[name].split(), "--data_root", data_root, "--results_dir", tmp_path / "results"]
    assert command("train_swin", *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--backbone_weights" in said and "--no_pretrained" in said
    assert not (tmp_path / "results").exists()
