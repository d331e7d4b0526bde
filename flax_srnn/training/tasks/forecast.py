"""Forecasts of a series: an ensemble of small recurrent networks, each fitted from its own initial weights.

With g_t the series, perhaps its square root or logarithm, x_t = g_t, or its change g_t - g_{t-1}, z_t = (x_t - mean) / scale and
theta = (W, U, b, V, c):

    s_t = tanh(z_t W + s_{t-1} U + b)                  the SimpleRNN of this library, s = 0 before the first step
    f_t = base_t + scale (s_t V + c)                   the forecasts (H,) of g_{t+1} ... g_{t+H}: they have seen nothing after t
    loss(theta) = mean_t,h (back(f_th) - y_{t+h})^2 / deviation^2 + l2 (|W|^2 + |U|^2 + |V|^2)

base_t is g_t itself, or the forecast of a linear autoregression that was fitted by least squares: then the network learns what
is not linear, and stopped early it is hardly worse. `back` undoes root or logarithm: the loss is of the error that is reported.
mean, scale and deviation come from the steps fitted. All networks are fitted at the same time, by one `jax.vmap` over their
parameters and over the steps that each may learn from: the same for a whole ensemble, all but one block of them with `folds`.
The first steps, which a network meets with an empty state, are left out of the loss (`warm_up`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import SimpleRNN, regularization_loss
from flax_srnn.regularizers import L2
from flax_srnn.training import baselines, series
from flax_srnn.training.config import Training, Within
from flax_srnn.training.series import Series
from flax_srnn.training.tasks import Experiment, Report, Table, Task

__all__ = ["SHIPPED", "TASK", "Forecast"]

SHIPPED = {"sunspots": Path(__file__).parent.parent / "sunspots.csv"}
_LEAST_FITTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast(Training):
    """How a series is forecast.

    Args:
      data: a CSV file, or sunspots, the series that comes with the package.
      column: of the file; needed where several hold numbers.
      horizon: steps ahead that are forecast, all up to this one.
      transform: of the series, before anything else.
      inputs: what the network reads.
      base: what the network adds to.
      order: of the linear autoregression, base and baseline; default: chosen by the fitted part.
      units: of the SimpleRNN.
      l2: weight of the squared weights in the loss.
      networks: in the ensemble; they differ in their initial weights only.
      warm_up: steps at the beginning of a sequence that no network learns from.
      window: steps of a sequence; a longer series is cut into pieces at random places.
      fit_until: the last entry of the index that is learned from; default: by the shares below.
      tests: periods (first, last) of the index that are scored; default: all after fit_until.
      test_share: of all steps, the last ones.
      validation_share: of the steps that are learned from, the last ones, by which training is stopped (patience).
      variance: that squared errors are divided by; default: of the test period itself.
      folds: blocks of the fitted part, each forecast by networks fitted to the others: what settings are chosen by. Nothing
        else is scored then.
      future: steps after the end that are forecast from forecasts.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range, or fields do not fit together.
    """

    data: str | None = None
    column: str | None = None
    horizon: Annotated[int, Within(1, 1000)] = 1
    transform: Literal["none", "sqrt", "log"] = "none"
    inputs: Literal["levels", "changes"] = "changes"
    base: Literal["persistence", "autoregression"] = "autoregression"
    order: Annotated[int, Within(1, 1000)] | None = None
    units: Annotated[int, Within(1, 1024)] = 8
    l2: Annotated[float, Within(0, 1000)] = 0.1
    networks: Annotated[int, Within(1, 4096)] = 16
    warm_up: Annotated[int, Within(0, 10**6)] = 10
    window: Annotated[int, Within(2, 10**6)] = 1024
    fit_until: str | None = None
    tests: tuple[tuple[str, str], ...] = ()
    test_share: Annotated[float, Within(0.01, 0.9)] = 0.2
    validation_share: Annotated[float, Within(0.01, 0.9)] = 0.2
    variance: Annotated[float, Within(1e-30, 1e30)] | None = None
    folds: Annotated[int, Within(0, 1000)] = 0
    future: Annotated[int, Within(0, 10**5)] = 20
    batch_size: Annotated[int, Within(1, 10**6)] = 1
    steps: Annotated[int, Within(1, 10**9)] = 2000
    learning_rate: Annotated[float, Within(1e-12, 100)] = 3e-3
    evaluate_every: Annotated[int, Within(0, 10**9)] = 25
    patience: Annotated[int, Within(0, 10**6)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ValueError("`folds` must be 0, or 2 at least: one block is fitted to the others, got 1.")
        if self.folds and (self.base != "persistence" or self.patience):
            raise ValueError(
                "`folds` needs base='persistence' and patience=0: a block must be new to all that is fitted."
            )


class _Split(NamedTuple):
    """Which steps are for what: the first `learned` fit the networks, those before `fitted` end training early."""

    learned: int
    fitted: int
    tests: tuple[tuple[str, np.ndarray], ...]  # a name, and the steps scored (T,) bool


def _load(config: Forecast) -> Experiment:
    given = _read(config)
    split, values = _split(config, given), given.values
    _check_that_it_varies(config, given, split)
    of_steps = np.broadcast_to(np.arange(len(values)) < split.learned, (max(1, config.folds), len(values)))
    if config.folds:
        of_steps = of_steps & ~_blocks(config, split)
    learned = np.repeat(of_steps, config.networks, axis=0)  # (M, T): what each network learns from
    levels = _forward(config.transform, values)
    # Of the base: fitted to what the networks learn from, and again to all that was seen before it is used.
    learning, final = (_coefficients(config, levels, steps) for steps in (split.learned, split.fitted))
    inputs, moved = _inputs(config, levels), _inputs(config, values)
    mean, scale, deviation = (
        statistic(np.broadcast_to(x, learned.shape), axis=1, where=learned).astype(np.float32)
        for statistic, x in ((np.mean, inputs), (np.std, inputs), (np.std, moved))
    )
    scale, deviation = (np.where(x > 0, x, np.float32(1)) for x in (scale, deviation))
    constants = {"mean": mean, "scale": scale, "coefficients": final, "column": np.array(given.name)}
    base, targets = (
        np.nan_to_num(x) for x in (_base(config, levels, learning), baselines.later(values, config.horizon))
    )
    aims = np.arange(len(values))[:, None] + np.arange(1, config.horizon + 1)  # (T, H): the step that is forecast
    warm_up = max(config.warm_up, learning.shape[1])
    window = min(config.window, split.learned - 1)
    if window <= warm_up:
        raise ValueError(
            f"series {given.source}: nothing is left to learn from: sequences have {window} steps (window, and {split.learned} "
            f"steps to learn from), the first {warm_up} of which only warm up (warm_up, order)."
        )
    model = _Forecaster(config)

    def batch(step: int, rows: range) -> dict[str, np.ndarray]:
        starts = np.random.default_rng((config.seed, step)).integers(0, split.learned - window, config.batch_size)
        steps = starts[rows.start : rows.stop, None] + np.arange(window)
        counted = (aims < split.learned)[..., None] & learned.T[np.minimum(aims, len(values) - 1)]  # (T, H, M)
        counted = counted[steps] & (np.arange(window) >= warm_up)[:, None, None]
        floats = {"inputs": inputs[steps], "base": base[steps], "targets": targets[steps]}
        return {name: x.astype(np.float32) for name, x in floats.items()} | {"counted": counted}

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        def of_one(params: Any, mean: Any, scale: Any, deviation: Any, counted: Any) -> jax.Array:
            z = ((batch["inputs"] - mean) / scale)[..., None]
            (outputs, _), sown = model.apply({"params": params}, z, mutable=["losses"])
            errors = _back(config.transform, batch["base"] + scale * outputs) - batch["targets"]
            penalty = regularization_loss(sown) + L2(config.l2)(params["head"]["kernel"])
            return jnp.mean((errors / deviation) ** 2, where=counted) + penalty

        in_axes = (0, 0, 0, 0, -1)
        return jax.vmap(of_one, in_axes)(params, mean, scale, deviation, batch["counted"]), carry

    def score(params: Any) -> float:
        """Mean squared error of the ensemble in the validation part, over that of what it adds to."""
        ahead = _ahead(config, constants | {"coefficients": learning}, params, values).mean(axis=0)
        wanted = (aims >= split.learned) & (aims < split.fitted)
        ours, theirs = (np.mean((x[wanted] - targets[wanted]) ** 2) for x in (ahead, _back(config.transform, base)))
        return float(ours / max(theirs, 1e-300))

    return Experiment(
        batch,
        loss,
        lambda params: _report(config, constants, given, split, params),
        score if split.learned < split.fitted else None,
        members=len(learned),
        constants=constants,
        measure="mean squared error / that of the "
        + ("linear model" if config.base == "autoregression" else "persistence"),
    )


# --- the network -------------------------------------------------------------------------------------------------------


class _Forecaster(nn.Module):
    """Standardised inputs (*batch, T, 1) -> what is added to the base, in units of `scale` (*batch, T, H), last state."""

    config: Forecast

    @nn.compact
    def __call__(self, inputs: jax.Array, initial_state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        penalty, dtype = L2(self.config.l2), jnp.dtype(self.config.dtype)
        layer = SimpleRNN(
            self.config.units,
            kernel_regularizer=penalty,
            recurrent_regularizer=penalty,
            return_sequences=True,
            return_state=True,
            dtype=dtype,
            name="rnn",
        )
        outputs, state = layer(inputs, initial_state=initial_state)
        # What was fitted by least squares is where training starts: nothing is added to it at first.
        first = nn.initializers.zeros if self.config.base == "autoregression" else nn.initializers.lecun_normal()
        head = nn.Dense(self.config.horizon, dtype=dtype, kernel_init=first, name="head")
        return head(outputs).astype(jnp.float32), state


def _init(config: Forecast, constants: Mapping[str, np.ndarray], key: jax.Array) -> Any:
    """Networks of different blocks start from the same weights."""
    keys = jnp.tile(jax.random.split(key, config.networks), max(1, config.folds))
    return jax.vmap(lambda key: _Forecaster(config).init(key, jnp.zeros((1, 1)))["params"])(keys)


def _ahead(config: Forecast, constants: Mapping[str, np.ndarray], params: Any, values: np.ndarray) -> np.ndarray:
    """Forecasts (M, T, H) from values (T,): entry (t, h - 1) is that of step t + h, made from the steps up to t."""
    levels = _forward(config.transform, values)
    added, _ = _added(config, params, constants["mean"], constants["scale"], _inputs(config, levels))
    return _shown(config, _base(config, levels, constants["coefficients"]) + np.asarray(added, np.float64))


def _free(config: Forecast, constants: Mapping[str, np.ndarray], params: Any, values: np.ndarray) -> np.ndarray:
    """Forecasts (M, future) of the steps after values (T,): each network goes on from its own forecasts."""
    levels = _forward(config.transform, values)
    mean, scale, coefficients = (constants[name] for name in ("mean", "scale", "coefficients"))
    added, state = _added(config, params, mean, scale, _inputs(config, levels))
    history = np.repeat(levels[None, -max(2, coefficients.shape[1]) :], len(mean), axis=0)  # (M, the last levels)
    made = []
    for _ in range(config.future):
        base = np.stack([_base(config, each, coefficients)[-1, 0] for each in history])
        following = base + np.asarray(added, np.float64)[:, -1, 0]
        made.append(_shown(config, following))
        history = np.column_stack([history[:, 1:], _forward(config.transform, made[-1])])
        inputs = history[:, -1] if config.inputs == "levels" else history[:, -1] - history[:, -2]
        added, state = _added(config, params, mean, scale, inputs[:, None], state)
    return np.stack(made, -1) if made else np.zeros((len(mean), 0))


@functools.partial(jax.jit, static_argnums=0)
def _added(
    config: Forecast, params: Any, mean: jax.Array, scale: jax.Array, inputs: jax.Array, state: Any = None
) -> tuple[jax.Array, jax.Array]:
    """What M networks add to the base (M, T, H), and their states, from inputs (T,) or (M, T)."""

    def of_one(params: Any, mean: Any, scale: Any, inputs: Any, state: Any) -> tuple[jax.Array, jax.Array]:
        z = ((inputs - mean) / scale).astype(jnp.float32)[:, None]
        outputs, state = _Forecaster(config).apply({"params": params}, z, state)
        return scale * outputs, state

    return jax.vmap(of_one, (0, 0, 0, 0 if inputs.ndim == 2 else None, 0))(params, mean, scale, inputs, state)


# --- the series --------------------------------------------------------------------------------------------------------


def _read(config: Forecast, path: Path | None = None, fitted: str | None = None) -> Series:
    """The series of the config, or of another file, if it can be forecast; `fitted` as in `series.read`."""
    if path is None and config.data is None:
        raise ValueError("`data`: forecast needs a series: --data FILE.csv; the config sunspots shows one.")
    given = series.read(path or SHIPPED.get(str(config.data), Path(str(config.data))), config.column, fitted)
    allowed = {"none": -np.inf, "sqrt": 0.0, "log": np.nextafter(0, 1)}[config.transform]
    if (bad := np.flatnonzero(given.values < allowed)).size:
        raise ValueError(
            f"series {given.source}, line {given.lines[bad[0]]}: column {given.name!r} must be "
            f"{'positive' if config.transform == 'log' else 'at least 0'} for transform={config.transform!r}, "
            f"got {given.values[bad[0]]}."
        )
    return given


def _split(config: Forecast, given: Series) -> _Split:
    total = len(given.values)
    fitted = round(total * (1 - config.test_share))
    if config.fit_until is not None:
        fitted = int(np.searchsorted(given.times, _entry(config.fit_until, given, "fit_until"), side="right"))
    learned = fitted if not config.patience else round(fitted * (1 - config.validation_share))
    least = config.warm_up + config.horizon + _LEAST_FITTED
    if learned < least or (fitted + config.horizon > total and not config.folds):
        raise ValueError(
            f"series {given.source}: too few rows, {total}: {learned} are left to learn from, at least {least} are needed, "
            f"and {total - fitted} to be scored, at least {config.horizon} (warm_up, horizon, test_share, validation_share)."
        )
    if config.order is not None and config.order > (highest := (learned - config.horizon) // 2):
        raise ValueError(
            f"`order` must be at most {highest}, half of the steps that are learned from, or least squares fit anything, "
            f"got {config.order}."
        )
    tests = []
    for first, last in config.tests:
        inside = (given.times >= _entry(first, given, "tests")) & (given.times <= _entry(last, given, "tests"))
        if not inside.any() or np.flatnonzero(inside)[0] < fitted:
            raise ValueError(f"`tests`: {first} to {last} must be steps of {given.source} after those fitted.")
        tests.append((f"{first}-{last}", inside))
    after = np.arange(total) >= fitted
    words = f"{series.text(given.times[min(fitted, total - 1)])} to {series.text(given.times[-1])}"
    return _Split(learned, fitted, tuple(tests) or ((words, after),))


def _periods(config: Forecast, split: _Split) -> tuple[tuple[str, np.ndarray], ...]:
    """What is scored, as the tests of a split are."""
    if not config.folds:
        return split.tests
    blocks = _blocks(config, split).any(axis=0)
    return ((f"{config.folds} blocks, each forecast by fits to the others", blocks),)


def _check_that_it_varies(config: Forecast, given: Series, split: _Split) -> None:
    """From what is constant nothing is learned, and its variance divides no error."""
    steps = np.arange(len(given.values))
    parts = {
        "all rows": steps >= 0,
        "all rows to learn from (fit_until, test_share, validation_share)": steps < split.learned,
        "all rows that end training early (validation_share)": (steps >= split.learned) & (steps < split.fitted),
    }
    if config.variance is None:
        parts |= {f"all rows to be scored, {name} (tests, test_share)": x for name, x in _periods(config, split)}
    for rows, inside in parts.items():
        values, lines = given.values[inside], given.lines[inside]
        if values.size and values.min() == values.max():
            raise ValueError(
                f"series {given.source}, lines {lines[0]} to {lines[-1]}: column {given.name!r} must vary, got {values[0]:g} "
                f"in {rows}: there is nothing to learn or to score."
            )


def _entry(text: str, given: Series, name: str) -> Any:
    entry = series.entry(text)
    if entry is None or isinstance(entry, np.datetime64) != np.issubdtype(given.times.dtype, np.datetime64):
        raise ValueError(f"`{name}`: {text!r} is no entry like those of {given.source}, {series.text(given.times[0])}.")
    return entry


def _blocks(config: Forecast, split: _Split) -> np.ndarray:
    """(folds, T): block k of the fitted steps, without the first ones, which no network learns from."""
    borders = np.linspace(config.warm_up + 1, split.fitted, config.folds + 1).round().astype(int)
    steps = np.arange(len(split.tests[0][1]))
    return (borders[:-1, None] <= steps) & (steps < borders[1:, None])


def _base(config: Forecast, levels: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """(T, H), on the scale of the network."""
    if config.base == "persistence":
        return baselines.persistence(levels, config.horizon)
    return baselines.autoregression(levels, coefficients)


def _coefficients(config: Forecast, levels: np.ndarray, steps: int) -> np.ndarray:
    """(H, 1 + order) of the base, fitted to the first `steps` levels; (H, 0) where it needs none."""
    if config.base == "persistence":
        return np.zeros((config.horizon, 0))
    return baselines.fit_autoregression(levels[:steps], config.horizon, config.order)


def _inputs(config: Forecast, levels: np.ndarray) -> np.ndarray:
    return levels if config.inputs == "levels" else np.diff(levels, prepend=levels[0])


def _forward(transform: str, values: np.ndarray) -> np.ndarray:
    if transform == "none":
        return values
    return np.sqrt(values) if transform == "sqrt" else np.log(values)


def _back(transform: str, levels: Any) -> Any:
    """Undoes `_forward`; differentiable, and negative below 0 for a root."""
    if transform == "none":
        return levels
    numpy = jnp if isinstance(levels, jax.Array) else np
    return numpy.exp(levels) if transform == "log" else levels * numpy.abs(levels)


def _shown(config: Forecast, levels: np.ndarray) -> np.ndarray:
    """A forecast as it is reported: no root is negative."""
    return _back(config.transform, np.maximum(levels, 0) if config.transform == "sqrt" else levels)


# --- the result --------------------------------------------------------------------------------------------------------


def _report(config: Forecast, constants: Mapping[str, np.ndarray], given: Series, split: _Split, params: Any) -> Report:
    values, horizon = given.values, config.horizon
    targets = baselines.later(values, config.horizon)
    ahead = _ahead(config, constants, params, values)
    periods = _periods(config, split)
    known = np.arange(len(values)) < split.fitted
    if config.folds:
        per_fold = ahead.reshape(config.folds, config.networks, *ahead.shape[1:])
        single = np.full(per_fold.shape[1:], np.nan)
        for block, forecasts in zip(_blocks(config, split), per_fold, strict=True):
            made = np.flatnonzero(block) - 1  # the forecast of step t is made at t - 1
            single[:, made] = forecasts[:, made]
        ahead = single
    season = baselines.season(values[known])
    linear = baselines.fit_autoregression(values[known], horizon, config.order)
    forecasts = {
        "persistence": baselines.persistence(values, horizon),
        f"season of {season}": baselines.seasonal(values, horizon, season),
        f"AR({linear.shape[1] - 1}), least squares": baselines.autoregression(values, linear),
    }
    if config.base == "autoregression" and config.transform != "none":
        order = constants["coefficients"].shape[1] - 1
        base = _base(config, _forward(config.transform, values), constants["coefficients"])
        forecasts[f"AR({order}) of the {config.transform}"] = _shown(config, base)
    forecasts["ensemble"] = ahead.mean(axis=0)

    def errors(made: np.ndarray) -> list[np.ndarray]:
        """In each period the mean squared error of forecasts (*batch, T, H), by horizon (*batch, H), over its variance."""
        results = []
        for _, inside in periods:
            aimed = np.stack([np.concatenate([inside[h:], np.zeros(h, bool)]) for h in range(1, horizon + 1)], -1)
            squares = np.where(aimed, (made - np.nan_to_num(targets)) ** 2, 0).sum(axis=-2) / aimed.sum(axis=-2)
            results.append(squares / (config.variance or np.var(values[inside])))
        return results

    of_all = {name: errors(made) for name, made in forecasts.items()}
    of_single = [x.mean(axis=-1) for x in errors(ahead)]
    names = [name for name, _ in periods]
    scores: dict[str, Any] = {
        "measure": "mean squared error / " + (f"{config.variance:g}" if config.variance else "variance of the period"),
        "periods": names,
        **{f"error {name}": float(x.mean()) for name, x in zip(names, of_all["ensemble"], strict=True)},
        "errors": {name: [float(x.mean()) for x in each] for name, each in of_all.items()},
        "errors_by_horizon": {name: [x.tolist() for x in each] for name, each in of_all.items()},
        "single_networks": [x.tolist() for x in of_single],
        "steps": {"learned": split.learned, "fitted": split.fitted, "all": len(values)},
    }
    rows: list[tuple[Any, ...]] = [(name, *(f"{x:.4g}" for x in each)) for name, each in scores["errors"].items()]
    singles = (f"{config.networks} single networks", *(f"{x.mean():.4g} +- {x.std():.2g}" for x in of_single))
    measured = f"{'one step' if horizon == 1 else f'1 to {horizon} steps'} ahead: {scores['measure']}"
    table = Table(
        f"{given.name}, {measured}",
        ("", *names),
        [*rows[:-1], singles, ("their ensemble", *rows[-1][1:])],
    )
    if config.folds:
        return Report(scores, table)
    free = _free(config, constants, params, values)
    scores["next"] = {
        "index": [series.text(entry) for entry in series.after(given.times, horizon)],
        "forecast": ahead[:, -1].mean(axis=0).tolist(),
        "spread": ahead[:, -1].std(axis=0).tolist(),
    }

    def draw(path: Path) -> None:
        from flax_srnn.training.plots import draw_forecasts

        labels = [f"{name}: {error:.4g}" for name, error in zip(names, scores["errors"]["ensemble"], strict=True)]
        tests = list(zip(labels, (p for _, p in periods), strict=True))
        draw_forecasts(path, given, split.fitted, ahead[..., 0], free, tests, measured)

    return Report(scores, table, {"forecast.png": draw})


def _predict(config: Forecast, params: Any, constants: Mapping[str, np.ndarray], path: Path | None) -> Table:
    """Every step of a series from those before it, and the steps after its end."""
    given = _read(config, path, str(constants["column"]))
    warm_up = max(config.warm_up, constants["coefficients"].shape[1])
    if len(given.values) <= warm_up:
        raise ValueError(
            f"series {given.source}: at least {warm_up + 1} rows are needed, for warm_up and the order of the linear model, got "
            f"{len(given.values)}."
        )
    ahead = _ahead(config, constants, params, given.values)[:, warm_up:]
    following = [series.text(entry) for entry in series.after(given.times, config.horizon)]
    index = [*map(series.text, given.times[warm_up + 1 :]), *following]
    observed = [*(f"{x:.10g}" for x in given.values[warm_up + 1 :]), *[""] * config.horizon]
    # One step ahead inside the series; after its end all steps, made at the last one.
    made = np.concatenate([ahead[:, :-1, 0], ahead[:, -1]], axis=1)
    columns = index, observed, (f"{x:.6g}" for x in made.mean(axis=0)), (f"{x:.3g}" for x in made.std(axis=0))
    title = "One step ahead, then the steps to come; spread: how far the networks differ, not how wrong they are"
    return Table(title, ("index", "observed", "forecast", "spread"), list(zip(*columns, strict=True)))


TASK = Task(Forecast, _load, _init, _predict, data="a CSV file, one row a step")
