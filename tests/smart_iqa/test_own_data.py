"""Your own data: a table -> training that starts from a finished network -> scores."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, SMALL, TINY, command, long, make_run, refusal
from safetensors.torch import load_file
from torch import nn

import train_swin
from HyperIQASolver_swin import HyperIQASolver
from iqa.checkpoint import save_checkpoint
from iqa.config import Config
from iqa.errors import UserError
from models_swin import SmartIQA
from smart_iqa import load_model
from smart_iqa.commands import make_demo_database
from smart_iqa.runs import settings_of


def settings(*arguments: object) -> Config:
    return settings_of(train_swin.make_parser().parse_args([str(argument) for argument in arguments]))


def test_a_run_that_starts_from_a_network_has_its_architecture_unless_another_is_named(tmp_path):
    config = settings("--init_from", "default")
    assert (config.backbone, config.fusion) == ("tf_efficientnet_lite0", "channel")
    assert settings("--init_from", "default", "--fusion", "concat").fusion == "concat"
    (file := tmp_path / "own.yaml").write_text("init_from: default\nmodel_size: nano\n")
    config = settings("--config", file)
    assert (config.backbone, config.fusion) == ("nano", "channel")
    assert settings("--config", "own_data").backbone == "tf_efficientnet_lite0"
    assert "no run at nowhere" in refusal(settings, "--init_from", "nowhere")


def test_a_backbone_alone_leaves_the_fusion_to_the_settings_and_a_head_brings_its_own(tmp_path):
    start = ["--init_from", "default", "--init_part"]
    found = [settings(*start, part) for part in ("backbone", "head")]
    assert [(c.backbone, c.fusion) for c in found] == [(found[1].backbone, "concat"), (found[1].backbone, "channel")]
    assert settings(*start, "head", "--backbone_weights", "swin.pth").backbone_weights == "swin.pth"
    assert "each say where to start" in refusal(settings, *start, "backbone", "--backbone_weights", "swin.pth")
    assert "init_part head needs a run to take it from: give --init_from RUN" in refusal(settings, *start[2:], "head")


def test_a_run_takes_all_of_the_architecture_that_it_starts_from(tmp_path):
    (file := tmp_path / "first.safetensors").touch()
    made = {"architecture": {"backbone": "nano", "fusion": "vector", "content_vector": "pooled", "head": "residual"}}
    save_checkpoint(file, nn.Linear(1, 1), made | {"scales": [0.5]})
    started = settings("--init_from", file)
    assert (started.head, started.content_vector, started.fusion) == ("residual", "pooled", "vector")


@pytest.mark.parametrize("part", ["whole", "backbone", "head"])
def test_the_part_that_is_asked_for_is_taken_and_its_size_is_said(tmp_path, part):
    first = make_run(tmp_path, "channel", TINY)
    flags = ["--init_from", first, "--init_part", part, "--no_pretrained", "--seed", 7]
    model = train_swin.build_model(settings(*flags, "--fusion", "channel"))
    theirs = load_file(first / "best.safetensors")
    weights = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim > 1}
    taken = {name for name, tensor in weights.items() if tensor.equal(theirs[f"model.{name}"])}
    assert taken == {name for name in weights if part in ("whole", "head" if "backbone." not in name else "backbone")}
    count = sum(
        p.numel() for n, p in model.named_parameters() if part == "whole" or ("backbone." in n) is (part == "backbone")
    )
    assert f"{first} (" in model.weights_source and f"{count:,}" in model.weights_source
    assert model.weights_source.startswith("random initialisation; ") is (part == "head")
    if part != "head":
        line = refusal(train_swin.build_model, settings(*flags, "--backbone", "test_vit4.r160_in1k"))
        assert "is not this network's: it has no 'backbone.body." in line and "leave --backbone out" in line


@pytest.mark.parametrize("named", [["--name", "run"], []])
def test_a_stopped_run_is_found_and_keeps_its_architecture_without_the_network_it_started_from(tmp_path, named):
    first = make_run(tmp_path, "channel")
    flags = ["--dataset", "csv", "--init_from", first, "--results_dir", tmp_path / "results", *named]
    started = settings(*flags)
    started.run_dir.mkdir(parents=True)
    (started.run_dir / "config.yaml").write_text(started.to_yaml())
    resumed = ["--resume", started.run_dir]
    assert settings(*flags, "--resume").fusion == settings(*resumed).fusion == "channel"
    shutil.rmtree(first)
    assert settings(*resumed).fusion == "channel"
    assert "fusion is 'channel'" in refusal(settings, *resumed, "--fusion", "concat")
    if named:  # the name does not follow from the architecture
        assert settings(*flags, "--resume").backbone == TINY


@pytest.mark.parametrize("frozen", [["--freeze_backbone"], long([])], ids=["frozen", "whole"])
def test_a_stopped_run_goes_on_to_the_same_bits_when_the_network_it_started_from_is_gone(
    image_folder, tmp_path, monkeypatch, frozen
):
    (folder := tmp_path / "first").mkdir()
    first = make_run(folder, "channel", TINY)
    flags = ["--dataset", "csv", "--data_path", image_folder / "table.csv", *SMALL, "--init_from", first, *frozen]
    flags += ["--results_dir", tmp_path]
    assert command("train", *flags, "--name", "whole") == 0
    fit = HyperIQASolver.fit

    def killed(solver: HyperIQASolver) -> None:
        fit(solver, last_epoch=1)
        raise UserError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(HyperIQASolver, "fit", killed)
        assert command("train", *flags, "--name", "stopped") == 2
    shutil.rmtree(first)
    assert command("train", *flags, "--name", "stopped", "--resume") == 0
    whole, stopped = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped"))
    assert stopped["metrics"] == whole["metrics"]
    source = stopped["provenance"]["backbone_weights"]
    assert source == whole["provenance"]["backbone_weights"]
    assert re.fullmatch(rf"{first} \(the whole network, [\d,]+ parameters\)", source)
    for tensors in [load_file(tmp_path / "stopped" / "best.safetensors")]:
        assert all(v.equal(tensors[k]) for k, v in load_file(tmp_path / "whole" / "best.safetensors").items())


def readme_commands() -> list[list[str]]:
    """The words of each command of the README's section on data of one's own."""
    section = (ROOT / "README.md").read_text().split("## Your own data")[1].split("\n## ")[0]
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (smart-iqa .*)", section, re.MULTILINE)]


@pytest.mark.long
def test_the_three_commands_of_the_readme_give_a_model_of_ones_own(tmp_path, monkeypatch):
    """At the size of a test: fewer scenes, one epoch, small crops."""
    make, train, predict = readme_commands()
    assert [make[0], train[0], predict[0]] == ["make-demo-database", "train", "predict"]
    assert train[train.index("--dataset") + 1] == "csv" and train[train.index("--init_from") + 1] == "default"
    scenes = [
        make_demo_database.Content(f"dead_leaves_{number}", part, (), (), images=4)
        for number, part in enumerate(["train", "train", "val", "test"])
    ]
    few = partial(make_demo_database.make_database, contents=scenes)
    monkeypatch.setattr(make_demo_database, "make_database", few)
    monkeypatch.chdir(tmp_path)
    assert command(*make) == 0
    small = "--epochs 1 --patch_size 64 --resize 64 --batch_size 4 --num_workers 0 --device cpu".split()
    assert command(*train, *small) == 0
    results = json.loads((tmp_path / "results" / "mine" / "results.json").read_text())
    assert re.fullmatch(r"default \(the whole network, [\d,]+ parameters\)", results["provenance"]["backbone_weights"])
    assert command(*predict, "--device", "cpu") == 0
    scores = pd.read_csv(tmp_path / predict[predict.index("--output") + 1])
    assert scores["score"].between(0, 100).all() and len(scores) == 20


def test_a_model_of_ones_own_is_loaded_as_one_of_the_package_is(tmp_path):
    model = load_model(make_run(tmp_path, "channel"), "cpu")
    assert isinstance(model.model, SmartIQA) and model.name == "run"
    assert isinstance(model.score(Path(tmp_path / "data" / "0.png")), float)
