"""The models in other people's tools: Hugging Face's hub, torch.hub, torchmetrics, pyiqa."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, make_run
from huggingface_hub import hub_mixin
from safetensors.torch import load_file, save_file
from torch import Tensor

import smart_iqa
from models_swin import SmartIQA
from smart_iqa import ImageQuality, load_model
from smart_iqa.pyiqa_metric import SmartIQAMetric, register


def images(count: int = 2, seed: int = 0) -> Tensor:
    """(count, 3, 64, 48) in 0..1, each of another contrast."""
    noise = torch.rand(count, 3, 64, 48, generator=torch.Generator().manual_seed(seed))
    return 0.5 + (noise - 0.5) * torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[SmartIQA, Path]:
    """A network and the folder that `save_pretrained` made of it."""
    folder = tmp_path_factory.mktemp("hub") / "network"
    network = SmartIQA(backbone=TINY, fusion="channel", dropout_rate=0.1).eval()
    network.save_pretrained(folder)
    return network, folder


def test_a_saved_network_comes_back_from_its_folder_alone(saved):
    network, folder = saved
    back = SmartIQA.from_pretrained(folder)
    assert smart_iqa.SmartIQA is SmartIQA
    assert not back.training and list(back.state_dict()) == list(network.state_dict())
    with torch.no_grad():
        assert torch.equal(back(images()), network(images()))
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_the_folder_names_no_weights_of_the_machine_it_was_made_on(saved, tmp_path):
    assert "backbone_weights" in json.loads((saved[1] / "config.json").read_text())
    save_file(saved[0].backbone.body.state_dict(), tmp_path / "weights.safetensors")
    SmartIQA(backbone=TINY, backbone_weights=str(tmp_path / "weights.safetensors")).save_pretrained(tmp_path / "b")
    (tmp_path / "weights.safetensors").unlink()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["pretrained"], config["backbone_weights"], config["backbone"]) == (False, None, TINY)
    SmartIQA.from_pretrained(tmp_path / "b")


def test_a_folder_that_lacks_a_tensor_is_refused(saved, tmp_path):
    SmartIQA.from_pretrained(saved[1]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        SmartIQA.from_pretrained(tmp_path)


def test_push_to_hub_uploads_what_save_pretrained_writes(saved, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, token=None): ...

        def create_repo(self, repo_id, **_):
            return types.SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            uploaded[repo_id] = {file.name for file in folder_path.iterdir()}

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    saved[0].push_to_hub("me/network")
    assert uploaded == {"me/network": {"config.json", "model.safetensors", "README.md"}}


def test_torch_hub_gives_the_model_of_the_package():
    model = torch.hub.load(str(ROOT), "smart_iqa", source="local", device="cpu")
    assert model.name == "default"
    assert model(images()).tolist() == load_model(device="cpu")(images()).tolist()


@pytest.mark.slow
def test_torch_hub_works_where_the_project_is_not_installed(tmp_path):
    code = "import torch; model = torch.hub.load({!r}, 'smart_iqa', source='local', device='cpu'); "
    code += "print(model.score(torch.rand(1, 3, 64, 64)), model(torch.rand(1, 3, 64, 64)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code.format(str(ROOT))], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), "channel", test_mode="center")


def test_the_metric_of_torchmetrics_is_the_mean_over_all_images(run):
    metric, model = ImageQuality(run, "cpu"), load_model(run, "cpu")
    metric.update(images(2))
    metric.update(images(3, seed=1))
    expected = torch.cat([model(images(2)), model(images(3, seed=1))]).mean()
    torch.testing.assert_close(metric.compute(), expected)
    torch.testing.assert_close(metric(images(1)), model(images(1)).mean())
    metric.reset()
    metric.update(images(2))
    torch.testing.assert_close(metric.compute(), model(images(2)).mean())
    assert metric.higher_is_better


def test_the_metric_is_over_the_images_of_all_processes(run):
    parts, model = [images(2), images(5, seed=1)], load_model(run, "cpu")
    processes = [ImageQuality(run, "cpu") for _ in parts]
    for metric, part in zip(processes, parts, strict=True):
        metric.update(part)
    totals = {name: [getattr(metric, name) for metric in processes] for name in ("total", "images")}

    def gather(tensor: Tensor, group: object) -> list[Tensor]:
        return totals["total" if tensor.is_floating_point() else "images"]

    first = ImageQuality(run, "cpu", dist_sync_fn=gather, distributed_available_fn=lambda: True)
    first.update(parts[0])
    torch.testing.assert_close(first.compute(), torch.cat([model(part) for part in parts]).mean())


def test_the_metric_can_be_copied_as_torchmetrics_copies_them(run):
    metric = ImageQuality(run, "cpu")
    clone = copy.deepcopy(metric)
    clone.update(images(2))
    assert metric.images == 0 and clone.images == 2


def test_a_metric_of_pyiqa_is_created_by_its_name_once_it_is_registered(monkeypatch):
    """On a stand-in for what pyiqa looks names up in: a table of metrics, and networks by the names of classes."""

    class Registry(dict):
        def register(self, kind: type) -> None:
            assert kind.__name__ not in self, "pyiqa refuses a second one of a name"
            self[kind.__name__] = kind

    configs: dict[str, dict] = {}
    for name, content in {
        "pyiqa": {}, "pyiqa.utils": {}, "pyiqa.default_model_configs": {"DEFAULT_CONFIGS": configs},
        "pyiqa.utils.registry": {"ARCH_REGISTRY": (registry := Registry())},
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    register()
    register()
    options = dict(configs["smart-iqa"]["metric_opts"])
    network = registry[options.pop("type")](**options).eval()
    assert isinstance(network, SmartIQAMetric)
    assert network(images()).flatten().tolist() == load_model()(images()).tolist()
    assert (configs["smart-iqa"]["metric_mode"], configs["smart-iqa"]["lower_better"]) == ("NR", False)


def test_pyiqa_itself_creates_the_metric():
    pyiqa = pytest.importorskip("pyiqa")
    register()
    metric = pyiqa.create_metric("smart-iqa", device=torch.device("cpu"))
    assert metric(images()).flatten().tolist() == pytest.approx(load_model(device="cpu")(images()).tolist())
