"""Counts against closed forms; latency and memory are measured, never asserted."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import command, forking
from torch import nn

from iqa.costs import count_macs, count_parameters
from iqa.errors import UserError
from models_swin import SmartIQA
from smart_iqa.commands.complexity import backbone_stages, check_published, parse_variant, write_tables


def test_macs_of_a_convolution_and_a_linear_layer_are_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16 * 16, 5, bias=False)
    )
    assert count_macs(model, side=16) == 16 * 16 * 8 * 3 * 9 + 8 * 16 * 16 * 5


def test_attention_is_counted_though_torch_fuses_it():
    fused, plain = SmartIQA("nano", "single"), SmartIQA("nano", "single")
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    attention = [m for m in plain.modules() if hasattr(m, "qkv")]
    assert attention and count_macs(fused, side=64) == count_macs(plain, side=64)
    # A stage-0 block at 64 px: 256 tokens in windows of 49; its qkv and projection alone are 4 * 256 * 48^2.
    assert count_macs(fused, side=64) > 2 * 4 * 256 * 48**2


def test_parts_add_up_to_the_whole():
    with torch.device("meta"):
        model = SmartIQA("tiny", "scale")
    parts = count_parameters(model)
    assert parts["total"] == 29_521_479 == sum(n for part, n in parts.items() if part != "total")
    assert sum(backbone_stages(model).values()) == parts["backbone"]


def test_a_published_figure_that_does_not_hold_is_said():
    row = {"variant": "tiny:scale", "parameters": {"total": 29_521_479}, "macs": 4.6e9}
    lines = check_published([row])
    assert any("parameters" in line and "does not hold" in line for line in lines)  # 28 is the backbone alone
    assert any("GFLOPs 5, measured 9.20: does not hold" in line for line in lines)


def test_a_part_that_a_variant_lacks_is_a_dash_in_every_table_for_readers(tmp_path):
    costs = {"macs": 10**9, "flops": 2 * 10**9, "peak_memory_bytes": 10**6, "latency_ms_per_image": {}}
    rows = [
        {"variant": "nano:a", "timm_name": "swin", "parameters": {"reduce": 10**6, "total": 10**6}} | costs,
        {"variant": "nano:b", "timm_name": "swin", "parameters": {"fusion": 10**6, "total": 10**6}} | costs,
    ]
    write_tables(rows, tmp_path)
    for ending in ("md", "tex"):
        text = (tmp_path / f"complexity.{ending}").read_text()
        assert "nan" not in text.lower().replace("nano", "") and text.count(" - ") == 2, text


@pytest.mark.parametrize("text", ["tiny", "tiny:sum", ":"])
def test_a_variant_that_is_none_is_one_line(text):
    with pytest.raises(UserError, match="BACKBONE:FUSION"):
        parse_variant(text)


@pytest.mark.long
def test_the_command_writes_every_table(tmp_path, capsys):
    flags = ["--batch_sizes", 1, "--passes", 2, "--device", "cpu", "--output", tmp_path]
    with forking():
        assert command("complexity", "nano:concat", *flags) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md", ".tex"}
    (row,) = json.loads((tmp_path / "complexity.json").read_text())["variants"]
    assert row["flops"] == 2 * row["macs"] and row["parameters"]["total"] == 6_474_645
    assert (row["backbone"], row["timm_name"]) == ("nano", "swin_tiny_patch4_window7_224")
    assert "swin_tiny_patch4_window7_224" in (tmp_path / "complexity.md").read_text()
    assert "measured nano:concat (timm: swin_tiny_patch4_window7_224)" in capsys.readouterr().out
