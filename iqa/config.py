"""The one home of every setting: name, type, default, what is allowed. default < YAML < flag.

Nothing here reads data. `resolve` turns layers of settings into a frozen `Config`, and `iqa.flags` a command line (and
its `--config` file); every mistake in either is one UserError that names the key, its value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from iqa.choices import DEVICES, FUSION_KINDS, HEADS, LOSSES, MODEL_SIZES, TEST_MODES, TRACKERS, describe_crops
from iqa.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# The configuration files: in the wheel inside the package, in a checkout beside it.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())

_SINGLE_STAGE = tuple(name for name, kind in FUSION_KINDS.items() if kind.single_stage)
ATTENTION = tuple(name for name, kind in FUSION_KINDS.items() if kind.weighs_stages)


# The groups of settings, each under its first field.
GROUPS = {
    "name": "run",
    "dataset": "data",
    "backbone": "network",
    "epochs": "training",
    "photos": "photographs without scores",
    "spaq": "after training",
    "device": "machine",
}


def _setting(
    default: Any,
    help: str,
    choices: tuple | None = None,
    low: float | None = None,
    below: float | None = None,
    above: float | None = None,
) -> Any:
    """Make a field with its help text and its allowed values: `choices`, or a range.

    A number is at least `low`, less than `below` and more than `above`.
    """
    metadata = {"help": help, "choices": choices, "low": low, "below": below, "above": above}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """All settings of a run. Saved, resolved, as `config.yaml` beside its results."""

    # The run.
    name: str | None = _setting(None, "name of the run (default: from dataset, backbone, fusion, seed)")
    results_dir: str = _setting("results", "where runs are written")
    tracker: str = _setting("tensorboard", "what logs the run; wandb and mlflow are packages of their own", TRACKERS)
    log_every: int = _setting(50, "steps between values for the tracker; 0: by epoch only", low=0)
    seed: int = _setting(0, "seeds initialisation, splits, crops and dropout", low=0)

    # Data.
    dataset: str = _setting("koniq-10k", "database to train on; `python folders.py --help` lists them")
    data_root: str | None = _setting(None, "each holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    data_path: str | None = _setting(
        None, "this database's folder, or the table of `csv` and `json`; NAME=FOLDER for any database, repeated"
    )
    data_paths: list[str] = _setting([], "single databases, NAME=FOLDER each; short: --data_path NAME=FOLDER")
    image_column: str | None = _setting(None, "csv: column of image paths")
    mos_column: str | None = _setting(None, "csv: column of scores")
    mos_range: list[float] | None = _setting(None, "csv, json: lowest and highest possible score")
    lower_is_better: bool = _setting(False, "csv, json: scores are DMOS-like")
    content_column: str | None = _setting(None, "csv: column that says which images share a content")
    skip_bad_images: bool = _setting(False, "leave bad rows out and record them, instead of stopping")
    also_train_on: list[str] = _setting([], "further databases to train on; short: --dataset A B")
    sampling: str = _setting(
        "proportional",
        "crops of several databases: in proportion to their images, or as many of each",
        ("proportional", "balanced"),
    )
    split_file: str | None = _setting(
        None, "split file, or folder of lists; see docs/protocols.md (default: official, or made)"
    )
    allow_leakage: bool = _setting(False, "train although a content is in two parts; marks the results")
    resize: str = _setting(
        "384",
        "shorter side before cropping (never enlarged), HEIGHTxWIDTH, or none; 384 as HyperIQA on KonIQ",
    )
    patch_size: int = _setting(224, "side of a crop; 224 is what the backbones were pretrained on", low=32)
    train_patch_num: int = _setting(20, "training crops per image and epoch, as the paper", low=1)
    test_patch_num: int = _setting(20, "test crops per image, averaged, as the paper", low=1)
    test_batch_size: int = _setting(
        0, "crops scored at once (default: batch_size; on a GPU as many as fit where training does)", low=0
    )
    test_mode: str = _setting(
        "random",
        "how a test image is cropped; random is seeded by the image",
        tuple(TEST_MODES),
    )
    flip: bool = _setting(True, "mirror half of the training crops")
    color_jitter: bool = _setting(False, "mild colour jitter in training; off: colour is part of quality")
    num_workers: int = _setting(2, "processes that decode images", low=0)
    cache: bool = _setting(True, "keep decoded images, and features of a frozen backbone, on disk")
    cache_dir: str | None = _setting(None, "where (default: smart_iqa in the user's cache folder)")
    cache_limit: float | None = _setting(
        None, "gigabytes that all caches may take; those used longest ago go (default: no limit)", above=0
    )

    # Network.
    backbone: str = _setting("tiny", f"{', '.join(MODEL_SIZES)} (Swin), any timm model with four stages, or a ViT")
    fusion: str = _setting("concat", "how the four stages are joined", tuple(FUSION_KINDS))
    content_vector: str = _setting(
        "lda", "TargetNet's input: small grids of each stage, or averages", ("lda", "pooled")
    )
    scales: list[float] = _setting([1.0], "of the image that the backbone sees; their stages are joined")
    deviation: bool = _setting(False, "join each stage's deviation within 7x7 cells to its mean")
    head: str = _setting(
        "hypernet", "which weights are generated: all (hypernet), what differs by image (residual), none (mlp)", HEADS
    )
    pretrained: bool = _setting(True, "start from ImageNet weights: training from scratch needs far more images")
    backbone_weights: str | None = _setting(None, "file with backbone weights (.pth, .safetensors)")
    init_from: str | None = _setting(
        None, "start from the network of this run, or of a model of the package; it gives backbone and fusion"
    )
    init_part: str = _setting(
        "whole", "what is taken of init_from: all, or one of the two parts alone", ("whole", "backbone", "head")
    )
    drop_path_rate: float | None = _setting(None, "stochastic depth (default: by backbone)", low=0, below=1)
    dropout_rate: float | None = _setting(
        None, "dropout of reduce and TargetNet (default: by backbone)", low=0, below=1
    )
    freeze_backbone: bool = _setting(False, "train everything but the backbone")
    freeze_stages: int = _setting(0, "the backbone's stem and this many of its stages do not learn", low=0, below=5)
    lora_rank: int = _setting(0, "the backbone learns by adapters of this rank, through peft (0: by itself)", low=0)
    grad_checkpointing: bool = _setting(False, "compute the backbone's blocks again in the backward pass: less memory")
    freeze_batch_norm: bool = _setting(
        True, "keep a CNN's ImageNet statistics: batches of crops are small and correlated"
    )

    # Training.
    epochs: int = _setting(30, "epochs at most; early stopping usually ends before", low=1)
    batch_size: int = _setting(32, "crops per step, as the paper", low=1)
    optimizer: str = _setting(
        "adamw", "optimizer; muon: matrices learn at lr, all else by AdamW at lr / 8", ("adamw", "adam", "sgd", "muon")
    )
    lr: float = _setting(2e-5, "learning rate of the backbone, as HyperIQA", low=0)
    lr_ratio: float = _setting(10.0, "the new parts learn at lr * lr_ratio, as HyperIQA", low=0)
    weight_decay: float = _setting(0.01, "AdamW's own default", low=0)
    lr_scheduler: str = _setting("cosine", "cosine per step, /10 every 6 epochs, or none", ("cosine", "step", "none"))
    warmup_epochs: float = _setting(0.0, "epochs over which every rate rises from 0 (default: none)", low=0)
    layer_decay: float | None = _setting(
        None,
        "each block of the backbone learns at this times the rate of the next (default: all alike)",
        above=0,
        below=1,
    )
    ema_decay: float | None = _setting(
        None,
        "validate and keep an exponential average of the weights with this decay (default: the weights)",
        low=0,
        below=1,
    )
    accumulate: int = _setting(1, "batches whose gradients make one step", low=1)
    grad_clip: float | None = _setting(None, "largest norm of the gradient (default: not clipped)", above=0)
    loss_type: str = _setting("l1", "primary loss, on mos 0..100", tuple(LOSSES))
    ranking_loss_alpha: float = _setting(0.0, "weight of the ranking loss added to the primary one", low=0)
    ranking_loss_margin: float = _setting(0.1, "margin of the ranking loss as a fraction of the mos range", low=0)
    patience: int = _setting(7, "epochs without a better validation SRCC before stopping", low=1)
    early_stopping: bool = _setting(True, "stop when validation no longer improves")
    checkpoint_every: int = _setting(0, "steps between checkpoints within an epoch (default: at its end only)", low=0)
    keep_last: bool = _setting(False, "keep last.safetensors of a complete run, to go on with more epochs later")
    select_on: str = _setting(
        "val",
        "part that chooses the epoch (test marks the results), or last: the last one, learned from train and val",
        ("val", "test", "last"),
    )
    ensemble: int = _setting(1, "networks of seeds of their own, on one split, whose scores are averaged", low=1)
    train_test_num: int = _setting(1, "rounds over different splits; reports median, mean, deviation", low=1)
    folds: int = _setting(0, "cross-validation by content in this many rounds, at least 3 (default: none)", low=0)

    # Photographs without scores.
    photos: str | None = _setting(
        None, "folder of photographs whose distorted copies shall score lower, as the training images' (default: none)"
    )
    photo_weight: float = _setting(1.0, "weight of what is learned from their distorted copies", low=0)
    photo_batch: int = _setting(8, "training: photographs beside each batch; fewer with larger crops", low=1)
    photo_sides: list[int] = _setting(
        [112], "sides of their crops: training draws one for each step, pretraining takes each for its share of epochs"
    )
    teacher: str = _setting("tf_efficientnet_lite0", "pretraining: backbone with ImageNet weights to learn from")
    distil_weight: float = _setting(1.0, "pretraining: weight of the teacher's features", low=0)

    # After training.
    spaq: bool = _setting(True, "cross-database test on SPAQ when it is there")
    cross_datasets: list[str] = _setting([], "further databases to test on after training")
    skip_absent: bool = _setting(False, "go on without what a run needs at its end and does not find at its start")

    # Machine.
    device: str = _setting("auto", "where to compute", DEVICES)
    precision: str = _setting(
        "auto",
        "arithmetic of the backbone, the rest is fp32; auto: bf16 on a GPU that has it, else fp32",
        ("auto", "fp32", "bf16", "fp16"),
    )
    fused_attn: str = _setting(
        "auto",
        "torch's scaled_dot_product_attention; auto: on for Swin, off in bf16 on a CPU",
        ("auto", "on", "off"),
    )
    compile: bool = _setting(False, "compile the network with torch.compile")
    deterministic: bool = _setting(False, "the same bits in each run on a GPU, as on a CPU anyway; it may be slower")

    def __post_init__(self):
        for setting in dataclasses.fields(self):
            _check_value(setting, getattr(self, setting.name))
        parse_resize(self.resize)
        if not self.scales or not all(0.25 <= scale <= 2 for scale in self.scales):
            raise UserError(f"scales: expected at least one, each between 0.25 and 2, got {self.scales}")
        if self.mos_range is not None and (len(self.mos_range) != 2 or not self.mos_range[0] < self.mos_range[1]):
            raise UserError(f"mos_range: expected LOW HIGH with LOW < HIGH, got {self.mos_range}")
        if self.freeze_backbone and self.cache:
            for reason, clash in (
                (
                    f"fusion {self.fusion} weighs positions before they are pooled",
                    not FUSION_KINDS[self.fusion].pools_first,
                ),
                ("color_jitter changes pixels", self.color_jitter),
                ("photos are scored from their pixels", self.photos is not None),
            ):
                if clash:
                    raise UserError(f"{reason}: a frozen backbone's features cannot be kept; give --no_cache")
        if len({self.dataset, *self.also_train_on}) <= len(self.also_train_on):
            raise UserError(f"dataset: {', '.join([self.dataset, *self.also_train_on])}: a name is given twice")
        if self.sampling == "balanced" and not self.also_train_on:
            raise UserError("sampling balanced needs several databases: --dataset A B")
        several = {
            "split_file": bool(self.split_file),
            "train_test_num": self.train_test_num > 1,
            "folds": self.folds > 0,
        }
        if sum(several.values()) > 1:
            given = " and ".join(name for name, asked in several.items() if asked)
            raise UserError(f"{given} each say how to split: give one of them")
        if 0 < self.folds < 3:
            raise UserError(f"folds: expected 0 or at least 3 (train, val, test), got {self.folds}")
        if self.backbone_weights and not self.pretrained:
            raise UserError("backbone_weights and no_pretrained contradict each other: give one of them")
        if wrong := [path for path in self.data_paths if not NAMED_PLACE.fullmatch(path)]:
            raise UserError(f"data_paths: expected NAME=FOLDER, got {wrong[0]!r}")
        how = [key for key in ("freeze_backbone", "freeze_stages", "lora_rank") if getattr(self, key)]
        if len(how) > 1:
            raise UserError(f"{' and '.join(how)} each say what of the backbone learns: give one of them")
        if self.init_from and self.backbone_weights and self.init_part != "head":
            raise UserError("init_from and backbone_weights each say where to start: give one of them")
        if self.init_part != "whole" and not self.init_from:
            raise UserError(f"init_part {self.init_part} needs a run to take it from: give --init_from RUN")

    @property
    def run_name(self) -> str:
        """The run's name: as given, or made from what distinguishes it."""
        return (
            self.name
            or f"{'+'.join([self.dataset, *self.also_train_on])}_{self.backbone}_{self.fusion}_seed{self.seed}"
        )

    @property
    def run_dir(self) -> Path:
        """The folder the run is written to."""
        return Path(self.results_dir) / self.run_name

    @property
    def data_places(self) -> list[str]:
        """Where databases lie, as `folders.read_database` takes it for `data_root`; nothing for its defaults."""
        return [*filter(None, [self.data_root]), *self.data_paths]

    @property
    def test_crops(self) -> int:
        """How many crops of an image are scored."""
        return TEST_MODES[self.test_mode].crops(self.test_patch_num)

    @property
    def test_crops_in_words(self) -> str:
        """The crops of a test, as results files say it."""
        return describe_crops(self.test_mode, self.test_patch_num)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `load_config` reads it back to an equal Config."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


FIELDS = {setting.name: setting for setting in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)
# Other names of one setting, in flags and in YAML.
ALIASES = ("attention_fusion", "use_multiscale", "model_size", "test_random_crop")


# `spaq=/data/SPAQ`: where one database lies.
NAMED_PLACE = re.compile(r"([a-z][a-z0-9-]*)=(.+)")


def parse_resize(text: str) -> int | tuple[int, int] | None:
    """`none` -> None, `384` -> the shorter side, `512x384` -> (height, width)."""
    if text.lower() == "none":
        return None
    if re.fullmatch(r"[1-9]\d*", text):
        return int(text)
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text):
        return int(match[1]), int(match[2])
    raise UserError(f"resize: expected none, a number or HEIGHTxWIDTH, got {text!r}")


def plain_type(name: str) -> tuple[type, bool]:
    """A field's type without None, and whether None is allowed."""
    annotation = _TYPES[name]
    if isinstance(annotation, UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None)), True
    return annotation, False


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type: a whole number is a float too, a truth value is not a number."""
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(item, typing.get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _check_value(setting: dataclasses.Field, value: Any) -> None:
    kind, optional = plain_type(setting.name)
    if value is None and optional:
        return
    if not _has_type(value, kind):
        expected = kind if typing.get_origin(kind) else kind.__name__
        raise UserError(f"{setting.name}: expected {expected}, got {value!r}")
    choices, low = setting.metadata["choices"], setting.metadata["low"]
    if choices and value not in choices:
        raise UserError(f"{setting.name}: {value!r} is not one of {', '.join(choices)}")
    if low is not None and not value >= low:
        raise UserError(f"{setting.name}: expected at least {low:g}, got {value!r}")
    if (above := setting.metadata["above"]) is not None and not value > above:
        raise UserError(f"{setting.name}: expected more than {above:g}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{setting.name}: expected a finite number, got {value!r}")
    if (below := setting.metadata["below"]) is not None and not value < below:
        raise UserError(f"{setting.name}: expected less than {below:g}, got {value!r}")


def resolve(*layers: dict[str, Any]) -> Config:
    """Join layers of settings, later ones over earlier ones, into a Config.

    Within one layer the names of one setting must agree; a later layer replaces an earlier one's.

    Raises:
        UserError: unknown key, wrong type, value not allowed, or a contradiction.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        layer = {key: str(v) if key == "resize" and v is not None else v for key, v in layer.items()}
        layer = resolve_paths(_resolve_datasets(layer))
        for key in layer:
            if key not in FIELDS and key not in ALIASES:
                raise UserError(f"unknown setting {key!r}; known: {', '.join(sorted(FIELDS))}")
        for switch in ("use_multiscale", "test_random_crop"):
            if not isinstance(layer.get(switch), bool | None):
                raise UserError(f"{switch}: expected bool, got {layer[switch]!r}")
        layer = _resolve_fusion(layer, settings.get("fusion", FIELDS["fusion"].default))
        layer = _resolve_alias(layer, "model_size", "backbone", layer.get("model_size"))
        if (size := layer.pop("model_size", None)) is not None and size not in MODEL_SIZES:
            raise UserError(f"model_size: {size!r} is not one of {', '.join(MODEL_SIZES)}")
        random_crop = "random" if layer.get("test_random_crop") else None
        layer = _resolve_alias(layer, "test_random_crop", "test_mode", random_crop)
        layer.pop("test_random_crop", None)
        settings |= layer
    settings.setdefault("resize", FIELDS["resize"].default)
    settings["resize"] = settings["resize"] or "none"
    return Config(
        **{name: _as_float(value) if plain_type(name)[0] is float else value for name, value in settings.items()}
    )


def _as_float(value: Any) -> Any:
    """A whole number, or what YAML 1.1 takes for text (`5e-4` lacks its dot), as a float; else unchanged."""
    if isinstance(value, bool) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def _resolve_datasets(layer: dict) -> dict:
    """Several names under `dataset`: the first, and those to train on besides."""
    if not isinstance(names := layer.get("dataset"), list):
        return layer
    if not names:
        raise UserError("dataset: expected a name, got none")
    layer = {**layer, "dataset": names[0]}
    return _resolve_alias(layer, "dataset", "also_train_on", names[1:]) if len(names) > 1 else layer


def resolve_paths(layer: dict) -> dict:
    """Several roots to one text, and NAME=FOLDER under `data_path` to `data_paths`."""
    if isinstance(roots := layer.get("data_root"), list):
        layer = {**layer, "data_root": os.pathsep.join(map(str, roots))}
    paths = layer.get("data_path")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list):
        return layer
    named = [path for path in paths if isinstance(path, str) and NAMED_PLACE.match(path)]
    own = [path for path in paths if path not in named]
    if len(own) > 1:
        raise UserError(f"data_path: {', '.join(map(str, own))}: one database's folder; others are NAME=FOLDER")
    layer = {key: value for key, value in layer.items() if key != "data_path"} | ({"data_path": own[0]} if own else {})
    if named and isinstance(others := layer.get("data_paths", []), list):
        layer["data_paths"] = [*others, *named]
    return layer


def _resolve_alias(layer: dict, alias: str, key: str, meaning: Any) -> dict:
    """Write an alias's meaning under the real key, unless the layer already says otherwise."""
    if meaning is None:
        return layer
    if layer.get(key, meaning) != meaning:
        raise UserError(f"{alias} {layer[alias]} and {key} {layer[key]} contradict each other: give one of them")
    return {**layer, key: meaning}


def _resolve_fusion(layer: dict, current: str) -> dict:
    """`attention_fusion` and `use_multiscale` to the fusion they name."""
    attention = layer.get("attention_fusion")
    if isinstance(attention, bool):
        attention = "channel" if attention else None
    multiscale = layer.get("use_multiscale")
    if attention is not None and attention not in ATTENTION:
        raise UserError(f"attention_fusion: {attention!r} is not one of {', '.join(ATTENTION)}")
    if attention and multiscale is False:
        raise UserError("attention_fusion needs multi-scale features: leave out no_multiscale, or the attention")
    layer = _resolve_alias(layer, "attention_fusion", "fusion", attention)
    named = layer.get("fusion")
    if multiscale is False:
        layer = _resolve_alias({**layer}, "use_multiscale", "fusion", named if named in _SINGLE_STAGE else "single")
    elif multiscale and named is None:
        layer = {**layer, "fusion": "concat" if current in _SINGLE_STAGE else current}
    elif multiscale and named in _SINGLE_STAGE:
        raise UserError(f"use_multiscale and fusion {named} contradict each other: give one of them")
    return {key: value for key, value in layer.items() if key not in ("attention_fusion", "use_multiscale")}


def load_yaml(file: str | Path) -> dict[str, Any]:
    """The settings a YAML file lists.

    Raises:
        UserError: no such file, or not a mapping of settings.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {file}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config file {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content or {}, dict):
        raise UserError(f"config file {file}: expected lines of `key: value`")
    return content or {}


def load_config(file: str | Path) -> Config:
    """The Config of a YAML file over the defaults."""
    layer = load_yaml(file)
    try:
        return resolve(layer)
    except UserError as error:
        raise UserError(f"config file {file}: {error}") from error


def shipped_config(file: str) -> Path:
    """A configuration file as it was named, or else the one of this name that comes with the project.

    Args:
        file: a path, or the name of a file in `configs/`, with or without `configs/` and `.yaml`.

    Returns:
        The path as it is where there is no such file.
    """
    named = [
        Path(file),
        *(folder / f"{file}{ending}" for folder in (CONFIGS, CONFIGS.parent) for ending in ("", ".yaml")),
    ]
    return next((path for path in named if path.is_file()), Path(file))
