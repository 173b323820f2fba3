"""Teach a backbone from photographs without scores.

    smart-iqa pretrain --config configs/pretrain_nano.yaml --photos PHOTOS

The backbone starts from random weights, or from those of `--backbone_weights`. Writes `backbone.safetensors` to the
run's folder, which `--backbone_weights` of training takes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from iqa.errors import Parser
from iqa.system import start_logging
from smart_iqa.runs import add_run_flags, saying_how_to_go_on, settings_of

log = logging.getLogger(__name__)


def make_parser() -> Parser:
    """The command's flags: those of training, of which it uses network, training, photographs and machine."""
    parser = Parser(
        usage="%(prog)s --photos FOLDER [--config FILE.yaml] [--SETTING VALUE ...] [--resume [RUN]] [--print_config]",
        description="Teach a backbone from photographs without scores.",
    )
    add_run_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain as the command line says."""
    flags = make_parser().parse_args(argv)
    start_logging()
    config = settings_of(flags)
    if flags.print_config:
        print(config.to_yaml(), end="")
        return
    if flags.resume is not None and (config.run_dir / "pretraining.json").is_file():
        log.info("%s is complete; nothing to resume", config.run_dir)
        return
    from iqa.runtime import deterministic_kernels
    from smart_iqa.pretraining import pretrain

    with saying_how_to_go_on(config, "smart-iqa pretrain"), deterministic_kernels(config.deterministic):
        log.info("written to %s", pretrain(config, resume=flags.resume is not None))
