"""The sunspot forecaster: its data, its baselines, and that no forecast knows the year that it forecasts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flax_srnn.__main__ import main
from flax_srnn.training import run, scores
from flax_srnn.training.config import SunspotsConfig, load_config
from flax_srnn.training.data import SUNSPOTS, Series, read_series
from flax_srnn.training.forecast import WARM_UP, fit, free_running, one_year_ahead

CONFIG = SunspotsConfig(units=3, l2=0.01, learning_rate=0.05, steps=7, seeds=2, seed=0)
SERIES = read_series()
KEYS = jax.random.split(jax.random.key(0), 2)


FITTED = np.stack([SERIES.years <= 1920] * 2)


def fitted(series=SERIES, config=CONFIG, keys=KEYS, years=FITTED):
    reports = list(fit(config, series, years, keys, report_every=5))
    assert [steps for steps, _ in reports] == [5, 7]
    return reports[-1][1]


@pytest.fixture(scope="module")
def ensemble():
    return fitted()


def leaves_equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


# The data


def test_the_series_is_the_published_one():
    assert SERIES.years.tolist() == list(range(1700, 2009))
    known = {1700: 5, 1712: 0, 1778: 154.4, 1810: 0, 1816: 45.8, 1913: 1.4, 1957: 190.2, 1979: 155.4, 2008: 2.9}
    assert {year: SERIES.counts[year - 1700] for year in known} == known
    np.testing.assert_allclose(SERIES.counts.sum(), 15373.4, atol=1e-9)
    np.testing.assert_allclose((SERIES.counts * SERIES.years).sum(), 28745190.6, atol=1e-6)
    np.testing.assert_allclose(SERIES.until(1979).counts.var(), scores.VARIANCE, atol=0.01)


def test_the_file_names_source_and_licence():
    comments = [line for line in SUNSPOTS.read_text().splitlines() if line.startswith("#")]
    assert any("Source: National Geophysical Data Center" in line for line in comments)
    assert any("Licence: public domain" in line for line in comments)


# The scores


def test_baselines_have_the_published_errors():
    def errors(forecasts):
        return [round(float(scores.relative_variance(SERIES, forecasts, *p)), 3) for p in scores.TEST_PERIODS]

    assert errors(scores.persistence(SERIES)) == [0.427, 0.965]
    assert errors(scores.autoregression(SERIES, FITTED[0])) == [0.126, 0.351]


def test_autoregression_finds_the_coefficients_of_a_series_made_by_it():
    counts = [1.0, 4.0, 2.0]
    for _ in range(30):
        counts.append(7 + 0.6 * counts[-1] - 0.5 * counts[-2] + 0.2 * counts[-3])
    series = Series(np.arange(1900, 1933), np.array(counts))
    forecasts = scores.autoregression(series, fitted=series.years <= 1920, order=3)
    assert np.isnan(forecasts[:2]).all()
    np.testing.assert_allclose(forecasts[2:-1], counts[3:], rtol=1e-9)
    np.testing.assert_allclose(forecasts[-1], 7 + 0.6 * counts[-1] - 0.5 * counts[-2] + 0.2 * counts[-3], rtol=1e-9)


def test_relative_variance_scores_the_years_asked_for_and_no_others():
    series = Series(np.arange(1900, 1905), np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    forecasts = np.array([[100.0, 3.0, 5.0, 100.0, 100.0], [0.0, 4.0, 10.0, 0.0, 0.0]])  # of 1901 to 1905
    expected = np.array([(1 + 9) / 2, (0 + 4) / 2]) / 1495.6
    np.testing.assert_allclose(scores.relative_variance(series, forecasts, 1902, 1903), expected, rtol=1e-12)


def test_splice_takes_each_year_from_the_fit_that_left_it_out():
    blocks = np.array(scores.BLOCKS)
    np.testing.assert_array_equal(np.concatenate([np.arange(a, b + 1) for a, b in blocks]), np.arange(1711, 1921))
    forecasts = np.broadcast_to(blocks[:, :1, None], (len(blocks), 2, len(SERIES.years)))
    spliced = scores.splice(SERIES, forecasts)
    years = SERIES.years + 1
    inside = (years >= 1711) & (years <= 1920)
    assert spliced.shape == (2, len(SERIES.years))
    np.testing.assert_array_equal(spliced[1][inside], 1711 + (years[inside] - 1711) // 15 * 15)
    assert np.isnan(spliced[:, ~inside]).all()


# The networks


def test_a_forecast_is_the_formula_in_float64(ensemble):
    forecasts = one_year_ahead(ensemble, SERIES.counts)
    for member in range(2):
        rnn, head = (
            {name: np.asarray(value[member], np.float64) for name, value in ensemble.params[layer].items()}
            for layer in ("rnn", "head")
        )
        mean, scale = float(ensemble.mean[member]), float(ensemble.scale[member])
        np.testing.assert_allclose(mean, np.sqrt(SERIES.until(1920).counts).mean(), rtol=1e-6)
        np.testing.assert_allclose(scale, np.sqrt(SERIES.until(1920).counts).std(), rtol=1e-6)
        h, expected = np.zeros(3), []
        for count in SERIES.counts:
            z = np.array([(np.sqrt(count) - mean) / scale])
            h = np.tanh(z @ rnn["kernel"] + h @ rnn["recurrent_kernel"] + rnn["bias"])
            expected.append(max(mean + scale * (z + h @ head["kernel"] + head["bias"])[0], 0) ** 2)
        np.testing.assert_allclose(forecasts[member], expected, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("year", [1701, 1750, 1921, 1956, 2008])
def test_the_forecast_of_a_year_does_not_depend_on_that_year_or_later_ones(ensemble, year):
    altered = SERIES.counts.copy()
    altered[year - 1700 :] = 500.0 - altered[year - 1700 :]
    until = year - 1700  # forecasts of the years up to `year`
    for forecast in (lambda c: one_year_ahead(ensemble, c), lambda c: scores.persistence(Series(SERIES.years, c))):
        before, after = forecast(SERIES.counts), forecast(altered)
        np.testing.assert_array_equal(before[..., :until], after[..., :until])
        assert not np.allclose(before[..., until:], after[..., until:])


def test_nothing_after_the_last_fitted_year_is_learned(ensemble):
    altered = Series(SERIES.years, np.where(SERIES.years > 1920, 777.0, SERIES.counts))
    assert leaves_equal(fitted(altered), ensemble)
    seen, unseen = (scores.autoregression(series, FITTED[0])[8:220] for series in (SERIES, altered))
    np.testing.assert_array_equal(seen, unseen)
    touched = Series(SERIES.years, np.where(SERIES.years == 1920, 777.0, SERIES.counts))
    assert not leaves_equal(fitted(touched), ensemble)


@pytest.mark.slow
def test_networks_fitted_together_are_fitted_as_alone():
    years = np.stack([SERIES.years <= 1850, SERIES.years <= 1920])
    together = fitted(years=years)
    for member, last_year in enumerate((1850, 1920)):
        known = SERIES.until(last_year)
        alone = fitted(known, keys=KEYS[member : member + 1], years=np.ones((1, len(known.years)), bool))
        for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(left[member], right[0], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_squared_error_of_the_fitted_years_and_the_penalty():
    """The first step of Adam moves every weight by the learning rate, against the gradient of this float64 loss."""
    years = (SERIES.years <= 1920) & ~((SERIES.years >= 1786) & (SERIES.years <= 1800))
    config = dataclasses.replace(CONFIG, steps=1, l2=0.3, learning_rate=1e-3)
    still = dataclasses.replace(config, learning_rate=1e-30)
    ((_, moved),), ((_, start),) = (
        list(fit(c, SERIES, years[None], KEYS[:1], report_every=1)) for c in (config, still)
    )
    roots = np.sqrt(SERIES.counts)
    mean, scale = roots[years].mean(), roots[years].std()
    z = (roots - mean) / scale

    def loss(rnn, head):
        h, errors = np.zeros(3), []
        for year in range(220):
            h = np.tanh(z[year : year + 1] @ rnn["kernel"] + h @ rnn["recurrent_kernel"] + rnn["bias"])
            root = mean + scale * (z[year] + h @ head["kernel"] + head["bias"])[0]
            errors.append((root * abs(root) - SERIES.counts[year + 1]) / SERIES.counts[years].std())
        learned = np.array(errors)[WARM_UP:][years[WARM_UP + 1 : 221]]
        weights = (rnn["kernel"], rnn["recurrent_kernel"], head["kernel"])
        return np.mean(learned**2) + 0.3 * sum((w**2).sum() for w in weights)

    params = {
        layer: {k: np.array(v[0], np.float64) for k, v in start.params[layer].items()} for layer in ("rnn", "head")
    }
    for layer, names in params.items():
        for name, value in names.items():
            step = np.asarray(moved.params[layer][name][0], np.float64) - value
            for index in np.ndindex(value.shape):
                value[index] += 1e-6
                up = loss(**params)
                value[index] -= 2e-6
                down = loss(**params)
                value[index] += 1e-6
                np.testing.assert_allclose(
                    step[index], -1e-3 * np.sign(up - down), rtol=1e-3, err_msg=f"{layer} {name}"
                )


@pytest.mark.slow
def test_a_free_running_network_goes_on_from_its_own_forecasts(ensemble):
    free = free_running(ensemble, SERIES.counts, 5)
    for member in range(2):
        counts = SERIES.counts
        for year in range(5):
            following = one_year_ahead(ensemble, counts)[member, -1]
            np.testing.assert_allclose(free[member, year], following, rtol=1e-4, atol=1e-3)
            counts = np.append(counts, following)


# A run on disk


def test_a_run_is_read_back_as_it_was_written(ensemble, tmp_path):
    folder = run.save(
        tmp_path / "mine", "name", CONFIG, ensemble, {"a": 1.5}, lambda path: path.write_bytes(b"picture")
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "forecast.png",
        "metrics.json",
        "params.npz",
    ]
    config, read = run.load(folder)
    assert config == CONFIG
    assert jax.tree.structure(read) == jax.tree.structure(ensemble)
    assert leaves_equal(read, ensemble)
    assert json.loads((folder / "metrics.json").read_text()) == {"a": 1.5}


def test_every_flipped_byte_of_the_parameters_is_noticed(ensemble, tmp_path):
    folder = run.save(tmp_path / "mine", "name", CONFIG, ensemble, {}, lambda path: None)
    file = folder / "params.npz"
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        read, message = None, ""
        try:
            _, read = run.load(folder)
        except ValueError as error:
            message = str(error)
        # A byte may carry nothing, such as a time stamp.
        assert "params.npz" in message if read is None else leaves_equal(read, ensemble)


def test_a_failure_while_saving_leaves_nothing(ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.check_target(None)

    def fail(path):
        raise RuntimeError("no ink")

    for workdir in (None, tmp_path / "mine"):
        with pytest.raises(RuntimeError, match="no ink"):
            run.save(workdir, "name", CONFIG, ensemble, {}, fail)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["runs"]


def test_a_folder_that_fills_up_meanwhile_is_left_alone(ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def occupy(folder):
        def draw(path):
            folder.mkdir(parents=True)
            (folder / "precious").write_text("data")

        return draw

    run.check_target(None)
    taken = tmp_path / "runs" / "name-1"
    assert run.save(None, "name", CONFIG, ensemble, {}, occupy(taken)).name == "name-2"
    with pytest.raises(FileExistsError, match="holds something by now"):
        run.save(tmp_path / "mine", "name", CONFIG, ensemble, {}, occupy(tmp_path / "mine"))
    for folder in (taken, tmp_path / "mine"):
        assert [path.name for path in folder.iterdir()] == ["precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "runs"]


# The whole job


@pytest.mark.slow
def test_the_bundled_config_beats_the_linear_model(tmp_path):
    assert main(["train", "sunspots", "--workdir", str(tmp_path / "run")]) == 0
    errors = json.loads((tmp_path / "run" / "metrics.json").read_text())["average_relative_variance"]
    for period in ("1921-1955", "1956-1979"):
        assert errors["ensemble"][period] < errors["ar9"][period]
        assert errors["ensemble"][period] < errors["single_mean"][period]
    config, ensemble = run.load(tmp_path / "run")
    assert config == load_config("sunspots")
    free = free_running(ensemble, SERIES.counts, 22).mean(axis=0)
    assert free.min() >= 0
    assert free.max() < 200
