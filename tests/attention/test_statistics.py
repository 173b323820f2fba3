"""What the attention statistics and the paired comparison are, on rows whose answers are known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from iqa.attention import (
    STATISTICS,
    check_attention,
    compare_paired,
    correlate,
    finding,
    row_statistics,
    sample_statistics as sample,
)
from iqa.errors import UserError

logits = arrays(np.float64, st.integers(2, 12), elements=st.floats(-8, 8))


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_like(shape: tuple[int, ...], sharpness: float = 1.0, seed: int = 0) -> np.ndarray:
    return softmax(sharpness * np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
    "row, entropy, max_weight, over, gini",
    [
        # By hand: -(.8 ln .8 + .1 ln .1 + 2 * .05 ln .05); gini = (-3 * .05 - 1 * .05 + 1 * .1 + 3 * .8) / 4.
        ([0.8, 0.1, 0.05, 0.05], 0.708, 0.8, 1, 0.575),
        ([0.25, 0.25, 0.25, 0.25], 1.386, 0.25, 4, 0.0),
        ([1.0, 0.0, 0.0, 0.0], 0.0, 1.0, 1, 0.75),
        ([0.5, 0.5], 0.693, 0.5, 2, 0.0),
        ([1.0], 0.0, 1.0, 1, 0.0),
    ],
)
def test_statistics_of_rows_worked_out_by_hand(row, entropy, max_weight, over, gini):
    found = row_statistics(row)
    assert found["entropy"] == pytest.approx(entropy, abs=5e-4)
    assert found["max_weight"] == max_weight
    assert found["tokens_over_threshold"] == over
    assert found["gini"] == pytest.approx(gini, abs=1e-12)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_weight_of_exactly_the_threshold_is_not_over_it_in_any_precision(kind):
    assert row_statistics(np.array([0.8, 0.1, 0.05, 0.05], dtype=kind))["tokens_over_threshold"] == 1


@given(st.integers(1, 50))
def test_uniform_rows_have_entropy_log_n_and_gini_zero_and_one_hot_rows_the_other_ends(n):
    uniform, one_hot = row_statistics(np.full(n, 1 / n)), row_statistics(np.eye(n)[0])
    assert uniform["entropy"] == pytest.approx(math.log(n), abs=1e-12)
    assert uniform["gini"] == pytest.approx(0, abs=1e-12)
    assert one_hot["entropy"] == 0
    assert one_hot["gini"] == pytest.approx(1 - 1 / n)


@given(logits)
def test_statistics_stay_in_their_ranges_and_ignore_the_order_of_tokens(x):
    row, n = softmax(x), len(x)
    found = row_statistics(row)
    assert -1e-12 <= found["entropy"] <= math.log(n) + 1e-12
    assert 1 / n - 1e-12 <= found["max_weight"] <= 1
    assert -1e-12 <= found["gini"] <= 1 - 1 / n + 1e-12
    again = row_statistics(row[::-1])
    assert all(again[name] == pytest.approx(found[name], abs=1e-12) for name in STATISTICS)


@given(logits)
def test_gini_is_half_the_relative_mean_difference(x):
    p = softmax(x)
    by_definition = np.abs(p[:, None] - p[None]).mean() / (2 * p.mean())
    assert row_statistics(p)["gini"] == pytest.approx(by_definition, abs=1e-10)


@given(logits, st.lists(st.floats(0, 5), min_size=1, max_size=5))
def test_tokens_that_do_not_count_change_nothing_whatever_weight_they_hold(x, padding):
    row = softmax(x)
    padded = np.concatenate([row, padding])
    counts = np.arange(len(padded)) < len(row)
    found, expected = row_statistics(padded / padded.sum(), counts), row_statistics(row)
    assert all(found[name] == pytest.approx(expected[name], abs=1e-9) for name in STATISTICS)


def test_a_sample_is_the_mean_over_its_queries_and_both_shapes_of_mask_agree():
    attention = np.array([[[0.8, 0.1, 0.05, 0.05], [0.25] * 4]])
    assert sample(attention)["entropy"] == pytest.approx((0.70823 + math.log(4)) / 2, abs=1e-4)
    mask = np.array([[True, True, True, False]])
    by_token, by_query = sample(attention, mask), sample(attention, np.repeat(mask[:, None], 2, axis=1))
    assert by_token["entropy"] == by_query["entropy"]
    assert by_token["entropy"][0] == pytest.approx((stats.entropy([0.8, 0.1, 0.05]) + math.log(3)) / 2)


UNIFORM = np.full((3, 2, 4), 0.25)


def changed(index: tuple, value: float) -> np.ndarray:
    attention = UNIFORM.copy()
    attention[index] = value
    return attention


def mask_without(*index: int) -> np.ndarray:
    mask = np.ones((3, 2, 4))
    mask[index] = 0
    return mask


@pytest.mark.parametrize(
    "attention, mask, says",
    [
        (changed((1, 0, 2), 0.35), None, "sample 1, query 0 sums to 1.1, not 1"),
        (changed((2, 1), 0.0), None, "sample 2, query 1 sums to 0, not 1"),
        (changed((0, 1, 0), np.nan), None, "sample 0, query 1 holds NaN"),
        (changed((0, 1, 0), np.inf), None, "holds NaN or infinity"),
        (changed((0, 0), [1.5, -0.5, 0, 0]), None, "negative"),
        (UNIFORM[0], None, "(samples, queries, tokens)"),
        (UNIFORM[:0], None, "(samples, queries, tokens)"),
        (UNIFORM.astype(str), None, "numbers"),
        (UNIFORM, np.ones((3, 2)), "mask has shape (3, 2)"),
        (UNIFORM, np.ones((2, 4)), "mask has shape (2, 4)"),
        (UNIFORM, np.full((3, 4), 0.5), "true and false"),
        (UNIFORM, mask_without(1)[:, 0], "sample 1, query 0 has no token that counts"),
        (UNIFORM, mask_without(2, 1), "sample 2, query 1 has no token that counts"),
        (changed((0, 0), [1, 0, 0, 0]), mask_without(0, 0, 0), "on the tokens that its mask leaves"),
    ],
)
def test_bad_attention_is_refused_with_its_place(attention, mask, says):
    with pytest.raises(UserError) as error:
        check_attention(attention, mask, "a.npz")
    assert says in str(error.value) and str(error.value).startswith("a.npz: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_rounding_of_stored_softmax_is_no_mistake(kind):
    attention, _ = check_attention(attention_like((20, 3, 200)).astype(kind), None, "a.npz")
    assert attention.dtype == np.float64


def test_the_paired_comparison_is_that_of_textbook_formulas():
    rng = np.random.default_rng(3)
    no_middle = rng.normal(2, 0.3, 40)
    full = no_middle - rng.normal(0.1, 0.2, 40)
    d, found = full - no_middle, compare_paired(full, no_middle)
    t = d.mean() / (d.std(ddof=1) / math.sqrt(40))
    assert found["ttest"]["t"] == pytest.approx(t)
    assert found["ttest"]["p"] == pytest.approx(2 * stats.t.sf(abs(t), 39))
    assert found["cohens_dz"] == pytest.approx(t / math.sqrt(40))
    assert found["wilcoxon"]["p"] == pytest.approx(stats.wilcoxon(full, no_middle).pvalue)
    assert found["difference_percent"] == pytest.approx(100 * d.mean() / no_middle.mean())
    half = stats.t.ppf(0.975, 39) * d.std(ddof=1) / math.sqrt(40)
    assert found["difference_ci95"] == pytest.approx([d.mean() - half, d.mean() + half])


def test_the_rank_biserial_is_the_balance_of_signed_ranks():
    # Differences 1, -2, 3, 4: ranks 1..4, W+ = 8, W- = 2.
    assert compare_paired(np.array([1.0, -2, 3, 4]), np.zeros(4))["rank_biserial"] == pytest.approx(0.6)


def test_exchanging_the_models_changes_the_sign_of_everything_but_p():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(size=30)
    one, other = compare_paired(a, b), compare_paired(b, a)
    for key in ("difference", "cohens_dz", "rank_biserial"):
        assert one[key] == pytest.approx(-other[key])
    assert one["ttest"]["p"] == pytest.approx(other["ttest"]["p"])


def test_a_difference_that_never_varies_is_certain_and_says_why_it_has_no_effect_size():
    found = compare_paired(np.full(50, 0.7), np.full(50, 1.4))
    assert found["ttest"] == {"t": None, "p": 0.0} and found["cohens_dz"] is None
    assert found["rank_biserial"] == -1 and found["wilcoxon"]["p"] < 1e-6
    assert "infinite" in found["note"]


@pytest.mark.parametrize("a, b", [(np.ones(5), np.ones(5)), (np.ones(2), np.zeros(2))])
def test_what_cannot_be_tested_is_none_with_a_note(a, b):
    found = compare_paired(a, b)
    assert found["ttest"]["p"] is None and found["wilcoxon"]["p"] is None and "not tested" in found["note"]


def test_there_is_no_percentage_of_nothing_not_even_of_rounding():
    uniform = row_statistics(np.full((9, 3), 1 / 3))["gini"]
    assert compare_paired(uniform + 0.5, uniform)["difference_percent"] is None
    assert compare_paired(np.full(9, 3.0), np.full(9, 2.0))["difference_percent"] == pytest.approx(50)


def test_correlation_is_spearmans_and_undefined_for_a_constant():
    a = np.array([1.0, 2, 3, 4, 5])
    assert correlate(a, a**3)["rho"] == pytest.approx(1) and correlate(a, a**3)["n"] == 5
    assert correlate(a, np.ones(5))["rho"] is None and correlate(a, np.ones(5))["note"]


LOWER, HIGHER = np.linspace(-1.2, -0.8, 20), np.linspace(0.8, 1.2, 20)
EITHER = np.linspace(-1, 1, 20)


@pytest.mark.parametrize(
    "entropy, error, expected",
    [
        (LOWER, LOWER, "supported"),
        (EITHER, LOWER, "partly"),
        (HIGHER, LOWER, "contradicted"),
        (LOWER, HIGHER, "inconclusive"),
        (EITHER, HIGHER, "inconclusive"),
        (HIGHER, HIGHER, "inconclusive"),
        (LOWER, np.zeros(20), "inconclusive"),
        (np.zeros(20), LOWER, "partly"),
        (np.full(20, -1.0), LOWER, "supported"),
        (LOWER, None, "inconclusive"),
    ],
)
def test_the_finding_follows_its_definition(entropy, error, expected):
    base = np.full(20, 5.0)
    compared = None if error is None else compare_paired(base + error, base)
    assert finding(compare_paired(base + entropy, base), compared) == expected
