"""How good forecasts are, and what they have to beat.

The split of the literature: fit on 1700 to 1920, test one year ahead on 1921 to 1955 and on 1956 to 1979. Settings are
chosen inside 1700 to 1920: each block of 15 years from 1711 on is left out of a fit and then forecast, one year ahead, by
that fit, which has nearly as many years to learn from as the final one.
"""

from __future__ import annotations

import numpy as np

from flax_srnn.training.data import Series

__all__ = [
    "BLOCKS",
    "FIT_UNTIL",
    "TEST_PERIODS",
    "VARIANCE",
    "autoregression",
    "persistence",
    "relative_variance",
    "splice",
]

FIT_UNTIL = 1920
TEST_PERIODS = ((1921, 1955), (1956, 1979))
BLOCKS = tuple((first, first + 14) for first in range(1711, FIT_UNTIL, 15))
VARIANCE = 1495.6  # of the counts 1700 to 1979


def relative_variance(series: Series, forecasts: np.ndarray, first: int, last: int) -> np.ndarray:
    """Average relative variance: the mean squared error of the years first to last, divided by `VARIANCE`.

    Args:
      series: counts (T,).
      forecasts: (*batch, T), entry t for the year after the series' year t.
      first, last: the years to score, both included.

    Returns:
      (*batch,)

    Source: Weigend, Huberman & Rumelhart, "Predicting the future: a connectionist approach", 1990.
    """
    years = series.years[1:]
    scored = (first <= years) & (years <= last)
    errors = forecasts[..., :-1][..., scored] - series.counts[1:][scored]
    return np.mean(errors**2, axis=-1) / VARIANCE


def splice(series: Series, forecasts: np.ndarray) -> np.ndarray:
    """Puts together the forecasts of each of the `BLOCKS` by the fit that left it out.

    Args:
      series: years (T,).
      forecasts: (blocks, *batch, T), entry t for the year after the series' year t.

    Returns:
      (*batch, T), NaN outside the blocks.
    """
    result = np.full(forecasts.shape[1:], np.nan)
    for (first, last), forecast in zip(BLOCKS, forecasts, strict=True):
        years = (first <= series.years + 1) & (series.years + 1 <= last)
        result[..., years] = forecast[..., years]
    return result


def persistence(series: Series) -> np.ndarray:
    """Forecasts (T,): next year is as this year."""
    return series.counts


def autoregression(series: Series, fitted: np.ndarray, order: int = 9) -> np.ndarray:
    """Forecasts (T,) of a linear autoregression with intercept, fitted by least squares; NaN before it has `order` years.

    y_{t+1} = a_0 + a_1 y_t + ... + a_order y_{t+1-order}, with the smallest squared error in the years `fitted` (T,).
    """
    lags = np.lib.stride_tricks.sliding_window_view(series.counts, order)
    inputs = np.column_stack([np.ones(len(lags)), lags])
    learned = fitted[order:]
    coefficients, *_ = np.linalg.lstsq(inputs[:-1][learned], series.counts[order:][learned])
    return np.concatenate([np.full(order - 1, np.nan), inputs @ coefficients])
