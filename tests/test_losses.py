"""Losses: right gradients, closed forms by hand, and the properties their names promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from iqa.choices import LOSSES
from iqa.losses import (
    DEFAULT_MOS_STD,
    fidelity_loss,
    l1_loss,
    l2_loss,
    make_loss,
    plcc_loss,
    ranking_loss,
)

PAIRWISE = {"rank": partial(ranking_loss, margin=10.0), "plcc": plcc_loss, "fidelity": fidelity_loss}
scores_and_mos = st.integers(2, 8).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(0, 100, width=32), min_size=n, max_size=n)] * 2)
)


def tensors(pair: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    scores, mos = pair
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(mos, dtype=torch.float64)


def phi(z: float) -> float:
    """The normal distribution function."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


# Gradients.


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_gradients_agree_with_finite_differences(loss_type: str, alpha: float) -> None:
    mos = torch.tensor([12.0, 35.0, 50.0, 50.0, 88.0], dtype=torch.float64)
    mos_std = torch.tensor([5.0, 12.0, math.nan, 20.0, 9.0], dtype=torch.float64)
    scores = torch.tensor([31.0, 22.0, 47.5, 61.0, 70.0], dtype=torch.float64, requires_grad=True)
    loss = make_loss(loss_type, alpha, margin=0.1)
    assert torch.autograd.gradcheck(lambda q: loss(q, mos, mos_std), scores)


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
@pytest.mark.parametrize("n", [1, 3, 7, 32])
def test_equal_scores_of_equal_mos_give_0_with_a_zero_gradient(loss: Callable, n: int) -> None:
    scores = torch.full((n,), 30.1, requires_grad=True)
    value = loss(scores, torch.full((n,), 99.7))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores.grad, torch.zeros(n))


@pytest.mark.parametrize("loss_type", ["plcc", "rank"])
def test_different_scores_of_equal_mos_give_0_with_a_zero_gradient(loss_type: str) -> None:
    scores = (100 * torch.rand(7)).requires_grad_()
    value = PAIRWISE[loss_type](scores, torch.full((7,), 30.1))  # the float32 mean of seven 30.1 is not 30.1
    value.backward()
    assert value.item() == 0
    assert not scores.grad.any()


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
def test_equal_scores_of_different_images_have_a_finite_gradient(loss: Callable) -> None:
    scores = torch.full((7,), 30.1, requires_grad=True)
    value = loss(scores, 100 * torch.rand(7))
    value.backward()
    assert 0 <= value <= 10
    assert scores.grad.norm() < 10


def test_fidelity_has_a_finite_gradient_where_a_probability_is_0_or_1() -> None:
    scores = torch.tensor([0.0, 1e4], requires_grad=True)
    fidelity_loss(scores, torch.tensor([100.0, 0.0]), torch.tensor([0.1, 0.1])).backward()
    assert scores.grad.isfinite().all()


# Closed forms.


def test_l1_and_l2_are_means_over_the_batch() -> None:
    scores, mos = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([13.0, 20.0, 24.0])
    assert l1_loss(scores, mos).item() == pytest.approx(9 / 3)
    assert l2_loss(scores, mos).item() == pytest.approx(45 / 3)


@given(scores_and_mos)
def test_plcc_loss_is_1_minus_numpys_correlation(pair: tuple[list[float], list[float]]) -> None:
    scores, mos = tensors(pair)
    if min(scores.std(), mos.std()) > 1e-3:
        assert plcc_loss(scores, mos).item() == pytest.approx(1 - np.corrcoef(scores, mos)[0, 1], abs=1e-9)


def test_ranking_loss_is_the_mean_hinge_over_the_ordered_pairs() -> None:
    # Pairs (0,1): mos falls, scores differ by 4 the right way: 10 - 4. (0,2): wrong by 8: 10 + 8. (1,2): wrong by 12.
    value = ranking_loss(torch.tensor([24.0, 20.0, 32.0]), torch.tensor([60.0, 50.0, 40.0]), margin=10.0)
    assert value.item() == pytest.approx((6 + 18 + 22) / 3)


def test_pairs_of_equal_mos_do_not_count_in_the_ranking_loss() -> None:
    value = ranking_loss(torch.tensor([0.0, 50.0, 7.0]), torch.tensor([40.0, 40.0, 60.0]), margin=10.0)
    assert value.item() == pytest.approx((3 + 53) / 2)


def test_fidelity_of_one_pair_follows_thurstones_model() -> None:
    mos, mos_std = torch.tensor([60.0, 40.0]), torch.tensor([6.0, 8.0])
    p, predicted = phi(20 / 10), phi(-5 / (DEFAULT_MOS_STD * math.sqrt(2)))
    expected = 1 - math.sqrt(p * predicted) - math.sqrt((1 - p) * (1 - predicted))
    assert fidelity_loss(torch.tensor([50.0, 55.0]), mos, mos_std).item() == pytest.approx(expected, abs=1e-6)


# Properties.


@given(scores_and_mos, st.floats(0.01, 100), st.floats(-50, 50))
def test_plcc_loss_is_between_0_and_2_and_blind_to_scale_and_offset(
    pair: tuple[list[float], list[float]], scale: float, offset: float
) -> None:
    scores, mos = tensors(pair)
    value = plcc_loss(scores, mos)
    assert -1e-9 <= value <= 2 + 1e-9
    if scores.std() > 1e-3:
        torch.testing.assert_close(plcc_loss(scale * scores + offset, mos), value, rtol=1e-5, atol=1e-5)


def test_plcc_loss_of_opposite_order_is_2() -> None:
    mos = torch.tensor([10.0, 20.0, 60.0])
    assert plcc_loss(-mos, mos).item() == pytest.approx(2)


@given(st.lists(st.integers(0, 10), min_size=2, max_size=8, unique=True))
def test_ranking_loss_is_0_exactly_when_every_pair_is_in_order_by_the_margin(ranks: list[int]) -> None:
    mos = torch.tensor(ranks, dtype=torch.float64)
    assert ranking_loss(10 * mos, mos, margin=10.0) == 0
    assert ranking_loss(9.9 * mos, mos, margin=10.0 * (max(ranks) - min(ranks))) > 0


@given(scores_and_mos, st.floats(0.1, 10))
def test_ranking_loss_scales_with_scores_and_margin(pair: tuple[list[float], list[float]], scale: float) -> None:
    scores, mos = tensors(pair)
    torch.testing.assert_close(
        ranking_loss(scale * scores, mos, scale * 10), scale * ranking_loss(scores, mos, 10), rtol=1e-9, atol=1e-9
    )


@given(scores_and_mos)
def test_fidelity_is_symmetric_and_between_0_and_1(pair: tuple[list[float], list[float]]) -> None:
    scores, mos = tensors(pair)
    value = fidelity_loss(scores, mos)
    assert -1e-9 <= value <= 1
    torch.testing.assert_close(fidelity_loss(mos, scores), value)
    torch.testing.assert_close(fidelity_loss(scores.flip(0), mos.flip(0)), value)


@given(scores_and_mos, st.floats(-50, 50))
def test_fidelity_is_0_where_the_probabilities_agree(pair: tuple[list[float], list[float]], offset: float) -> None:
    scores, _ = tensors(pair)
    assert fidelity_loss(scores + offset, scores).item() == pytest.approx(0, abs=1e-7)


def test_unknown_rating_deviations_are_the_default_one() -> None:
    scores, mos = torch.tensor([50.0, 45.0, 80.0]), torch.tensor([60.0, 40.0, 20.0])
    nan, known = torch.full((3,), math.nan), torch.full((3,), DEFAULT_MOS_STD)
    assert torch.equal(fidelity_loss(scores, mos, nan), fidelity_loss(scores, mos, known))
    assert torch.equal(fidelity_loss(scores, mos), fidelity_loss(scores, mos, known))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_order_of_the_batch_does_not_matter(loss_type: str) -> None:
    scores, mos, mos_std = torch.rand(6) * 100, torch.rand(6) * 100, torch.rand(6) * 20
    order = torch.randperm(6)
    loss = make_loss(loss_type, alpha=0.5, margin=0.1)
    torch.testing.assert_close(loss(scores[order], mos[order], mos_std[order]), loss(scores, mos, mos_std))


# The training loss.


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_total_is_primary_plus_alpha_times_ranking_with_a_margin_of_10_mos_units(loss_type: str) -> None:
    scores, mos = torch.tensor([20.0, 40.0, 33.0]), torch.tensor([30.0, 35.0, 80.0])
    primary = make_loss(loss_type, alpha=0.0, margin=0.1)(scores, mos, None)
    total = make_loss(loss_type, alpha=0.5, margin=0.1)(scores, mos, None)
    torch.testing.assert_close(total, primary + 0.5 * ranking_loss(scores, mos, margin=10.0))
