"""Paired tests of one quantity of two models, effect sizes, and the finding. Needs no torch."""

from __future__ import annotations

import numpy as np

SIGNIFICANT = 0.05
FEWEST_SAMPLES = 3  # two differences always have a spread, so a t-test of two says nothing
# Differences and spreads below this are rounding, not data: the statistics are of order 1.
_ROUNDING = 1e-12


def compare_paired(full: np.ndarray, no_middle: np.ndarray) -> dict:
    """Compare two models' values of one quantity on the same samples.

    The difference is full - no_middle. Cohen's d_z = mean(d) / std(d) (Cohen, "Statistical Power Analysis for
    the Behavioral Sciences", 1988); the rank-biserial correlation = (W+ - W-) / (W+ + W-) over the signed
    ranks of the differences that are not 0 (Kerby, 2014), -1 where full is always lower, 1 where always higher.

    Args:
        full: (n,) values of the model with the stage.
        no_middle: (n,) values of the model without it, same samples, same order.

    Returns:
        JSON-safe: `n`, `full_mean`, `full_std`, `no_middle_mean`, `no_middle_std`, `difference`,
        `difference_percent` (of no_middle; None where that is 0), `difference_ci95`, `ttest` {t, p}, `wilcoxon` {w, p},
        `cohens_dz`, `rank_biserial`, all two-sided, and `note`, which says why a value is None (else None).
    """
    d = full - no_middle
    d = np.where(np.abs(d) < _ROUNDING, 0.0, d)
    base = float(no_middle.mean())
    return {
        "n": len(d),
        "full_mean": float(full.mean()),
        "full_std": _std(full),
        "no_middle_mean": base,
        "no_middle_std": _std(no_middle),
        "difference": float(d.mean()),
        "difference_percent": 100 * float(d.mean()) / base if abs(base) > _ROUNDING else None,
        **_tests(d),
    }


def _std(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _tests(d: np.ndarray) -> dict:
    """Test differences (n,) and measure their effect sizes; a quantity that is not defined is None, with a note."""
    from scipy import stats

    nothing = {"t": None, "p": None}
    tests = {"difference_ci95": None, "ttest": nothing, "wilcoxon": {"w": None, "p": None}}
    tests |= {"cohens_dz": None, "rank_biserial": None, "note": None}
    if len(d) < FEWEST_SAMPLES:
        return tests | {"note": f"not tested: {len(d)} samples, {FEWEST_SAMPLES} are needed"}
    if not d.any():
        return tests | {"note": "not tested: no sample differs"}
    signed_rank = stats.wilcoxon(d)
    tests["wilcoxon"] = {"w": float(signed_rank.statistic), "p": float(signed_rank.pvalue)}
    tests["rank_biserial"] = _rank_biserial(d)
    if np.ptp(d) < _ROUNDING:  # no spread: t and d_z are infinite
        mean = float(d.mean())
        note = "every sample differs by the same amount: t and d_z are infinite"
        return tests | {"difference_ci95": [mean, mean], "ttest": {"t": None, "p": 0.0}, "note": note}
    t = stats.ttest_1samp(d, 0.0)
    interval = t.confidence_interval()
    tests["difference_ci95"] = [float(interval.low), float(interval.high)]
    tests["ttest"] = {"t": float(t.statistic), "p": float(t.pvalue)}
    tests["cohens_dz"] = float(d.mean() / d.std(ddof=1))
    return tests


def _rank_biserial(d: np.ndarray) -> float:
    from scipy import stats

    d = d[d != 0]
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def correlate(a: np.ndarray, b: np.ndarray) -> dict:
    """Find Spearman's correlation of two quantities (n,): `rho`, `p`, `n`, and `note` where it is not defined."""
    from scipy import stats

    result = {"rho": None, "p": None, "n": len(a), "note": None}
    if len(a) < FEWEST_SAMPLES:
        return result | {"note": f"{len(a)} samples, {FEWEST_SAMPLES} are needed"}
    if min(np.ptp(a), np.ptp(b)) < _ROUNDING:
        return result | {"note": "one of the two does not vary"}
    found = stats.spearmanr(a, b)
    return result | {"rho": float(found.statistic), "p": float(found.pvalue)}


def finding(entropy: dict, error: dict | None) -> str:
    """Say in one word whether the stage makes attention sharper and the model better.

    `supported`: entropy lower with p < 0.05, and error lower. `partly`: error lower, entropy not significantly
    different. `contradicted`: entropy higher with p < 0.05, and error lower. Otherwise `inconclusive`. The p is
    the paired t-test's; of the error only the sign of the mean difference counts.

    Args:
        entropy: the comparison of entropy.
        error: the comparison of prediction error; None where it is not known.
    """
    if error is None or error["difference"] >= 0:
        return "inconclusive"
    p = entropy["ttest"]["p"]
    if p is None or p >= SIGNIFICANT:
        return "partly"
    return "supported" if entropy["difference"] < 0 else "contradicted"
