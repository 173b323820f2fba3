"""Settings: default < YAML < flag, every flag is real, every mistake is one line that names it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import refusal
from hypothesis import given, settings, strategies as st

from iqa.choices import FUSION_KINDS, MODEL_SIZES
from iqa.config import (
    CONFIGS,
    FIELDS,
    Config,
    load_config,
    load_yaml,
    parse_resize,
    resolve,
)
from iqa.errors import UserError
from iqa.flags import add_config_flags, config_from_flags

TYPES = typing.get_type_hints(Config)
BOOLEANS = [name for name in FIELDS if TYPES[name] is bool]
LAST_GROUPS = ["photographs without scores", "after training", "machine"]
ALIASES = {"model_size", "attention_fusion", "use_multiscale", "test_random_crop"}
ATTENTION = [name for name, kind in FUSION_KINDS.items() if kind.weighs_stages]
# A value for each setting that is not its default, as a command line gives it and as the Config holds it.
SPECIAL = {
    "resize": (["512x384"], "512x384"),
    "mos_range": (["1", "5"], [1.0, 5.0]),
    "cross_datasets": (["live", "csiq"], ["live", "csiq"]),
    "also_train_on": (["live", "csiq"], ["live", "csiq"]),
    "freeze_stages": (["2"], 2),
    "data_paths": (["live=/a", "csiq=/b"], ["live=/a", "csiq=/b"]),
    "photo_sides": (["96", "128"], [96, 128]),
    "scales": (["1.0", "0.5"], [1.0, 0.5]),
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    add_config_flags(made)
    return made


def from_command_line(*arguments: str) -> Config:
    return config_from_flags(parser().parse_args(arguments))


def yaml_file(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


def sample(name: str) -> tuple[list[str], Any]:
    """Arguments of a flag, and the value that its setting then has."""
    setting = FIELDS[name]
    if name in SPECIAL:
        return SPECIAL[name]
    if choices := setting.metadata["choices"]:
        value = next(choice for choice in choices if choice != setting.default)
    elif int in (TYPES[name], *typing.get_args(TYPES[name])):
        value = setting.default + 32
    elif float in (TYPES[name], *typing.get_args(TYPES[name])):
        value = 0.375
    else:
        value = "something"
    return [str(value)], value


# Flags.


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in (*BOOLEANS, "sampling", "init_part")])
def test_a_flag_sets_its_setting_and_no_other(name: str) -> None:
    arguments, value = sample(name)
    assert from_command_line(f"--{name}", *arguments) == dataclasses.replace(Config(), **{name: value})
    assert getattr(Config(), name) != value


@pytest.mark.parametrize("name", BOOLEANS)
def test_both_values_of_a_switch_can_be_given(name: str) -> None:
    assert getattr(from_command_line(f"--{name}"), name) is True
    assert getattr(from_command_line(f"--no_{name}"), name) is False
    with pytest.raises(argparse.ArgumentError, match="not allowed with argument"):
        from_command_line(f"--{name}", f"--no_{name}")


def test_there_is_no_flag_besides_the_settings_their_aliases_and_the_file() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    switches = {f"--no_{name}" for name in BOOLEANS} | {"--no_multiscale"}
    assert flags == {f"--{name}" for name in {*FIELDS, *ALIASES}} | switches | {"--config", "--help", "-h"}


def test_several_databases_are_a_first_one_and_those_besides() -> None:
    assert from_command_line("--dataset", "live") == dataclasses.replace(Config(), dataset="live")
    several = from_command_line("--dataset", "koniq-10k", "kadid-10k", "live")
    assert (several.dataset, several.also_train_on) == ("koniq-10k", ["kadid-10k", "live"])
    balanced = from_command_line("--dataset", "live", "csiq", "--sampling", "balanced")
    assert (
        balanced == resolve({"dataset": ["live", "csiq"], "sampling": "balanced"}) and balanced.sampling == "balanced"
    )
    assert several == resolve({"dataset": ["koniq-10k", "kadid-10k", "live"]})
    assert several.run_name.startswith("koniq-10k+kadid-10k+live_")
    with pytest.raises(UserError, match="dataset .* and also_train_on .* contradict"):
        resolve({"dataset": ["live", "csiq"], "also_train_on": ["bid"]})
    with pytest.raises(UserError, match="expected a name, got none"):
        resolve({"dataset": []})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_backbone": True, "fusion": "spatial"}, "fusion spatial .* give --no_cache"),
        ({"freeze_backbone": True, "color_jitter": True}, "color_jitter .* give --no_cache"),
        ({"split_file": "a.json", "train_test_num": 3}, "split_file and train_test_num each say how to split"),
        ({"folds": 5, "train_test_num": 3}, "train_test_num and folds each say how to split"),
        ({"folds": 2}, "folds: expected 0 or at least 3"),
        ({"dataset": ["live", "csiq", "live"]}, "live, csiq, live: a name is given twice"),
        ({"sampling": "balanced"}, "sampling balanced needs several databases"),
    ],
)
def test_settings_that_cannot_go_together_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(settings)
    if "freeze_backbone" in settings:
        assert not resolve(settings | {"cache": False}).cache


def test_without_flags_the_defaults_hold() -> None:
    assert from_command_line() == Config() == resolve()


def test_the_three_design_commands_mean_what_the_design_says() -> None:
    first = from_command_line(*"--dataset koniq-10k --epochs 30 --batch_size 4".split())
    assert (first.fusion, first.spaq, first.epochs, first.batch_size) == ("concat", True, 30, 4)
    second = from_command_line(*"--attention_fusion --patience 7 --lr_scheduler cosine --no_spaq".split())
    assert (second.fusion, second.spaq, second.patience, second.lr_scheduler) == ("channel", False, 7, "cosine")
    third = from_command_line("--no_multiscale", "--no_spaq")
    assert (third.fusion, third.spaq) == ("single", False)


# Aliases.


@pytest.mark.parametrize(
    ("alias", "setting", "value"),
    [
        *[(["--model_size", size], "backbone", size) for size in MODEL_SIZES],
        (["--attention_fusion"], "fusion", "channel"),
        *[(["--attention_fusion", kind], "fusion", kind) for kind in ATTENTION],
        (["--use_multiscale"], "fusion", "concat"),
        (["--use_multiscale", "--attention_fusion", "scale"], "fusion", "scale"),
        (["--no_multiscale"], "fusion", "single"),
        (["--test_random_crop"], "test_mode", "random"),
    ],
)
def test_an_alias_flag_sets_the_setting_it_stands_for(alias: list[str], setting: str, value: str) -> None:
    assert from_command_line(*alias) == dataclasses.replace(Config(), **{setting: value})


@pytest.mark.parametrize("kind", FUSION_KINDS)
def test_an_alias_may_say_again_what_the_setting_says(kind: str) -> None:
    alias = "--no_multiscale" if FUSION_KINDS[kind].single_stage else "--use_multiscale"
    assert from_command_line("--fusion", kind, alias).fusion == kind


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("attention_fusion: true", "fusion", "channel"),
        ("attention_fusion: scale", "fusion", "scale"),
        ("attention_fusion: false", "fusion", "concat"),
        ("use_multiscale: false", "fusion", "single"),
        ("use_multiscale: true", "fusion", "concat"),
        ("model_size: base", "backbone", "base"),
        ("test_random_crop: true", "test_mode", "random"),
    ],
)
def test_an_alias_works_in_yaml_too(tmp_path: Path, text: str, setting: str, value: str) -> None:
    assert load_config(yaml_file(tmp_path, text)) == dataclasses.replace(Config(), **{setting: value})


# Layers.


def test_yaml_goes_over_defaults_and_flags_go_over_yaml(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "epochs: 5\nseed: 3\nspaq: false\n")
    config = from_command_line("--config", str(file), "--seed", "4", "--spaq")
    assert config == dataclasses.replace(Config(), epochs=5, seed=4, spaq=True)


@pytest.mark.parametrize(
    ("text", "flags", "setting", "value"),
    [
        ("fusion: scale", ["--no_multiscale"], "fusion", "single"),
        ("attention_fusion: scale", ["--use_multiscale"], "fusion", "scale"),
        ("use_multiscale: false", ["--use_multiscale"], "fusion", "concat"),
        ("model_size: base", ["--backbone", "resnet50"], "backbone", "resnet50"),
        ("backbone: resnet50", ["--model_size", "small"], "backbone", "small"),
        ("test_mode: grid", ["--test_random_crop"], "test_mode", "random"),
    ],
)
def test_a_flag_replaces_what_another_name_of_the_setting_says_in_yaml(
    tmp_path: Path, text: str, flags: list[str], setting: str, value: str
) -> None:
    config = from_command_line("--config", str(yaml_file(tmp_path, text)), *flags)
    assert getattr(config, setting) == value


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("lr: 5e-4", "lr", 5e-4),  # text by the letter of YAML 1.1, which wants 5.0e-4
        ("lr: 1", "lr", 1.0),
        ("resize: 384", "resize", "384"),
        ("resize: null", "resize", "none"),
        ("grad_clip: null", "grad_clip", None),
        ("mos_range: [1, 5]", "mos_range", [1, 5]),
    ],
)
def test_a_value_is_read_as_people_write_it(tmp_path: Path, text: str, setting: str, value: Any) -> None:
    read = getattr(load_config(yaml_file(tmp_path, text)), setting)
    assert read == value
    assert type(read) is type(value)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(yaml_file(tmp_path, "# nothing differs\n")) == Config()


def test_the_resolved_config_reads_back_to_itself(tmp_path: Path) -> None:
    # Beside train_test_num, backbone_weights and freeze_backbone.
    one_of_several = ("split_file", "folds", "init_from", "init_part", "freeze_stages", "lora_rank")
    samples = {name: sample(name)[1] for name in FIELDS if name not in (*BOOLEANS, *one_of_several)}
    switched = {name: not FIELDS[name].default for name in BOOLEANS if name != "pretrained"}
    for config in (Config(), resolve(samples | switched), resolve({"pretrained": False, "lr": 1e-7})):
        assert load_config(yaml_file(tmp_path, config.to_yaml())) == config


# Mistakes.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown setting 'learning_rate'; known: .*lr, lr_ratio"),
        ("epochs: ten", "epochs: expected int, got 'ten'"),
        ("epochs: 2.5", "epochs: expected int, got 2.5"),
        ("epochs: true", "epochs: expected int, got True"),
        ("epochs: 0", "epochs: expected at least 1, got 0"),
        ("epochs: null", "epochs: expected int, got None"),
        ("lr: fast", "lr: expected float, got 'fast'"),
        ("lr: .nan", "lr: expected at least 0, got nan"),
        ("lr: -1", "lr: expected at least 0, got -1"),
        ("spaq: 1", "spaq: expected bool, got 1"),
        ("name: 7", "name: expected str, got 7"),
        ("optimizer: lion", "optimizer: 'lion' is not one of adamw, adam, sgd, muon"),
        ("cross_datasets: live", r"cross_datasets: expected list\[str\], got 'live'"),
        ("cross_datasets: [1]", r"cross_datasets: expected list\[str\], got \[1\]"),
        ("mos_range: [low, 5]", r"mos_range: expected list\[float\], got \['low', 5\]"),
        ("mos_range: [5, 1]", r"mos_range: expected LOW HIGH with LOW < HIGH, got \[5.*, 1.*\]"),
        ("mos_range: [1]", "mos_range: expected LOW HIGH"),
        ("resize: 0", "resize: expected none, a number or HEIGHTxWIDTH, got '0'"),
        ("model_size: huge", "model_size: 'huge' is not one of nano, tiny, small, base"),
        ("attention_fusion: concat", "attention_fusion: 'concat' is not one of channel, scale"),
        ("attention_fusion: [scale]", r"attention_fusion: \['scale'\] is not one of"),
        ("use_multiscale: 3", "use_multiscale: expected bool, got 3"),
        ("test_random_crop: grid", "test_random_crop: expected bool, got 'grid'"),
        # Contradictions.
        ("backbone_weights: a.pth\npretrained: false", "backbone_weights and no_pretrained contradict"),
        ("model_size: tiny\nbackbone: base", "model_size tiny and backbone base contradict"),
        ("attention_fusion: scale\nfusion: concat", "attention_fusion scale and fusion concat contradict"),
        ("attention_fusion: scale\nuse_multiscale: false", "attention_fusion needs multi-scale features"),
        ("use_multiscale: false\nfusion: concat", "use_multiscale False and fusion concat contradict"),
        ("use_multiscale: true\nfusion: single", "use_multiscale and fusion single contradict"),
        ("test_random_crop: true\ntest_mode: grid", "test_random_crop True and test_mode grid contradict"),
        # No settings at all.
        ("- epochs\n- 5", "expected lines of `key: value`"),
        ("epochs: [", "is not YAML"),
    ],
)
def test_a_mistake_in_yaml_is_one_line_that_names_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        from_command_line("--config", str(file))
    assert str(caught.value).startswith(f"config file {file}")
    assert "\n" not in str(caught.value)


def test_no_multiscale_with_attention_is_refused_on_the_command_line() -> None:
    with pytest.raises(UserError, match="attention_fusion needs multi-scale features"):
        from_command_line("--no_multiscale", "--attention_fusion")


def test_a_contradiction_between_file_and_flag_is_refused(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "backbone_weights: swin.pth")
    with pytest.raises(UserError, match="backbone_weights and no_pretrained contradict"):
        from_command_line("--config", str(file), "--no_pretrained")


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_a_config_that_comes_with_the_project_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_command_line("--config", name) == load_config(CONFIGS / "demo.yaml")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("seed: 9")
    assert from_command_line("--config", name) == Config(seed=9)


def test_help_lists_every_setting_in_its_group() -> None:
    flags = {
        group.title: {action.dest for action in group._group_actions}
        for group in parser()._action_groups
        if group.title
    }
    assert list(flags)[2:] == ["run", "data", "network", "training", *LAST_GROUPS]
    assert flags["run"] == {"name", "results_dir", "seed", "tracker", "log_every"}
    assert {"resize", "cache_dir", "test_random_crop"} < flags["data"] and {"lr", "folds"} < flags["training"]
    assert {"model_size", "attention_fusion", "use_multiscale", "freeze_backbone"} < flags["network"]
    assert set(FIELDS) <= set().union(*flags.values())


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x81"], ids=["missing", "binary"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"config file {file}"):
        load_yaml(file)


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats() | st.text("ab1e-x", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=1),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(sorted({*FIELDS, *ALIASES})), YAML_VALUES, min_size=1, max_size=2))
@settings(max_examples=300)
def test_whatever_yaml_says_is_a_valid_config_or_one_line(layer: dict[str, Any]) -> None:
    read = yaml.safe_load(yaml.safe_dump(layer))
    said = refusal(resolve, read)
    if said is None:
        config = resolve(read)
        assert resolve(dataclasses.asdict(config)) == config
    else:
        assert "\n" not in said


# Resize, names.


@pytest.mark.parametrize(
    ("text", "meaning"), [("none", None), ("None", None), ("384", 384), ("512x384", (512, 384)), ("1x2", (1, 2))]
)
def test_resize_is_none_a_shorter_side_or_height_x_width(text: str, meaning: Any) -> None:
    assert parse_resize(text) == meaning


@pytest.mark.parametrize("text", ["", "0", "-3", "38.4", "512x", "x384", "512x384x3", "0x5", "512 x 384", "big"])
def test_another_resize_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="resize: expected none, a number or HEIGHTxWIDTH"):
        parse_resize(text)


def test_a_run_is_named_by_what_distinguishes_it_unless_it_has_a_name() -> None:
    assert Config(dataset="live", seed=3).run_name == "live_tiny_concat_seed3"
    assert Config(name="mine", results_dir="runs").run_dir == Path("runs/mine")


def test_data_path_with_a_name_is_of_that_database_and_without_one_of_the_runs_own(tmp_path: Path) -> None:
    config = from_command_line("--data_path", "/own", "--data_path", "spaq=/a b", "--data_path", "bid=/c")
    assert (config.data_path, config.data_paths) == ("/own", ["spaq=/a b", "bid=/c"])
    assert from_command_line("--config", str(yaml_file(tmp_path, "data_path: [spaq=/x]"))).data_paths == ["spaq=/x"]
    assert from_command_line("--config", str(yaml_file(tmp_path, "data_path: /x"))).data_path == "/x"
    with pytest.raises(UserError, match="data_path: /a, /b: one database's folder"):
        from_command_line("--data_path", "/a", "--data_path", "/b")


def test_several_roots_are_one_text_with_the_path_separator_between() -> None:
    config = from_command_line("--data_root", "/a", "/b", "--data_path", "spaq=/c")
    assert config.data_root == f"/a{os.pathsep}/b"
    assert config.data_places == [f"/a{os.pathsep}/b", "spaq=/c"]
    assert Config().data_places == []
