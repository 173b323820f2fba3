"""The logistic mapping of scores to mos, with 4 or 5 parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from iqa.errors import UserError
from iqa.metrics.checks import checked_pair, undefined_reason
from iqa.metrics.correlation import _centred

# In units of the scores' deviation. At 0.01 the curve is a step, at 30 a straight line to 3 decimals; beyond
# either the sum of squares is flat and a fit would wander.
NARROWEST, WIDEST = 0.01, 30.0
OUTSIDE = 3.0  # how far the middle of the curve may lie beyond the scores, same unit
START_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
START_WIDTHS = (0.1, 0.3, 1.0, 3.0)
FAR_OFF = 0.1  # most scores spread by less than this: some others lie far off and have made the deviation
REFINED_STARTS = 3


@dataclass(frozen=True)
class LogisticFit:
    """A logistic curve from scores to mos.

    Attributes:
        parameters: 4 or 5, the form of the curve; see `fit_logistic`.
        coefficients: beta_1 .. beta_4 or beta_5 in the units of the scores and mos fitted; NaN if none.
        reason: why there is no fit, or None.
    """

    parameters: int
    coefficients: tuple[float, ...]
    reason: str | None = None

    def predict(self, scores: ArrayLike) -> np.ndarray:
        """Map scores of any shape to mos; NaN everywhere if there is no fit."""
        from scipy import special

        scores = np.asarray(scores, dtype=np.float64)
        if self.parameters == 4:
            top, bottom, middle, width = self.coefficients
            return bottom + (top - bottom) * special.expit((scores - middle) / abs(width))
        height, steepness, middle, slope, offset = self.coefficients
        return height * (special.expit(steepness * (scores - middle)) - 0.5) + slope * scores + offset


def fit_logistic(scores: ArrayLike, mos: ArrayLike, parameters: int = 4) -> LogisticFit:
    """Fit the logistic through which scores are customarily compared with mos, by least squares.

    4 parameters (VQEG 2000): b2 + (b1 - b2) / (1 + exp(-(s - b3) / |b4|)).
    5 parameters (Sheikh et al. 2006): b1 (1/2 - 1 / (1 + exp(b2 (s - b3)))) + b4 s + b5.

    Given the curve's middle b3 and width |b4| or 1/b2, the rest is a linear problem with one solution; so the
    search is over those two alone (variable projection, Golub and Pereyra 1973), refined from the best of 20
    starts, or of more where some scores lie far off. Nothing forces the curve to rise: scores that rank
    backwards get a falling one, whose PLCC is positive.

    Returns:
        The best fit; where none exists, NaN coefficients and the `reason`.

    Raises:
        UserError: `parameters` neither 4 nor 5, NaN or infinity in the input, or different lengths.

    >>> fit = fit_logistic([1, 2, 3, 4, 5, 6], [10, 12, 40, 60, 88, 90])
    >>> bool(abs(fit.predict(3.5) - 50) < 1)
    True
    """
    if parameters not in (4, 5):
        raise UserError(f"parameters: expected 4 or 5, got {parameters}")
    scores, mos = checked_pair(scores, mos)
    reason = undefined_reason(scores, mos) or _too_few_scores(scores, parameters)
    if reason is None:
        best = _search(_standardised(scores), _standardised(mos), parameters)
        if best is not None:
            return LogisticFit(parameters, _coefficients(scores, mos, parameters, *best))
        reason = f"the {parameters}-parameter logistic converged from none of {REFINED_STARTS} starts"
    return LogisticFit(parameters, (float("nan"),) * parameters, reason)


def _too_few_scores(scores: np.ndarray, parameters: int) -> str | None:
    distinct = np.unique(scores).size
    if distinct > parameters:
        return None
    return f"only {distinct} different scores: a {parameters}-parameter logistic needs more than {parameters}"


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = _centred(values)
    return centred / centred.std()


def _spread_of_most(scores: np.ndarray) -> float:
    """Spread of most of the standardised scores where others lie far off, else 1, their deviation.

    It is the interquartile range, in units of what a normal distribution's is in deviations.
    """
    low, high = np.quantile(scores, [0.25, 0.75])
    spread = float(high - low) / 1.349
    return spread if 0 < spread < FAR_OFF else 1.0


def _start_widths(spread: float) -> np.ndarray:
    """Logarithms of the widths to start from, two decades at a time down to the spread of most scores."""
    decades = 2 * np.arange(round(-np.log10(spread) / 2) + 1)
    return np.log(np.outer(10.0**-decades, START_WIDTHS).ravel())


def _design(scores: np.ndarray, parameters: int, middle: float, width: float) -> np.ndarray:
    """Columns whose weighted sum is the curve: (n, 2) for 4 parameters, (n, 3) for 5."""
    from scipy import special

    curve = special.expit((scores - middle) / width)
    columns = [curve, np.ones_like(scores)]
    if parameters == 5:
        columns = [curve - 0.5, scores, np.ones_like(scores)]
    return np.stack(columns, axis=1)


def _search(scores: np.ndarray, mos: np.ndarray, parameters: int) -> tuple[float, float] | None:
    """Best (middle, width) for standardised scores and mos, or None if no start converged."""
    from scipy import optimize

    columns = [np.ones_like(scores)] if parameters == 4 else [np.ones_like(scores), scores]
    linear = np.stack(columns) / np.sqrt(scores.size)  # orthonormal, the scores being standardised
    mos_rest = mos - (linear @ mos) @ linear

    def cost(point: Sequence[float]) -> float:
        return -_explained(scores, mos_rest, linear, point[0], np.exp(point[1])) / scores.size

    spread = _spread_of_most(scores)
    grid = itertools.product(np.quantile(scores, START_QUANTILES), _start_widths(spread))
    starts = sorted(grid, key=cost)[:REFINED_STARTS]
    bounds = [
        (scores.min() - OUTSIDE, scores.max() + OUTSIDE),
        (np.log(NARROWEST * spread), np.log(WIDEST)),
    ]
    # A simplex needs no slope, which a curve steeper than the gaps between scores does not have.
    search = {
        "method": "Nelder-Mead",
        "bounds": bounds,
        "options": {"xatol": 1e-2, "fatol": 1e-12, "maxfev": 2000},
    }
    fits = [optimize.minimize(cost, start, **search) for start in starts]
    converged = [fit for fit in fits if fit.success]
    if not converged:
        return None
    middle, log_width = min(converged, key=lambda fit: fit.fun).x
    return float(middle), float(np.exp(log_width))


def _explained(scores: np.ndarray, mos_rest: np.ndarray, linear: np.ndarray, middle: float, width: float) -> float:
    """Sum of squares of mos that the curve explains beyond the `linear` rows (Frisch and Waugh 1933).

    `linear` is taken out of the curve as it was out of `mos_rest`; what is left is one regressor.
    """
    from scipy import special

    curve = special.expit((scores - middle) / width)
    curve_rest = curve - (linear @ curve) @ linear
    square = curve_rest @ curve_rest
    # A curve far outside the scores is constant: what is left of it is rounding and explains nothing.
    return float((curve_rest @ mos_rest) ** 2 / square) if square > 1e-20 else 0.0


def _coefficients(
    scores: np.ndarray, mos: np.ndarray, parameters: int, middle: float, width: float
) -> tuple[float, ...]:
    """Published coefficients in the data's own units from the standardised middle and width."""
    # The linear part is solved standardised too: scores far from 0 look like a constant to the solver.
    design = _design(_standardised(scores), parameters, middle, width)
    weights = np.linalg.lstsq(design, _standardised(mos), rcond=None)[0] * mos.std()
    middle, width = scores.mean() + scores.std() * middle, scores.std() * width
    if parameters == 4:
        rise, bottom = weights
        bottom += mos.mean()
        return float(bottom + rise), float(bottom), float(middle), float(width)
    height, slope, offset = weights
    slope /= scores.std()
    offset += mos.mean() - slope * scores.mean()
    return float(height), float(1 / width), float(middle), float(slope), float(offset)
