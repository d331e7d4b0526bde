"""What a forecaster has to beat: persistence, the same season before, and a linear autoregression.

Each takes values (T,) and gives forecasts (T, H): entry (t, h - 1) is the forecast of value t + h, made from values up to t;
NaN where there are too few of them. What they choose, they choose by the values that they are fitted to.
"""

from __future__ import annotations

import numpy as np

__all__ = ["autoregression", "fit_autoregression", "later", "persistence", "season", "seasonal"]

_LONGEST_SEASON, _HIGHEST_ORDER = 400, 40


def later(values: np.ndarray, horizon: int) -> np.ndarray:
    """(T, H): what is forecast, entry (t, h - 1) is value t + h; NaN behind the end.

    >>> later(np.array([1.0, 2.0, 3.0]), 2).tolist()
    [[2.0, 3.0], [3.0, nan], [nan, nan]]
    """
    ended = np.concatenate([values, np.full(horizon, np.nan)])
    return np.stack([ended[h : h + len(values)] for h in range(1, horizon + 1)], -1)


def persistence(values: np.ndarray, horizon: int) -> np.ndarray:
    """It stays as it is."""
    return np.repeat(values[:, None], horizon, axis=1)


def season(values: np.ndarray) -> int:
    """The number of steps after which values come nearest to what they were."""
    longest = min(len(values) // 3, _LONGEST_SEASON)
    errors = [np.mean((values[s:] - values[:-s]) ** 2) for s in range(2, longest + 1)]
    return 2 + int(np.argmin(errors)) if errors else 1


def seasonal(values: np.ndarray, horizon: int, length: int) -> np.ndarray:
    """As it was one season before; for a horizon of more than one season, as many as are needed."""
    columns = []
    for h in range(1, horizon + 1):
        back = -h % length
        columns.append(np.concatenate([np.full(back, np.nan), values[: len(values) - back]]))
    return np.stack(columns, -1)


def fit_autoregression(values: np.ndarray, horizon: int, order: int | None = None) -> np.ndarray:
    """(H, 1 + order): for each h the a of value_{t+h} = a_0 + a_1 value_t + ... + a_order value_{t+1-order}, by least squares.

    The order is the one with the smallest criterion of Akaike (1974) for h = 1, over the same targets for all orders.

    >>> fit_autoregression(np.arange(20.0), 2, order=1).round(6).tolist()
    [[1.0, 1.0], [2.0, 1.0]]
    """
    order = _order(values, horizon) if order is None else order
    inputs, targets = _lags(values, order), later(values, horizon)[order - 1 :]
    known = ~np.isnan(targets)
    return np.stack([np.linalg.lstsq(inputs[k], t[k])[0] for k, t in zip(known.T, targets.T, strict=True)])


def autoregression(values: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The forecasts of `fit_autoregression`."""
    horizon, width = coefficients.shape
    order = width - 1
    if len(values) < order:
        return np.full((len(values), horizon), np.nan)
    return np.concatenate([np.full((order - 1, horizon), np.nan), _lags(values, order) @ coefficients.T])


def _order(values: np.ndarray, horizon: int) -> int:
    """From the normal equations of the highest order, of which those of lower ones are parts."""
    highest = max(1, min(_HIGHEST_ORDER, (len(values) - horizon) // 4))
    centred = values - values.mean()
    inputs, targets = _lags(centred, highest)[:-1], centred[highest:]
    products, with_targets, squares = inputs.T @ inputs, inputs.T @ targets, targets @ targets

    def criterion(order: int) -> float:
        part = slice(0, order + 1)
        explained = with_targets[part] @ np.linalg.lstsq(products[part, part], with_targets[part])[0]
        residual = max((squares - explained) / len(targets), 1e-14 * squares / len(targets) + 1e-300)
        return len(targets) * float(np.log(residual)) + 2 * order

    return min(range(1, highest + 1), key=criterion)


def _lags(values: np.ndarray, order: int) -> np.ndarray:
    """(T - order + 1, 1 + order): 1, the value, the one before it, ..."""
    windows = np.lib.stride_tricks.sliding_window_view(values, order)[:, ::-1]
    return np.column_stack([np.ones(len(windows)), windows])
