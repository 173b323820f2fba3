"""What `iqa.metrics.significance` promises: published worked examples, closed forms, error rates, order-free ROCs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from helpers import long
from scipy import stats
from sklearn.metrics import roc_auc_score

from iqa import metrics
from iqa.errors import UserError
from iqa.metrics import significance


def two_runs(n: int, noise_a: float, noise_b: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Make (scores_a, scores_b, mos): two runs whose errors on the same images are independent."""
    generator = np.random.default_rng(seed)
    mos = generator.uniform(0, 100, n)
    return mos + generator.normal(0, noise_a, n), mos + generator.normal(0, noise_b, n), mos


# Worked examples ------------------------------------------------------------------------------------------


def test_williams_t_is_that_of_the_published_program():
    # Silver, Hittner and May (2006), DEPCOR, Applied Psychological Measurement 30, 152-153
    t, p = metrics.williams_test(0.3, 0.4, 0.5, 100)
    assert (round(t, 4), round(p, 4)) == (-1.0767, 0.2843)


def test_williams_t_is_hotellings_with_a_corrected_variance():
    # Hotelling (1940): t = (r_a - r_b) sqrt((n - 3)(1 + r_ab) / (2 |R|)); Williams adds a positive term, so
    # his t is smaller. May and Hittner (1997, Psychological Reports 80) print Hotelling's 2.01 for these.
    t, _ = metrics.williams_test(0.5, 0.2, 0.3, 50)
    determinant = np.linalg.det([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]])
    hotelling = 0.3 * np.sqrt(47 * 1.3 / (2 * determinant))
    assert round(hotelling, 2) == 2.01
    assert 0.95 * hotelling < t < hotelling


def test_steigers_z_is_that_of_the_published_program():
    # Silver, Hittner and May (2006), DEPCOR
    z, p = metrics.steiger_test(0.3, 0.4, 0.5, 100)
    assert (round(z, 4), round(p, 4)) == (-1.0718, 0.2838)


def test_steigers_z_is_that_of_his_own_example_up_to_its_rounding():
    # Steiger (1980), Psychological Bulletin 87, p. 249, case A: -.8913 from intermediates of 2-4 digits
    z, _ = metrics.steiger_test(0.4, 0.5, 0.1, 103)
    assert z == pytest.approx(-0.8913, abs=0.003)


# Two runs on the same images ------------------------------------------------------------------------------


def test_exchanging_the_runs_turns_every_sign_and_the_verdict():
    scores_a, scores_b, mos = two_runs(300, 10, 20)
    forth = metrics.compare_dependent(scores_a, scores_b, mos, resamples=500)
    back = metrics.compare_dependent(scores_b, scores_a, mos, resamples=500)
    assert (forth["better"], back["better"]) == ("a", "b")
    assert forth["difference"] == -back["difference"] == forth["srcc_a"] - forth["srcc_b"]
    assert forth["williams"]["t"] == pytest.approx(-back["williams"]["t"])
    assert forth["steiger"]["z"] == pytest.approx(-back["steiger"]["z"])
    low, high = forth["bootstrap"]["difference_ci95"]
    assert back["bootstrap"]["difference_ci95"] == pytest.approx([-high, -low])
    assert forth["bootstrap"]["p"] == back["bootstrap"]["p"]


def test_the_three_tests_agree_where_their_assumptions_hold():
    scores_a, scores_b, mos = two_runs(1000, 20, 22, seed=2)
    result = metrics.compare_dependent(scores_a, scores_b, mos, resamples=4000)
    p = [result["williams"]["p"], result["steiger"]["p"], result["bootstrap"]["p"]]
    assert min(p) > 0.001 and max(p) < 0.5
    assert max(p) / min(p) < 2


def test_the_bootstrap_compares_both_runs_on_the_same_resamples():
    scores_a, scores_b, mos = two_runs(40, 10, 20)
    generator = np.random.default_rng(7)
    differences = []
    for _ in range(100):
        drawn = generator.integers(40, size=40)
        srcc_a, srcc_b = (stats.spearmanr(s[drawn], mos[drawn]).statistic for s in (scores_a, scores_b))
        differences.append(srcc_a - srcc_b)
    result = metrics.compare_dependent(scores_a, scores_b, mos, resamples=100, seed=7)
    # Hesterberg (2015), the expanded percentile interval: Phi(-sqrt(40/39) t) of 39 degrees of freedom
    outside = stats.norm.cdf(-np.sqrt(40 / 39) * stats.t.ppf(0.975, 39))
    expected = np.quantile(differences, [outside, 1 - outside])
    assert result["bootstrap"]["difference_ci95"] == pytest.approx(list(expected), abs=1e-12)
    tail = min(np.sum(np.array(differences) <= 0), np.sum(np.array(differences) >= 0))
    t = np.sqrt(39 / 40) * stats.norm.ppf((tail + 1) / 101)
    assert result["bootstrap"]["p"] == pytest.approx(2 * stats.t.cdf(t, 39))


@pytest.mark.parametrize("k", [8, 20, 60])
def test_the_expanded_interval_of_a_mean_is_students_where_the_plain_percentile_interval_is_too_short(k):
    values = stats.norm.ppf((np.arange(k) + 0.5) / k)
    means = np.random.default_rng(0).choice(values, size=(100_000, k)).mean(axis=1)
    students = stats.t.interval(0.95, k - 1, values.mean(), stats.sem(values))[1]
    expanded, plain = (np.quantile(means, (1 + level) / 2) for level in (significance._expanded_level(0.95, k), 0.95))
    assert expanded == pytest.approx(students, rel=0.03)
    assert plain < 0.99 * students * np.sqrt((k - 1) / k)


def test_p_is_below_one_in_twenty_where_the_interval_leaves_out_zero():
    verdicts = []
    for seed in range(60):
        result = metrics.compare_dependent(*two_runs(30, 15, 19, seed), resamples=2000)
        p = result["bootstrap"]["p"]
        if not 0.045 < p < 0.055:  # there the added resample and the interpolated quantile may disagree
            verdicts.append(result["better"] != "neither")
            assert verdicts[-1] == (p < 0.05)
    assert 0 < sum(verdicts) < len(verdicts)


def equally_good_runs(contents: int, seed: int) -> tuple[np.ndarray, ...]:
    """Make (scores_a, scores_b, mos, contents): 30 images a content, on which each run errs as a whole too."""
    generator = np.random.default_rng([contents, seed])
    content = np.repeat(np.arange(contents), 30)
    mos, own, of_content = generator.normal(size=30 * contents), generator.normal(size=(2, 30 * contents)), 0.5
    scores = mos + own + of_content * generator.normal(size=(2, contents))[:, content]
    return *scores, mos, content


@pytest.mark.parametrize("contents", [significance.FEWEST_TO_DECIDE, long(8), long(10), long(20)])
def test_equally_good_runs_are_told_apart_at_most_one_time_in_twenty_however_few_the_contents(contents):
    verdicts = [
        metrics.compare_dependent(*equally_good_runs(contents, seed), resamples=400)["better"] for seed in range(200)
    ]
    assert np.mean([verdict != "neither" for verdict in verdicts]) <= 0.085  # 0.05 and two and a quarter deviations


def test_equally_good_runs_on_unrelated_images_are_told_apart_about_one_time_in_twenty():
    verdicts = [metrics.compare_dependent(*two_runs(100, 20, 20, seed), resamples=300)["better"] for seed in range(200)]
    assert 0.01 <= np.mean([verdict != "neither" for verdict in verdicts]) <= 0.1


@pytest.mark.parametrize("contents", [2, 4, significance.FEWEST_TO_DECIDE - 1])
def test_few_contents_decide_nothing_however_large_the_difference(contents):
    scores_a, scores_b, mos = two_runs(30 * contents, 1, 60)
    of_image = np.repeat(np.arange(contents), 30)
    result = metrics.compare_dependent(scores_a, scores_b, mos, of_image, resamples=50)
    note = f"{contents} contents are too few to decide, at least 6 are needed"
    assert result["better"] == "neither" and result["notes"] == [note]
    assert result["bootstrap"] == {"difference_ci95": [None, None], "p": None}
    said = metrics.in_words(result, "a", "b")
    assert said.startswith("a is ahead of b: SRCC ") and said.endswith(f", but {note}") and "significant" not in said


def test_six_contents_decide_a_large_difference():
    scores_a, scores_b, mos = two_runs(180, 1, 60)
    result = metrics.compare_dependent(scores_a, scores_b, mos, np.repeat(np.arange(6), 30), resamples=2000)
    assert result["better"] == "a" and result["bootstrap"]["p"] < 0.05 and result["notes"] == []


def test_contents_decide_where_images_alone_would_overstate():
    # Run b fails on one of 12 contents entirely; as 240 separate images that looks certain.
    generator = np.random.default_rng(0)
    mos, contents = generator.uniform(0, 100, 240), np.repeat(np.arange(12), 20)
    scores_a = mos + generator.normal(0, 10, 240)
    scores_b = np.where(contents == 0, 50, scores_a)
    assert metrics.compare_dependent(scores_a, scores_b, mos, resamples=1000)["better"] == "a"
    by_content = metrics.compare_dependent(scores_a, scores_b, mos, contents, resamples=1000)
    assert by_content["better"] == "neither"
    assert by_content["steiger"]["p"] < 0.05


def test_a_run_compared_with_itself_is_neither_better_and_says_why_there_is_no_test():
    scores, _, mos = two_runs(50, 10, 10)
    result = metrics.compare_dependent(scores, scores, mos, resamples=100)
    assert result["better"] == "neither"
    assert result["bootstrap"] == {"difference_ci95": [0.0, 0.0], "p": 1.0}
    assert result["williams"] == {"t": None, "p": None}
    assert any("perfect rank correlation" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("scores_a", "mos", "contents", "reason"),
    [
        ([5.0] * 12, list(range(12)), None, "run a: scores are all 5"),
        ([1.0, 2.0], [1.0, 2.0], None, "run a: n = 2"),
        ([], [], None, "run a: n = 0"),
        ([float(i * i % 7) for i in range(12)], list(range(12)), ["one"] * 12, "1 content is too few to decide"),
    ],
)
def test_an_undecidable_comparison_is_neither_with_the_reason_and_fit_for_json(scores_a, mos, contents, reason):
    result = metrics.compare_dependent(scores_a, list(mos), mos, contents, resamples=20)
    json.dumps(result, allow_nan=False)
    assert result["better"] == "neither"
    assert result["bootstrap"] == {"difference_ci95": [None, None], "p": None}
    assert any(reason in note for note in result["notes"])


def test_collinear_correlations_of_mean_zero_give_no_test_instead_of_a_division_by_zero():
    assert np.isnan(metrics.williams_test(0.5, -0.5, 0.5, 10)).all()


# Krasula --------------------------------------------------------------------------------------------------


def krasula_by_hand(scores, mos, mos_std, ratings) -> tuple[float, float, float]:
    """Both areas by scikit-learn and the correct classification, from every ordered pair of images."""
    different, absolute, better, signed = [], [], [], []
    for i, j in itertools.permutations(range(len(scores)), 2):
        error = np.sqrt(mos_std[i] ** 2 / ratings[i] + mos_std[j] ** 2 / ratings[j])
        different.append(abs(mos[i] - mos[j]) / error > 1.959964)
        absolute.append(abs(scores[i] - scores[j]))
        if different[-1]:
            better.append(mos[i] > mos[j])
            signed.append(scores[i] - scores[j])
    correct = np.mean([(gap > 0) == up and gap != 0 for gap, up in zip(signed, better, strict=True)])
    return roc_auc_score(different, absolute), roc_auc_score(better, signed), correct


@pytest.mark.parametrize("seed", range(4))
def test_krasulas_areas_are_scikit_learns_over_all_ordered_pairs(seed):
    generator = np.random.default_rng(seed)
    mos = generator.uniform(0, 100, 40)
    scores = np.round((mos + generator.normal(0, 20, 40)) / 10)  # ties
    mos_std, ratings = generator.uniform(5, 30, 40), generator.integers(5, 40, 40)
    result = metrics.krasula(scores, mos, mos_std, ratings)
    found = (result["auc_different_similar"], result["auc_better_worse"], result["correct_classification"])
    assert found == pytest.approx(krasula_by_hand(scores, mos, mos_std, ratings))
    assert result["n_pairs"] == result["n_different"] + result["n_similar"] == 40 * 39 / 2


def test_a_hand_worked_krasula_example():
    # Standard error 1 each: different means more than 1.96 sqrt(2) = 2.77 apart. Of the mos 0, 1, 10, 11 the
    # pairs (0, 1) and (10, 11) are similar with score gaps 3 and 1; the different pairs' gaps, better minus
    # worse, are 10-0, 9-0, 10-3, 9-3 as scores go 0, 3, 9, 10 for mos 0, 1, 11, 10.
    result = metrics.krasula([0, 3, 10, 9], [0, 1, 10, 11], [5, 5, 5, 5], ratings_per_image=25)
    assert (result["n_different"], result["n_similar"]) == (4, 2)
    assert result["auc_different_similar"] == result["auc_better_worse"] == 1
    assert result["correct_classification"] == 1
    assert result["notes"] == []


def test_scores_that_rank_backwards_keep_different_similar_and_mirror_better_worse():
    scores, _, mos = two_runs(60, 15, 15)
    forward = metrics.krasula(scores, mos, np.full(60, 20), 20)
    backward = metrics.krasula(-scores, mos, np.full(60, 20), 20)
    assert backward["auc_different_similar"] == forward["auc_different_similar"]
    assert backward["auc_better_worse"] == pytest.approx(1 - forward["auc_better_worse"])


def test_krasula_does_not_depend_on_the_order_of_images_or_the_unit_of_the_scores():
    scores, _, mos = two_runs(60, 15, 15)
    mos_std = np.random.default_rng(3).uniform(10, 30, 60)
    order = np.random.default_rng(4).permutation(60)
    straight = metrics.krasula(scores, mos, mos_std, 20)
    assert metrics.krasula(scores[order], mos[order], mos_std[order], 20) == straight
    assert metrics.krasula(0.5 * scores, mos, mos_std, 20) == straight


def test_constant_scores_see_no_difference_at_all():
    result = metrics.krasula(np.ones(30), np.linspace(0, 100, 30), np.full(30, 10), 20)
    assert result["auc_different_similar"] == result["auc_better_worse"] == 0.5
    assert result["correct_classification"] == 0


@pytest.mark.parametrize(("mos_std", "missing"), [(1e6, "different"), (0.0, "similar")])
def test_pairs_all_of_one_kind_leave_an_area_undefined_with_the_reason(mos_std, missing):
    result = metrics.krasula(range(10), range(10), np.full(10, mos_std), 20)
    json.dumps(result, allow_nan=False)
    assert result["auc_different_similar"] is None
    assert f"no {missing} pairs" in result["notes"]


def test_an_unknown_number_of_ratings_is_said_and_counts_the_deviation_as_standard_error():
    scores, _, mos = two_runs(30, 15, 15)
    unknown = metrics.krasula(scores, mos, np.full(30, 4.0))
    known = metrics.krasula(scores, mos, np.full(30, 20.0), 25)
    assert "ratings_per_image unknown" in unknown.pop("notes")[0]
    assert unknown == {name: value for name, value in known.items() if name != "notes"}


def test_the_area_under_the_roc_is_the_mann_whitney_statistic():
    positive, negative = np.random.default_rng(0).integers(0, 9, (2, 50)).astype(float)
    expected = stats.mannwhitneyu(positive, negative).statistic / 2500
    assert metrics.area_under_roc(positive, negative) == pytest.approx(expected)


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.compare_dependent([1, np.nan, 3], [1, 2, 3], [1, 2, 3]),
            r"scores_a\[1\] is nan",
        ),
        (
            lambda: metrics.compare_dependent([1, 2, 3], [1, 2], [1, 2, 3]),
            "scores_b has 2 rows, scores_a",
        ),
        (lambda: metrics.compare_dependent([1, 2], [1, 2], [1, 2], resamples=0), "at least 1, got 0"),
        (lambda: metrics.krasula([1, 2], [1, 2], [1, -2], 20), r"mos_std\[1\] is -2.0"),
        (lambda: metrics.krasula([1, 2], [1, 2], [1, 2], [20, 0]), r"ratings_per_image\[1\] is 0"),
        (lambda: metrics.krasula([1, 2], [1, 2], [1, 2], [20]), "ratings_per_image has 1 rows"),
        (lambda: metrics.krasula(*np.ones((3, 12_001))), "at most 12000, got 12001"),
    ],
)
def test_bad_input_is_refused_by_name_and_place(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_srcc_of_a_comparison_is_that_of_the_metrics():
    scores_a, scores_b, mos = two_runs(50, 10, 20)
    result = metrics.compare_dependent(scores_a, scores_b, mos, resamples=10)
    assert result["srcc_a"] == metrics.srcc(scores_a, mos)
    assert result["srcc_b"] == metrics.srcc(scores_b, mos)


# In words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise_a", "noise_b", "expected"),
    [
        (5, 40, "ours is significantly better than theirs: "),
        (40, 5, "theirs is significantly better than ours: "),
        (20, 20, "no significant difference: "),
    ],
)
def test_the_sentence_names_the_better_run_and_whether_the_bootstrap_is_sure(noise_a, noise_b, expected):
    compared = metrics.compare_dependent(*two_runs(200, noise_a, noise_b), resamples=500)
    assert expected in metrics.in_words(compared, "ours", "theirs")


def test_the_sentence_leads_with_the_run_that_is_ahead():
    scores_a, scores_b, mos = two_runs(40, 20, 21)
    compared = metrics.compare_dependent(scores_a, scores_b, mos, resamples=500)
    assert compared["better"] == "neither"
    first = "a" if compared["difference"] > 0 else "b"
    said = metrics.in_words(compared, "a", "b")
    higher, lower = sorted((compared["srcc_a"], compared["srcc_b"]), reverse=True)
    assert said.startswith(f"{first} is ahead of ")
    assert f"SRCC {higher:.4f} against {lower:.4f}, difference +" in said
    mirrored = metrics.compare_dependent(scores_b, scores_a, mos, resamples=500)
    assert metrics.in_words(mirrored, "b", "a") == said


def test_the_sentence_of_equal_runs_and_of_runs_that_cannot_be_compared():
    scores, _, mos = two_runs(30, 10, 10)
    same = metrics.compare_dependent(scores, scores, mos, resamples=50)
    assert metrics.in_words(same, "a", "b").startswith("a is as good as b, no significant difference: ")
    assert "Williams p undefined" in metrics.in_words(same, "a", "b")
    constant = metrics.compare_dependent(np.full(30, 5.0), scores, mos, resamples=50)
    said = metrics.in_words(constant, "a", "b")
    assert said == "a and b cannot be compared (run a: scores are all 5: no correlation with a constant)"


def several_splits(count: int, seed: int = 0) -> list[tuple]:
    """Test parts of 20 contents of 4 images each, of 30 contents in all; model a sees a little more than b."""
    rng = np.random.default_rng(seed)
    mos = rng.uniform(0, 100, (30, 4))
    a, b = (mos + rng.normal(0, noise, mos.shape) for noise in (20, 30))
    drawn = [rng.permutation(30)[:20] for _ in range(count)]
    return [(a[d].ravel(), b[d].ravel(), mos[d].ravel(), np.repeat(d, 4)) for d in drawn]


def test_one_split_is_compared_over_splits_as_alone():
    (split,) = several_splits(1)
    alone, over = metrics.compare_dependent(*split), metrics.compare_over_splits([split])
    assert over["bootstrap"] == alone["bootstrap"]
    assert [over[key] for key in ("srcc_a", "srcc_b", "difference", "better")] == pytest.approx(
        [alone[key] for key in ("srcc_a", "srcc_b", "difference", "better")]
    )


def test_a_split_that_is_counted_twice_makes_nothing_more_certain():
    (split,) = several_splits(1)
    once, twice = metrics.compare_over_splits([split]), metrics.compare_over_splits([split, split])
    assert twice["bootstrap"]["difference_ci95"] == pytest.approx(once["bootstrap"]["difference_ci95"])
    assert (once["ahead"], twice["ahead"]) == (1, 2)


def test_more_splits_of_the_same_contents_are_not_more_contents():
    over = metrics.compare_over_splits(several_splits(5))
    assert (over["splits"], over["contents"]) == (5, 30)
    assert over["better"] == "a"
    assert over["difference"] == pytest.approx(over["srcc_a"] - over["srcc_b"])
