"""The measuring scripts: what they compute is right and what they write is whole; no time is asserted."""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import TINY, command

from benchmarks import cost, gpu, page, prediction, throughput
from benchmarks.common import against_target, interleaved, made_up_pictures, peak_bytes_of, spread
from data_loader import PixelCache, Preparation
from iqa.errors import UserError
from iqa.runtime import make_accelerator
from models_swin import SmartIQA
from smart_iqa.scorer import Scorer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("benchmarks") / "throughput.json"
    with mock.patch.dict(throughput.TRAINED, dict.fromkeys(throughput.TRAINED, TINY)):
        assert command("benchmarks.throughput", "--json", file, "--quick") == 0
    return json.loads(file.read_text())


def test_throughput_writes_every_number_with_its_target_and_provenance(quick):
    numbers = [
        "loader_crops_per_s", "train_ratio_tiny", "train_ratio_nano", "overhead_share", "eval_batch_gain",
        "frozen_epoch_gain_lite0", "frozen_epoch_gain_tiny", "frozen_epoch_gain_nano", "eval_batch_gain_nano",
    ]  # fmt: skip
    assert all(quick[name] > 0 and math.isfinite(quick[name]) for name in numbers)
    assert math.isfinite(quick["loader_jitter_cost"])
    assert set(quick["targets"]) == {*numbers, "loader_jitter_cost"}
    assert all(target["measured"] == quick[name] for name, target in quick["targets"].items())
    assert {"command", "versions", "machine"} <= quick["provenance"].keys() and quick["quick"]


def test_a_ratio_is_the_median_over_neighbours_in_time(quick):
    measured = quick["measurements"]["training"]["nano"]
    whole, bare = (measured["images_per_s"][work]["values"] for work in ("whole", "bare"))
    expected = spread([a / b for a, b in zip(whole, bare, strict=True)])["median"]
    assert quick["train_ratio_nano"] == pytest.approx(expected, rel=1e-4)


def test_overhead_is_a_share_of_the_epoch(quick):
    for measured in quick["measurements"]["training"].values():
        assert all(0 < share < 1 for share in measured["overhead_share"]["values"])


def test_what_is_compared_takes_turns_after_one_untimed_call():
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_a_spread_is_median_and_quartiles():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) | {"values": None} == {
        "median": 3.0, "quartiles": [2.0, 4.0], "n": 5, "values": None,
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "met"), [({"at_least": 2}, True), ({"at_least": 2.1}, False), ({"below": 2}, False)])
def test_a_target_says_whether_it_is_met(asked, met):
    assert against_target(2.0, **asked) == {"measured": 2.0, **asked, "met": met}


def test_one_crop_at_a_time_gives_the_scores_that_batches_give(tmp_path):
    sizes = throughput.QUICK
    pictures = made_up_pictures(tmp_path, 5, 70, 50)
    config = throughput.settings(sizes)
    model = SmartIQA(TINY, "channel")
    preparation = Preparation(model, config, PixelCache(tmp_path, pictures, config))
    scorer = Scorer(model, config, make_accelerator("cpu"), preparation)
    one, batched = throughput.score_one_crop_at_a_time(scorer, pictures), scorer.score_table(pictures)
    assert one == pytest.approx(batched, abs=1e-3)


@pytest.mark.parametrize("script", ["throughput", "cost"])
def test_a_result_that_cannot_be_written_is_one_line_before_anything_is_measured(script, tmp_path, capsys):
    missing = tmp_path / "no_such_folder" / "result.json"
    assert command(f"benchmarks.{script}", "--json", missing, "--quick") == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"error: --json {missing}: No such file or directory; name a file in a folder that can be written"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_its_script_says_so_in_one_line(tmp_path, capsys):
    assert command("benchmarks.gpu", "--json", tmp_path / "gpu.json") == 2
    assert capsys.readouterr().err.startswith("error: no CUDA device here")
    assert not list(tmp_path.iterdir())


def test_the_gpu_script_counts_arithmetic_and_time_by_hand(monkeypatch):
    monkeypatch.setattr(
        gpu, "measure_speed", lambda *how, **sizes: {"train_images_per_s": 100, "test_images_per_s": 50}
    )
    monkeypatch.setattr(gpu, "count_macs", lambda model, side: 2e9)
    row = gpu.measure_variant(TINY, 4, torch.device("cpu"), rate=2.4e12)
    assert row["mfu"] == pytest.approx(3 * 2 * 2e9 * 100 / 2.4e12)  # backward is twice the forward; 2 FLOPs a MAC
    assert (row["epoch_seconds"], row["test_seconds"]) == (7058 * 20 / 100, 2015 * 20 / 50)


def test_the_gpu_script_trains_and_tests_on_the_device_it_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    device, small = torch.device("cpu"), {"side": 32, "steps": 1}
    speed = gpu.measure_speed(TINY, 2, device, fused_attn="off", **small)
    assert speed.keys() == {"train_images_per_s", "network_images_per_s", "test_images_per_s"}
    assert min(speed.values()) > 0
    assert gpu.measure_deterministic(TINY, 2, device, 1e9, **small)["deterministic_cost"] > 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert gpu.matrix_rate(device, size=64, steps=1) > 0
    settings = {"patch_size": 32, "resize": "48", "test_patch_num": 2}
    loop = gpu.measure_loop(TINY, 2, device, tmp_path, pictures=3, steps=3, **settings)
    assert loop.keys() == {"loop_images_per_s", "loop_test_images_per_s"} and min(loop.values()) > 0


def test_a_start_that_fails_is_not_measured():
    prediction.run_start([sys.executable, "-c", "raise SystemExit(2)"], 2)
    with pytest.raises(UserError, match="expected exit code 0, got 1, and it said: broken"):
        prediction.run_start([sys.executable, "-c", "raise SystemExit('broken')"], 0)


def test_growth_is_the_exponent_between_the_last_two_sizes():
    costs = [{"loading": {"seconds": s}} for s in (7.0, 1.0, 100.0)]
    assert cost.growth((10, 100, 1000), costs) == {"loading": pytest.approx(2.0)}


@pytest.mark.slow
def test_the_slopes_of_a_shared_network_agree_and_those_of_generated_ones_do_not(tmp_path):
    file = tmp_path / "gradients.json"
    assert command("benchmarks.gradients", "--json", file, "--quick") == 0
    agreement = {name: of["agreement"] for name, of in json.loads(file.read_text())["heads"].items()}
    assert agreement["residual, pooled stages"] > 0.3 > abs(agreement["hypernet, pooled stages"])


def test_the_peak_of_a_new_process_is_its_own_and_not_that_of_the_process_that_started_it():
    held = np.ones(50_000_000)
    assert peak_bytes_of("pass") < held.nbytes / 2 < peak_bytes_of("held = bytearray(400_000_000)")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_peak_memory_sees_what_is_allocated_and_not_what_is_mapped(tmp_path):
    with (tmp_path / "zeros").open("wb") as file:
        os.truncate(file.fileno(), 64_000_000)
    gc.collect()  # what other tests have left would be freed meanwhile
    before = cost.resident_bytes()
    mapped = np.memmap(tmp_path / "zeros", mode="r")
    assert mapped.max() == 0 and cost.resident_bytes() - before < 20_000_000
    with cost.PeakMemory() as peak, mmap.mmap(-1, 64_000_000) as allocated:  # of the system, not what torch has kept
        allocated.write(b"1" * 64_000_000)
        peak.bytes = max(peak.bytes, cost.resident_bytes())  # without waiting for the watch
    assert peak.bytes - before >= 64_000_000


def test_cost_measures_every_part_at_every_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "in_own_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(cost, "measure_koniq_size", lambda sizes, batch: {"peak_bytes": batch})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # `measure_size` sets it: put back afterwards
    result = cost.measure(cost.QUICK)
    assert [set(costs) for costs in result["images"].values()] == [
        {"loading", "training", "evaluation", "statistics"}
    ] * 2
    assert all(part["seconds"] > 0 and part["peak_bytes"] > 0 for c in result["images"].values() for part in c.values())
    assert result["targets"]["koniq_size_peak_bytes"]["measured"] == cost.QUICK.koniq_batches[0]
    assert set(result["metrics_of_rows"]["seconds"]) == {"srcc", "plcc", "krcc", "rmse"}


def test_a_ring_halves_its_gain_where_the_page_says():
    step, gradients, rate = 4.0, 1e8, 1e8
    half = 1 + step * rate / (2 * gradients)
    assert page.speed_up(step, gradients, rate, 1) == 1
    assert page.speed_up(step, gradients, rate, half) == pytest.approx(half / 2)


def test_the_pages_say_what_the_committed_results_say():
    results = page.read_measurements(ROOT / "benchmarks" / "results")
    for name in page.PAGES:
        text = (ROOT / name).read_text()
        assert page.filled(text, results) == text, "run: python benchmarks/page.py"


def test_a_page_gets_every_kind_of_result(quick):
    gpu_row = {"backbone": "tiny", "batch": 32, "compiled": True, "reason": "out of memory"}
    gpu_row |= dict.fromkeys(page.LOOP, 0.5)
    costs = {"loading": {"seconds": 1.5, "peak_bytes": 4e8}}
    koniq = {"batch": 32, "workers": 2, "peak_bytes": 2.5e9}
    other = {"provenance": quick["provenance"], "targets": {}}
    results = [
        ("a.json", quick),
        ("b.json", {"kind": "cost", "images": {"1000": costs}, "koniq_size": [koniq], **other}),
        ("c.json", {"kind": "gpu", "device": "a device", "variants": [gpu_row], **other}),
    ]
    modes = {"full": {"srcc": 0.8, "difference": -0.01, "interval": [-0.02, 0.0], "relative_time": 0.2}}
    results.append(("d.json", {"kind": "test_modes", "modes": modes, **other}))
    counts = {"tried": 3, "read": 2, "refused": 1, "wrong": 0}
    tried = {"kinds": {"cut short": counts}, "total": counts, "slowest_file": "a.png", "pillow": "13", **other}
    results.append(("e.json", {"kind": "reliability_inputs", **tried}))
    of_phase = {"training loop": {"killed": 3, "same": 2}}
    results.append(("f.json", {"kind": "reliability_kills", "counts": {"plain": of_phase}, **other}))
    engine = {"images_per_s": {"median": 25.0}, "to_timm": {"median": 1.1}}
    numbers = {name: {"int8": value} for name, value in (("srcc", 0.8), ("loss", 0.01), ("mean_difference", 0.5))}
    exported = {
        "images": 100, "sizes": 20, "bytes": {"int8": 7e6}, "agreement": {"default": {".onnx": 5e-6}},
        "speed": {"1": {"int8": engine}}, "start_up": {"int8": {"seconds": 2.5, "peak_bytes": 3e8}},
        "accuracy": {"n": 595, **numbers}, **other,
    }  # fmt: skip
    results.append(("g.json", {"kind": "export", **exported}))
    start = {"first_score": {"median": 2.0, "quartiles": [1.75, 2.5], "n": 3}}
    measured = {"speed": {}, "start": start, "memory": {"peak_bytes": {"100": 3e8}}}
    results.append(("h.json", {"kind": "prediction", "measurements": measured, "busy": False, **other}))
    served = {"image": "small", "size": [9, 9], "clients": 1, "requests_per_s": 5.0, "median_seconds": 0.2}
    rows = [served | {"p95_seconds": 0.3, "batches": batches} for batches in (True, False)]
    load = {"direct_images_per_s": {"small": 6.0}, "load_average": 0.5}
    results.append(("j.json", {"kind": "serving", "rows": rows, **load, **other}))
    row = {"what": "wider", "head": "mlp", "features": "all", "srcc": 0.5, "srcc_of_two": None, "plcc": 0.6, "note": ""}
    results.append(("i.json", {"kind": "tried", "rows": [row], "splits": [10], "recipe": "Adam", **other}))
    speed = {"images_per_cpu_s": {"median": 10.0, "quartiles": [9.0, 11.0]}}
    one_core = {"backends": {"torch": speed}, "size": [512, 384], "date": "2026-11-27", "load_average": 1.0}
    results.append(("k.json", {"kind": "collection", **one_core, **other}))
    paired = {"difference": 0.01, "ahead": 9, "splits": 10, "bootstrap": {"difference_ci95": [0.005, 0.016]}}
    baseline = {"medians": {"srcc": 0.83, "plcc": 0.89}, "model_against_it": paired}
    controls = {"kind": "controls", "model": {"srcc": 0.84, "plcc": 0.9}, "baselines": {"svr": baseline}, **other}
    results.append(("k.json", controls))
    heads = {"residual": {"agreement": 0.5, "spread": 0.1, "reach": [0.2, 0.3]}}
    results.append(("l.json", {"kind": "gradients", "seeds": 5, "images": 30, "heads": heads, **other}))
    row = {"row": "single", "parts": {"test": {key: {"mean": 0.8} for key in ("srcc", "plcc")}}, "parameters": 2.5e6}
    fusions = {"baseline": "channel", "rows": [row | {"versus_baseline": paired}, row | {"versus_baseline": None}]}
    results.append(("m/table.json", {"kind": "ablation_agiqa3k_fusions/table.json", **fusions, **other}))
    nano = {"weights": "nano.safetensors", "splits": {"ridge": {"srcc": [0.7, 0.8, 0.75]}}}
    results.append(("n.json", {"kind": "backbones", "backbones": {"nano": nano}, **other}))
    pages = [page.filled((ROOT / name).read_text(), results) for name in page.PAGES]
    assert page.NOTHING not in "".join(pages)
    assert "| loading | 1,000 | 1.5 | 400 |" in pages[0] and "out of memory" in pages[0]
    assert "| batch 32, 2 workers | 2,500 |" in pages[0]
    assert pages[0].count("| start: first score | 2 | 1.75 .. 2.5 | 3 |") == 1
    assert "| full | 0.8000 | -0.0100 | -0.0200 .. +0.0000 | 0.20 |" in pages[0]
    assert "| plain | 2 of 3 |" in pages[2] and "| cut short | 3 | 2 | 1 | 0 |" in pages[2]
    assert "| torch | 10 | 9 .. 11 | 27,778 | 1.13 | 1,111 |" in pages[1]
    assert page.filled(pages[0], results) == pages[0]
    assert "| int8 | 0.8000 | +0.0100 | 0.50 | 7.0 |" in pages[-3] and "| `default` .onnx | 5.0e-06 |" in pages[-3]
    assert "| svr | 0.8300 | 0.8900 | +0.0100 | +0.0050 to +0.0160 | 9 of 10 |" in pages[-2]
    assert "| mlp | all | wider | 0.5000 |  | 0.6000 |  |" in pages[-2]
    assert "| single | 0.8000 | 0.8000 | +0.0100 | +0.0050 to +0.0160 | 9 of 10 | 2.50 |" in pages[-2]
    assert "| nano | nano.safetensors | 0.750 |" in pages[-1]


@pytest.mark.slow
def test_serving_is_measured_for_every_number_of_clients_with_and_without_batches(tmp_path):
    file = tmp_path / "serving.json"
    assert command("benchmarks.serving", "--json", file, "--quick") == 0
    result = json.loads(file.read_text())
    assert [(row["clients"], row["batches"]) for row in result["rows"]] == [(2, True), (2, False)]
    assert all(row["requests"] >= 6 and 0 < row["median_seconds"] <= row["p95_seconds"] for row in result["rows"])
    assert "thumbnail, 96x96 | 2 |" in page.serving_section("serving.json", result)


@pytest.mark.slow
def test_the_benchmark_of_exported_models_runs(tmp_path):
    assert command("benchmarks.exporting", "--json", tmp_path / "export.json", "--quick") == 0
    result = json.loads((tmp_path / "export.json").read_text())
    assert max(result["agreement"]["default"].values()) < result["tolerance"]
    assert set(result["speed"]["1"]) == {"timm backbone", "torch", "onnxruntime", "int8"}


@pytest.mark.slow
def test_the_benchmark_of_a_collection_runs(tmp_path):
    assert command("benchmarks.collection", "--json", tmp_path / "collection.json", "--quick") == 0
    result = json.loads((tmp_path / "collection.json").read_text())
    assert set(result["backends"]) == {"torch", "onnxruntime"}
    assert all(speed["median"] > 0 for of in result["backends"].values() for speed in of.values())


def test_a_model_is_compared_with_the_baselines_beside_it(tmp_path, capsys):
    committed = ROOT / "benchmarks/results/agiqa3k/lite0_lite2_residual"
    for name in ("split_00", "split_01", "svr_split_00", "svr_split_01"):
        shutil.copy(committed / f"{name}.json", tmp_path)
    assert command("benchmarks.controls", tmp_path, "--json", tmp_path / "controls.json") == 0
    found = json.loads((tmp_path / "controls.json").read_text())
    assert found["baselines"].keys() == {"svr"}
    paired = found["baselines"]["svr"]["model_against_it"]
    assert paired["splits"] == 2 and paired["contents"] > 100
    low, high = paired["bootstrap"]["difference_ci95"]
    assert low < paired["difference"] < high
    (tmp_path / "svr_split_01.json").unlink()
    assert command("benchmarks.controls", tmp_path) == 2
    assert "1 splits of svr, 2 of the model" in capsys.readouterr().err
