"""Teach a backbone from photographs without scores.

    smart-iqa pretrain --config configs/pretrain_nano.yaml --photos PHOTOS

Writes `backbone.safetensors` to the run's folder; `--backbone_weights` of training takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from iqa.errors import Parser
from iqa.system import start_logging
from train_swin import make_parser as make_training_parser, settings_of


def make_parser() -> Parser:
    """The command's flags: those of training, of which it uses network, optimizer, machine and photographs."""
    parser = make_training_parser()
    parser.description = "Teach a backbone from photographs without scores."
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain as the command line says."""
    flags = make_parser().parse_args(argv)
    start_logging()
    config = settings_of(flags)
    if flags.print_config:
        print(config.to_yaml(), end="")
        return
    from smart_iqa.pretraining import pretrain

    print(f"written to {pretrain(config, resume=flags.resume is not None)}")
