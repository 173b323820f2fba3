"""What `iqa.metrics` promises: SciPy and closed forms met, resampling exact, reasons instead of crashes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from helpers import long
from hypothesis import given, strategies as st
from scipy import optimize, stats

from iqa import metrics
from iqa.errors import UserError
from iqa.metrics import bootstrap, summary as summary_module

# Whole numbers of a small range, so that ties are the rule.
TIED_PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=25)


def noisy_line(n: int, noise: float = 20.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make (scores, mos): mos uniform on 0..100 and scores with normal errors around it."""
    generator = np.random.default_rng(seed)
    mos = generator.uniform(0, 100, n)
    return mos + generator.normal(0, noise, n), mos


# Plain statistics -----------------------------------------------------------------------------------------


@given(TIED_PAIRS)
def test_srcc_plcc_and_krcc_equal_scipys_with_ties(pairs):
    scores, mos = np.array(pairs, dtype=float).T
    if np.ptp(scores) == 0 or np.ptp(mos) == 0:
        for correlation in (metrics.srcc, metrics.plcc, metrics.krcc):
            assert np.isnan(correlation(scores, mos))
        return
    assert metrics.srcc(scores, mos) == pytest.approx(stats.spearmanr(scores, mos).statistic, abs=1e-12)
    assert metrics.plcc(scores, mos) == pytest.approx(stats.pearsonr(scores, mos).statistic, abs=1e-12)
    assert metrics.krcc(scores, mos) == pytest.approx(stats.kendalltau(scores, mos).statistic, abs=1e-12)


def test_krcc_is_tau_b_counted_pair_by_pair():
    scores, mos = np.random.default_rng(1).integers(0, 6, (2, 40))
    signs = [
        (np.sign(scores[i] - scores[j]), np.sign(mos[i] - mos[j])) for i, j in itertools.combinations(range(40), 2)
    ]
    concordance = sum(s * m for s, m in signs)
    untied = np.sqrt(sum(s != 0 for s, _ in signs) * sum(m != 0 for _, m in signs))
    assert metrics.krcc(scores, mos) == pytest.approx(concordance / untied)


def test_srcc_without_ties_is_the_rank_difference_formula():
    scores, mos = noisy_line(50)
    squared = np.sum((stats.rankdata(scores) - stats.rankdata(mos)) ** 2)
    assert metrics.srcc(scores, mos) == pytest.approx(1 - 6 * squared / (50 * (50**2 - 1)))


@given(st.floats(1e-150, 1e150), st.floats(-1e3, 1e3))
def test_plcc_does_not_depend_on_the_unit_of_the_scores(unit, zero):
    scores, mos = noisy_line(20)
    assert metrics.plcc(unit * (scores + zero), mos) == pytest.approx(metrics.plcc(scores, mos), abs=1e-9)


def test_plcc_of_a_straight_line_never_leaves_the_range_by_rounding():
    for n in range(3, 60):
        line = np.linspace(0.1, 0.7, n)
        assert 1 - 1e-12 < metrics.plcc(line, 3 * line) <= 1
        assert -1 <= metrics.plcc(line, -3 * line) < -1 + 1e-12


@pytest.mark.parametrize("monotone", [np.exp, np.cbrt, np.arctan])
def test_srcc_and_krcc_do_not_change_under_a_rising_map_of_the_scores(monotone):
    scores, mos = noisy_line(60)
    scores = scores / 50
    assert metrics.srcc(monotone(scores), mos) == metrics.srcc(scores, mos)
    assert metrics.krcc(monotone(scores), mos) == metrics.krcc(scores, mos)


def test_a_constant_shift_is_all_of_rmse_and_mae():
    _, mos = noisy_line(30)
    assert metrics.rmse(mos - 7, mos) == pytest.approx(7)
    assert metrics.mae(mos - 7, mos) == pytest.approx(7)


def test_an_outlier_errs_by_more_than_two_deviations_and_not_by_exactly_two():
    assert metrics.outlier_ratio([70, 70.5, 29.5, 50], [50] * 4, [10] * 4) == 0.5


def test_normal_errors_of_one_deviation_give_the_normal_tail_as_outlier_ratio():
    scores, mos = noisy_line(20_000, noise=5.0)
    expected = 2 * stats.norm.sf(2)
    assert metrics.outlier_ratio(scores, mos, np.full(20_000, 5.0)) == pytest.approx(expected, abs=0.005)


# Logistic mapping -----------------------------------------------------------------------------------------


def test_the_published_coefficients_of_a_four_parameter_curve_are_found_again():
    scores = np.linspace(0, 10, 60)
    mos = 12 + (88 - 12) / (1 + np.exp(-(scores - 4.2) / 0.9))  # the formula of VQEG (2000), written out
    fit = metrics.fit_logistic(scores, mos, 4)
    assert fit.reason is None
    assert fit.coefficients == pytest.approx((88, 12, 4.2, 0.9), rel=1e-5)
    assert fit.predict(scores) == pytest.approx(mos, abs=1e-4)


def test_the_published_coefficients_of_a_five_parameter_curve_are_found_again():
    scores = np.linspace(-1, 1, 80)
    # the formula of Sheikh et al. (2006), written out
    mos = 30 * (0.5 - 1 / (1 + np.exp(6.0 * (scores - 0.2)))) + 15 * scores + 55
    fit = metrics.fit_logistic(scores, mos, 5)
    assert fit.coefficients == pytest.approx((30, 6.0, 0.2, 15, 55), rel=1e-4)
    assert fit.predict(scores) == pytest.approx(mos, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("parameters", [4, 5])
def test_no_local_search_from_the_customary_start_fits_better(parameters, seed):
    scores, mos = noisy_line(150, noise=8.0, seed=seed)
    mos = 100 / (1 + np.exp(-(mos - 40) / 6))
    curves = {
        4: lambda s, top, bottom, middle, width: bottom + (top - bottom) / (1 + np.exp(-(s - middle) / np.abs(width))),
        5: lambda s, b1, b2, b3, b4, b5: b1 * (0.5 - 1 / (1 + np.exp(b2 * (s - b3)))) + b4 * s + b5,
    }
    starts = {
        4: (mos.max(), mos.min(), scores.mean(), scores.std() / 4),
        5: (mos.max() - mos.min(), 4 / scores.std(), scores.mean(), 0.1, mos.mean()),
    }
    curve = curves[parameters]
    rival, _ = optimize.curve_fit(curve, scores, mos, p0=starts[parameters], maxfev=50_000)
    error = np.sum((metrics.fit_logistic(scores, mos, parameters).predict(scores) - mos) ** 2)
    assert error <= np.sum((curve(scores, *rival) - mos) ** 2) * (1 + 1e-6)


@given(st.integers(0, 10_000), st.sampled_from([4, 5]), st.integers(8, 40), st.sampled_from(["even", "skewed"]))
def test_even_noise_gets_a_fit_and_never_a_clearly_worse_one_than_the_straight_line(seed, parameters, n, shape):
    scores, mos = np.random.default_rng(seed).normal(50, 20, (2, n))
    if shape == "skewed":
        scores = np.exp(scores / 10)
    fitted = metrics.fit_logistic(scores, mos, parameters).predict(scores)
    line = np.polyval(np.polyfit(scores, mos, 1), scores)
    # 4 parameters hold the line only as a limit, 5 hold it exactly
    slack = 1e-2 if parameters == 4 else 1e-9
    assert np.sum((fitted - mos) ** 2) <= np.sum((line - mos) ** 2) * (1 + slack)


@pytest.mark.parametrize("far", [200, 1e4, 1e5, -5e4, 1e7])
@pytest.mark.parametrize("parameters", [4, 5])
def test_one_score_far_off_does_not_spoil_the_curve_of_the_others(parameters, far):
    generator = np.random.default_rng(1)
    scores = generator.uniform(0, 100, 300)
    mos = 100 / (1 + np.exp(-(scores - 50) / 8)) + generator.normal(0, 4, 300)
    of_the_others = metrics.fit_logistic(scores[1:], mos[1:], parameters).predict(scores[1:])
    scores[0], mos[0] = far, 100.0 * (far > 0)  # where the curve of the others leads to
    fitted = metrics.fit_logistic(scores, mos, parameters).predict(scores)
    least = np.sum((of_the_others - mos[1:]) ** 2)
    assert np.sum((fitted - mos)[1:] ** 2) <= least * (1.01 if parameters == 4 else 1.1)  # 5 slopes level to reach it


@pytest.mark.parametrize("parameters", [4, 5])
def test_the_fitted_curve_does_not_depend_on_the_unit_of_the_scores(parameters):
    scores, mos = noisy_line(100)
    fitted = metrics.fit_logistic(scores, mos, parameters).predict(scores)
    for shifted in (1e-4 * scores + 3, 1e3 * scores + 1e8):
        same = metrics.fit_logistic(shifted, mos, parameters).predict(shifted)
        assert same == pytest.approx(fitted, rel=1e-4)


def test_backward_scores_get_a_falling_curve_and_the_summary_warns_of_it():
    scores, mos = noisy_line(100)
    summary = metrics.summarize(-scores, mos, resamples=10)
    assert summary["srcc"] < 0 < summary["plcc_logistic4"]
    assert any("rank backwards" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("scores", "reason"),
    [([5.0] * 9, "scores are all 5"), ([1.0, 2, 1, 2, 1, 2, 1, 2, 1], "2 different scores")],
)
def test_a_fit_that_cannot_be_made_gives_nan_and_its_reason(scores, reason):
    fit = metrics.fit_logistic(scores, range(9), 4)
    assert reason in fit.reason
    assert np.isnan(fit.coefficients).all()
    assert np.isnan(fit.predict([1.0, 2.0])).all()


def test_a_fit_that_converges_from_no_start_says_so(monkeypatch):
    failed = optimize.OptimizeResult(success=False, fun=0.0, x=np.zeros(2))
    monkeypatch.setattr(optimize, "minimize", lambda *args, **kwargs: failed)
    fit = metrics.fit_logistic(*noisy_line(30), 5)
    assert "converged from none" in fit.reason
    assert len(fit.coefficients) == 5


# Bootstrap ------------------------------------------------------------------------------------------------


@given(TIED_PAIRS, st.integers(0, 1000))
def test_srcc_from_counts_equals_scipys_srcc_of_the_drawn_rows(pairs, seed):
    scores, mos = np.array(pairs, dtype=float).T
    counts = np.concatenate(list(metrics.resample_counts(np.arange(len(pairs)), 5, seed)), axis=1)
    from_counts = metrics.resampled_srcc(
        metrics.resampled_ranks(metrics.tie_groups(scores), counts),
        metrics.resampled_ranks(metrics.tie_groups(mos), counts),
        counts,
    )
    for value, column in zip(from_counts, counts.T, strict=True):
        drawn = np.repeat(np.arange(len(pairs)), column.astype(int))
        if np.ptp(scores[drawn]) == 0 or np.ptp(mos[drawn]) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(stats.spearmanr(scores[drawn], mos[drawn]).statistic, abs=1e-12)


RESAMPLED = {
    "srcc": lambda scores, mos: stats.spearmanr(scores, mos).statistic,
    "plcc": lambda scores, mos: stats.pearsonr(scores, mos).statistic,
    "krcc": lambda scores, mos: stats.kendalltau(scores, mos).statistic,
    "rmse": lambda scores, mos: np.sqrt(np.mean((scores - mos) ** 2)),
    "mae": lambda scores, mos: np.mean(np.abs(scores - mos)),
}


@pytest.mark.parametrize("of_a_content", [[4] * 10, [1, 2, 3, 4, 5, 5, 5, 5, 5, 5], [1] * 40], ids=str)
@pytest.mark.parametrize("statistic", RESAMPLED)
def test_the_interval_equals_one_computed_resample_by_resample(statistic, of_a_content):
    scores, mos = noisy_line(40)
    scores, contents = np.round(scores / 10), np.repeat(np.arange(len(of_a_content)), of_a_content)
    mixed = np.random.default_rng(1).permutation(40)  # a content's images need not be neighbours
    scores, mos, contents = scores[mixed], mos[mixed], metrics.content_index(contents[mixed], 40)
    generator = np.random.default_rng(3)
    slow, count = [], len(of_a_content)
    for _ in range(100):
        drawn = np.concatenate([np.flatnonzero(contents == k) for k in generator.integers(count, size=count)])
        slow.append(RESAMPLED[statistic](scores[drawn], mos[drawn]))
    fast = metrics.bootstrap_interval(scores, mos, statistic, contents, resamples=100, seed=3)
    assert fast == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-10)


@pytest.mark.parametrize("statistic", RESAMPLED)
def test_copies_of_images_under_one_content_add_no_certainty(statistic):
    scores, mos = noisy_line(50)
    once = metrics.bootstrap_interval(scores, mos, statistic)
    copies = [np.repeat(values, 5) for values in (scores, mos)]
    assert metrics.bootstrap_interval(*copies, statistic, np.repeat(np.arange(50), 5)) == pytest.approx(once)
    as_images = metrics.bootstrap_interval(*copies, statistic)
    assert as_images[1] - as_images[0] < 0.6 * (once[1] - once[0])


@pytest.mark.parametrize("statistic", ["srcc", "plcc", long("krcc")])
def test_the_95_percent_interval_holds_the_truth_about_95_times_in_100(statistic):
    rho = 0.8
    # Spearman's and Kendall's coefficients of a bivariate normal: 6/pi asin(rho/2) (Pearson 1907), 2/pi asin(rho)
    truth = {"plcc": rho, "srcc": 6 / np.pi * np.arcsin(rho / 2), "krcc": 2 / np.pi * np.arcsin(rho)}[statistic]
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        mos, noise = generator.normal(size=(2, 120))
        scores = rho * mos + np.sqrt(1 - rho**2) * noise
        low, high = metrics.bootstrap_interval(scores, mos, statistic, resamples=400, seed=trial)
        hits += low <= truth <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_the_interval_does_not_depend_on_how_many_resamples_are_held_at_once(monkeypatch):
    scores, mos = noisy_line(60)
    whole = metrics.bootstrap_interval(scores, mos, resamples=300)
    monkeypatch.setattr(bootstrap, "RESAMPLE_CELLS", 60 * 7)
    assert metrics.bootstrap_interval(scores, mos, resamples=300) == whole


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    scores, mos = noisy_line(60)
    first = metrics.bootstrap_interval(scores, mos, seed=4)
    assert first == metrics.bootstrap_interval(scores, mos, seed=4)
    assert first != metrics.bootstrap_interval(scores, mos, seed=5)


@pytest.mark.parametrize("statistic", ["srcc", "plcc", "krcc"])
def test_perfect_scores_have_an_interval_at_one_and_not_beyond(statistic):
    _, mos = noisy_line(50)
    low, high = metrics.bootstrap_interval(0.1 * mos, mos, statistic)
    assert 1 - 1e-12 < low <= high <= 1


def test_kendalls_interval_does_not_depend_on_how_many_pairs_are_held_at_once(monkeypatch):
    scores, mos = noisy_line(60)
    whole = metrics.bootstrap_interval(scores, mos, "krcc", resamples=50)
    monkeypatch.setattr(bootstrap, "PAIR_CELLS", 60 * 7)
    assert metrics.bootstrap_interval(scores, mos, "krcc", resamples=50) == whole


def test_more_images_than_can_be_looked_at_in_pairs_have_no_krcc_interval_and_the_summary_says_so(monkeypatch):
    for module in (bootstrap, summary_module):
        monkeypatch.setattr(module, "MOST_IMAGES_IN_PAIRS", 20)
    summary = metrics.summarize(*noisy_line(21), resamples=10)
    assert summary["krcc_ci95"] == [None, None] and summary["krcc"] is not None
    assert summary["notes"] == ["no interval of krcc: it looks at every pair, and 21 images are more than 20"]


def test_constant_scores_have_an_interval_of_error_and_none_of_correlation():
    _, mos = noisy_line(30)
    summary = metrics.summarize(np.full(30, 50.0), mos, resamples=50)
    assert summary["rmse_ci95"][0] < summary["rmse"] < summary["rmse_ci95"][1]
    for name in ("srcc", "plcc", "krcc", "plcc_logistic4", "plcc_logistic5"):
        assert summary[f"{name}_ci95"] == [None, None]


def test_a_wider_level_gives_a_wider_interval():
    scores, mos = noisy_line(60)
    low, high = metrics.bootstrap_interval(scores, mos, level=0.8)
    lower, higher = metrics.bootstrap_interval(scores, mos, level=0.99)
    assert lower < low < high < higher


# Summaries ------------------------------------------------------------------------------------------------


def test_a_summary_holds_what_the_plain_functions_say():
    scores, mos = noisy_line(80)
    contents, mos_std = [f"scene{i % 20}" for i in range(80)], np.full(80, 12.0)
    summary = metrics.summarize(scores, mos, contents=contents, mos_std=mos_std, scale=0.04, resamples=200)
    assert (summary["n"], summary["contents"]) == (80, 20)
    for name in ("srcc", "plcc", "krcc", "rmse", "mae"):
        assert summary[name] == getattr(metrics, name)(scores, mos)
    for parameters in (4, 5):
        mapped = metrics.fit_logistic(scores, mos, parameters).predict(scores)
        assert summary[f"plcc_logistic{parameters}"] == metrics.plcc(mapped, mos)
        interval = metrics.bootstrap_interval(mapped, mos, "plcc", contents, 200)
        assert summary[f"plcc_logistic{parameters}_ci95"] == list(interval)
    assert summary["outlier_ratio"] == metrics.outlier_ratio(scores, mos, mos_std)
    for statistic in RESAMPLED:
        interval = metrics.bootstrap_interval(scores, mos, statistic, contents, 200)
        assert summary[f"{statistic}_ci95"] == list(interval)
    assert summary["notes"] == []


def test_errors_on_the_databases_own_scale_are_those_of_its_own_numbers():
    scores, mos = noisy_line(80)
    summary = metrics.summarize(scores, mos, scale=0.04, resamples=10)
    own_scores, own_mos = 1 + 4 * scores / 100, 1 + 4 * mos / 100  # a 1..5 database
    assert summary["rmse_own_scale"] == pytest.approx(metrics.rmse(own_scores, own_mos))
    assert summary["mae_own_scale"] == pytest.approx(metrics.mae(own_scores, own_mos))


def test_a_summary_has_no_outlier_ratio_or_own_scale_unless_they_can_be_known():
    summary = metrics.summarize(*noisy_line(20), resamples=10)
    assert not {"outlier_ratio", "rmse_own_scale", "mae_own_scale"} & set(summary)


@pytest.mark.parametrize(
    ("scores", "mos", "reason"),
    [
        ([], [], "n = 0"),
        ([1, 2], [1, 2], "n = 2"),
        ([0.1] * 12, list(range(12)), "scores are all 0.1"),
        (list(range(12)), [50] * 12, "mos are all 50"),
    ],
)
def test_what_cannot_be_computed_is_none_in_a_summary_with_the_reason(scores, mos, reason):
    summary = metrics.summarize(scores, mos, resamples=10)
    json.dumps(summary, allow_nan=False)
    for name in ("srcc", "plcc", "krcc", "plcc_logistic4", "plcc_logistic5"):
        assert summary[name] is None
    assert summary["srcc_ci95"] == summary["plcc_ci95"] == [None, None]
    assert any(reason in note for note in summary["notes"])


def test_one_content_gives_no_interval_and_few_give_a_doubtful_one():
    scores, mos = noisy_line(30)
    one = metrics.summarize(scores, mos, contents=["a"] * 30, resamples=50)
    assert one["srcc"] is not None
    assert one["srcc_ci95"] == [None, None]
    assert one["notes"] == ["no interval: 1 content, and resampling needs at least 2"]
    few = metrics.summarize(scores, mos, contents=[i % 9 for i in range(30)], resamples=50)
    assert few["srcc_ci95"][0] < few["srcc"] < few["srcc_ci95"][1]
    assert few["notes"] == ["interval unreliable: only 9 contents"]


def test_each_group_is_summarised_from_its_own_rows_in_order_of_appearance():
    scores, mos = noisy_line(40)
    groups = ["jpeg" if i % 4 else "blur" for i in range(39)] + ["alone"]
    table = metrics.group_summaries(scores, mos, groups)
    assert list(table) == ["blur", "jpeg", "alone"]
    rows = [i for i in range(39) if i % 4 == 0]
    assert table["blur"]["srcc"] == metrics.srcc(scores[rows], mos[rows])
    assert sum(group["n"] for group in table.values()) == 40
    assert table["alone"]["srcc"] is None
    assert table["alone"]["rmse"] == pytest.approx(abs(scores[-1] - mos[-1]))
    assert table["alone"]["notes"] == ["n = 1: a correlation needs at least 3 images"]


def test_quality_levels_are_fifths_of_the_mos_distribution_and_equal_mos_share_one():
    mos = np.random.default_rng(0).permutation(100)
    levels = np.array(metrics.quality_levels(mos))
    for number, name in enumerate(metrics.QUALITY_LEVELS):
        assert sorted(mos[levels == name]) == list(range(20 * number, 20 * number + 20))
    assert metrics.quality_levels([7, 7, 7]) == ["Mid"] * 3
    assert metrics.quality_levels([]) == []


def test_splits_are_condensed_to_mean_median_sample_deviation_and_how_many_count():
    summaries = [{"n": 9, "srcc": value, "srcc_ci95": [0, 1], "notes": []} for value in (0.2, 0.4, 0.9, None)]
    table = metrics.across_splits(summaries)
    assert list(table) == ["srcc"]
    assert table["srcc"] == pytest.approx({"mean": 0.5, "median": 0.4, "std": np.sqrt(0.13), "n": 3})


def test_groups_are_condensed_across_the_splits_that_have_them():
    of_splits = [
        {"srcc": 0.5, "groups": {"generator": {"DALLE2": {"n": 9, "srcc": 0.5}}}, "stored_range": [0, 5]},
        {"srcc": 0.7, "groups": {"generator": {"DALLE2": {"n": 9, "srcc": 0.6}, "GLIDE": {"srcc": 0.1}}}},
    ]
    table = metrics.across_splits(of_splits)
    assert set(table) == {"srcc", "groups"}
    assert table["groups"]["generator"]["DALLE2"]["srcc"]["mean"] == pytest.approx(0.55)
    assert table["groups"]["generator"]["GLIDE"]["srcc"]["n"] == 1


def test_one_split_has_no_deviation_and_an_undefined_statistic_no_mean():
    table = metrics.across_splits([{"srcc": 0.5, "plcc": None}])
    assert table["srcc"] == {"mean": 0.5, "median": 0.5, "std": None, "n": 1}
    assert table["plcc"] == {"mean": None, "median": None, "std": None, "n": 0}


# Bad input ------------------------------------------------------------------------------------------------

PAIRED = [metrics.srcc, metrics.plcc, metrics.krcc, metrics.rmse, metrics.mae, metrics.fit_logistic]
PAIRED += [metrics.bootstrap_interval, metrics.summarize]


@pytest.mark.parametrize("function", PAIRED)
@pytest.mark.parametrize(
    ("scores", "mos", "message"),
    [
        ([1, 2, np.nan, 4], [1, 2, 3, 4], r"scores\[2\] is nan"),
        ([1, 2, 3, 4], [1, np.inf, 3, np.inf], r"mos\[1\] is inf \(bad rows: 2 of 4\)"),
        ([1, 2, 3], [1, 2, 3, 4], "mos has 4 rows, scores has 3"),
        ([[1, 2], [3, 4]], [1, 2], r"one dimension \(n,\), got shape \(2, 2\)"),
        (["good", "bad"], [1, 2], "scores: expected numbers"),
    ],
)
def test_bad_rows_are_refused_by_name_and_place(function, scores, mos, message):
    with pytest.raises(UserError, match=message):
        function(scores, mos)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, m: metrics.fit_logistic(s, m, 3), "expected 4 or 5, got 3"),
        (lambda s, m: metrics.bootstrap_interval(s, m, "mse"), "one of srcc, plcc, krcc, rmse, mae, got 'mse'"),
        (lambda s, m: metrics.bootstrap_interval(s, m, resamples=0), "at least 1, got 0"),
        (lambda s, m: metrics.bootstrap_interval(s, m, level=95), "between 0 and 1, got 95"),
        (lambda s, m: metrics.bootstrap_interval(s, m, contents=["a"]), "contents has 1 rows, scores has 5"),
        (
            lambda s, m: metrics.summarize(s, m, contents=["a", None, "b", "b", "c"]),
            r"contents\[1\] is missing",
        ),
        (lambda s, m: metrics.group_summaries(s, m, [1, 1, np.nan, 2, 2]), r"groups\[2\] is missing"),
        (lambda s, m: metrics.outlier_ratio(s, m, [1, 1, 1, -1, 1]), r"mos_std\[3\] is -1.0"),
        (lambda s, m: metrics.outlier_ratio(s, m, [1]), "mos_std has 1 rows"),
        (lambda s, m: metrics.summarize(s, m, scale=0), "expected a positive width"),
        (lambda s, m: metrics.across_splits([]), "no summaries"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(call, message):
    with pytest.raises(UserError, match=message):
        call([1, 2, 3, 4, 6], [1, 3, 2, 5, 4])
