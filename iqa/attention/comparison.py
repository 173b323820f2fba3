"""Compare two models' attention on the same samples: over all of them, by layer and by group. Needs no torch.

two .npz files, or two runs -> Samples -[compare_models]-> the record and each model's statistics
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqa.attention.paired_tests import SIGNIFICANT, compare_paired, correlate, finding
from iqa.attention.statistics import STATISTICS
from iqa.errors import UserError

SEED = 0  # draws the samples
ENOUGH_SAMPLES = 100
MODELS = ("full", "no_middle")


@dataclass(frozen=True)
class Measured:
    """One model's attention on n samples.

    Attributes:
        layers: by layer each statistic (n,).
        tokens: by layer the tokens in a row.
        error: (n,), lower is better; None where it is not known.
        shown: (n, H, W), what a figure shows: the map over the image, or the matrix of queries and tokens.
    """

    layers: dict[str, dict[str, np.ndarray]]
    tokens: dict[str, int]
    error: np.ndarray | None
    shown: np.ndarray


@dataclass(frozen=True)
class Samples:
    """Two models on the same samples.

    Attributes:
        names: of the n samples.
        groups: (n,) of text, or None.
        models: what was measured, by `MODELS`.
        crop: gives the crop (H, W, 3) of a sample, where samples are images and `shown` are maps over them; or None.
        inputs: what the record says about the samples.
        notes: what a reader has to know.
    """

    names: list[str]
    groups: np.ndarray | None
    models: dict[str, Measured]
    crop: Callable[[int], np.ndarray] | None
    inputs: dict
    notes: list[str]


def draw_samples(available: int, wanted: int | None) -> np.ndarray:
    """Choose rows of the samples, in their order: all, or `wanted` of them drawn with a fixed seed."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(np.random.default_rng(SEED).choice(available, wanted, replace=False))


def _kind(layer: str) -> str:
    return "window" if layer.startswith("stage ") else layer


def pooled_layers(models: dict[str, Measured]) -> tuple[dict[str, list[str]], list[str]]:
    """Choose the layers whose mean stands for each model, and note what differs.

    They are the layers of every kind (window attention, cross_scale) that both models have: entropy grows with
    the number of tokens, so a kind that one model lacks would decide the comparison by itself.

    Raises:
        UserError: the models have no kind of attention in common.
    """
    kinds = set.intersection(*({_kind(layer) for layer in measured.layers} for measured in models.values()))
    if not kinds:
        has = " and ".join(", ".join(measured.layers) for measured in models.values())
        raise UserError(f"the two models have no kind of attention in common: {has}")
    pooled = {model: [layer for layer in m.layers if _kind(layer) in kinds] for model, m in models.items()}
    full, no_middle = models.values()
    notes = []
    for model, other in (MODELS, MODELS[::-1]):
        if alone := [layer for layer in models[model].layers if layer not in models[other].layers]:
            left_out = [layer for layer in alone if layer not in pooled[model]]
            where = "not in the means over layers" if left_out else "in the mean over its layers, in no test by layer"
            notes.append(f"only {model} has {', '.join(alone)}: {where}")
    for layer in full.layers:
        counts = [measured.tokens.get(layer) for measured in (full, no_middle)]
        if None not in counts and counts[0] != counts[1]:
            notes.append(f"{layer}: rows of {counts[0]} and {counts[1]} tokens, whose entropies have different ranges")
    return pooled, notes


def mean_over_layers(measured: Measured, layers: list[str]) -> dict[str, np.ndarray]:
    """Average each statistic (n,) over some layers."""
    return {name: np.mean([measured.layers[layer][name] for layer in layers], axis=0) for name in STATISTICS}


def compare_models(samples: Samples) -> tuple[dict, dict[str, dict[str, np.ndarray]]]:
    """Compare two models by each statistic: over all samples, by layer and by group.

    Returns:
        The record, JSON-ready, and each model's statistics (n,) averaged over layers.
    """
    pooled, notes = pooled_layers(samples.models)
    overall = {model: mean_over_layers(measured, pooled[model]) for model, measured in samples.models.items()}
    statistics = _compare_statistics(overall)
    errors = {model: measured.error for model, measured in samples.models.items()}
    error = None if any(e is None for e in errors.values()) else compare_paired(*errors.values())
    verdict = finding(statistics["entropy"], error)
    layers = _compare_layers(samples.models)
    groups = _compare_by_group(overall, errors if error else None, samples.groups)
    return {
        "n": len(samples.names),
        "finding": verdict,
        "finding_in_words": _finding_in_words(verdict, statistics["entropy"], error),
        "statistics": statistics,
        "error": error,
        "layers": layers,
        "groups": groups,
        "entropy_error_correlation": {
            model: correlate(overall[model]["entropy"], e) for model, e in errors.items() if e is not None
        },
        "notes": samples.notes + notes + _test_notes(statistics["entropy"], groups),
    }, overall


def _compare_statistics(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    return {name: compare_paired(values["full"][name], values["no_middle"][name]) for name in STATISTICS}


def _compare_layers(models: dict[str, Measured]) -> dict[str, dict]:
    """Compare each layer that both have; `p_fdr` is the t-test's p, adjusted over the layers."""
    from scipy import stats

    common = [layer for layer in models["full"].layers if layer in models["no_middle"].layers]
    compared = {layer: _compare_statistics({m: v.layers[layer] for m, v in models.items()}) for layer in common}
    for name in STATISTICS:
        tests = [compared[layer][name]["ttest"] for layer in common if compared[layer][name]["ttest"]["p"] is not None]
        # Benjamini and Hochberg, 1995: of the layers called different, at most this share is expected to be wrong.
        adjusted = stats.false_discovery_control([test["p"] for test in tests]) if tests else []
        for test, p in zip(tests, adjusted, strict=True):
            test["p_fdr"] = float(p)
    return compared


def _compare_by_group(
    overall: dict, errors: dict[str, np.ndarray] | None, groups: np.ndarray | None
) -> dict[str, dict]:
    compared = {}
    for group in [] if groups is None else np.unique(groups):
        rows = groups == group
        compared[str(group)] = _compare_statistics(
            {model: {name: values[rows] for name, values in by_name.items()} for model, by_name in overall.items()}
        )
        compared[str(group)]["error"] = compare_paired(*(e[rows] for e in errors.values())) if errors else None
    return compared


def _test_notes(entropy: dict, groups: dict[str, dict]) -> list[str]:
    n, notes = entropy["n"], []
    if n < ENOUGH_SAMPLES:
        # Two-sided 5 % and a power of 80 %: (1.96 + 0.84) / sqrt(n), by the normal approximation.
        notes.append(
            f"warning: {n} samples, fewer than {ENOUGH_SAMPLES}: differences below d_z = {2.8 / n**0.5:.2f} "
            "are likely to be missed"
        )
    notes += [
        f"{where}: {entry['note']}"
        for where, entry in [("entropy", entropy), *((f"group {g}", s["entropy"]) for g, s in groups.items())]
        if entry["note"]
    ]
    p_t, p_w = entropy["ttest"]["p"], entropy["wilcoxon"]["p"]
    if p_t is not None and (p_t < SIGNIFICANT) != (p_w < SIGNIFICANT):
        notes.append(f"t-test and Wilcoxon disagree about the entropy at {SIGNIFICANT}: the t-test decides the finding")
    return notes


def _finding_in_words(verdict: str, entropy: dict, error: dict | None) -> str:
    """Write the finding with the numbers that carry it."""
    p = entropy["ttest"]["p"]
    said = (
        f"{verdict}: entropy {entropy['full_mean']:.4f} against {entropy['no_middle_mean']:.4f} nats without the stage"
        f" ({percent_text(entropy)}, paired t-test {p_text(p)}, n = {entropy['n']}); "
    )
    if error is None:
        return said + "the error is not known"
    return said + (
        f"error {error['full_mean']:.4g} against {error['no_middle_mean']:.4g} ({percent_text(error)}, "
        f"{p_text(error['ttest']['p'])}; the finding takes the mean only)"
    )


def percent_text(comparison: dict) -> str:
    """Write a paired comparison's difference as a percentage."""
    percent = comparison["difference_percent"]
    if percent is None:
        return "no percentage of 0"
    return f"{percent:+.1f} %" if abs(percent) >= 0.1 or percent == 0 else f"{percent:+.1g} %"


def p_text(p: float | None) -> str:
    """Write the p of a test, which may not be defined."""
    if p is None:
        return "p not defined"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
