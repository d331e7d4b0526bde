"""Forecasts: CSV files as people have them, the baselines, and that no forecast knows the step that it forecasts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from flax_srnn.__main__ import main
from flax_srnn.training import baselines, program, series, tasks
from flax_srnn.training.tasks import forecast
from flax_srnn.training.tasks.forecast import Forecast

SUNSPOTS = program.find("sunspots")[1]
SERIES = series.read(forecast.SHIPPED["sunspots"])
CONFIG = dataclasses.replace(SUNSPOTS, units=3, networks=2)
TASK = tasks.get("forecast")
KEY = jax.random.key(0)


def written(path, *lines, encoding="utf-8"):
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def noisy(count, seed=0):
    """A season of 12 with noise."""
    noise = np.random.default_rng(seed).normal(size=count)
    return 10 + 5 * np.sin(np.arange(count) * np.pi / 6) + 0.3 * noise


def user_config(path, values, **fields):
    written(
        path, "month,value", *(f"{2000 + i // 12}-{i % 12 + 1:02d},{x!r}" for i, x in enumerate(map(float, values)))
    )
    return Forecast(data=str(path), units=3, networks=2, **fields)


# --- the data ----------------------------------------------------------------------------------------------------------


def test_the_shipped_series_is_the_published_one():
    assert SERIES.times.tolist() == list(range(1700, 2009))
    known = {1700: 5, 1712: 0, 1778: 154.4, 1810: 0, 1816: 45.8, 1913: 1.4, 1957: 190.2, 1979: 155.4, 2008: 2.9}
    assert {year: SERIES.values[year - 1700] for year in known} == known
    np.testing.assert_allclose(SERIES.values.sum(), 15373.4, atol=1e-9)
    np.testing.assert_allclose((SERIES.values * SERIES.times).sum(), 28745190.6, atol=1e-6)
    np.testing.assert_allclose(SERIES.values[SERIES.times <= 1979].var(), SUNSPOTS.variance, atol=0.02)


def test_the_shipped_file_names_source_and_licence():
    comments = [line for line in forecast.SHIPPED["sunspots"].read_text().splitlines() if line.startswith("#")]
    assert any("Source: National Geophysical Data Center" in line for line in comments)
    assert any("Licence: public domain" in line for line in comments)


@pytest.mark.parametrize(
    ("lines", "column", "index", "name"),
    [
        (["year,value", "1900,1.5", "1901,2", "1902,-3e0"], None, "1900 1901 1902", "value"),
        (["# a comment", "", "Date;Wert", "01.02.2020;1,5", "01.03.2020;2", "01.04.2020;-3"], None, "2020-02-01 2020-03-01 2020-04-01", "Wert"),
        (["month\tx\ty", "2020-01\t1.5\t7", "2020-02\t2\t8", "2020-03\t-3\t9"], "x", "2020-01-01 2020-02-01 2020-03-01", "x"),
        (["value", "1.5", "2", "-3"], None, "1 2 3", "value"),
        (["1.5", "2", "-3"], None, "1 2 3", "1"),
        ([",co2", "1958-03-29 00:00:00,1.5", "1958-04-05 12:30:00,2", "1958-04-12 00:00:00,-3"], None, "1958-03-29 1958-04-05 12:30:00 1958-04-12", "co2"),
        (["quarter,gdp", "1959Q4,1.5", "1960Q1,2", "1960-Q2,-3"], None, "1959-10-01 1960-01-01 1960-04-01", "gdp"),
        (["year,quarter,x", "1959.0,1.0,1.5", "1959.0,2.0,2", "1960.0,1.0,-3"], "x", "1 2 3", "x"),
        (["week,x", "19580329,1.5", "19580405,2", "19580412,-3"], None, "1958-03-29 1958-04-05 1958-04-12", "x"),
        (['"a, b","x ""y"""', "1,1.5", "2,2", "3,-3"], None, "1 2 3", 'x "y"'),
        (["station,x", "Ulm,1.5", "Bonn,2", "Kiel,-3"], None, "1 2 3", "x"),
    ],
    ids=["years", "semicolons", "tabs", "one column", "no header", "pandas", "quarters", "no index", "days", "quoted", "words"],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_as_people_have_them(tmp_path, lines, column, index, name, encoding):
    given = series.read(written(tmp_path / "s.csv", *lines, encoding=encoding), column)
    np.testing.assert_array_equal(given.values, [1.5, 2.0, -3.0])
    assert " ".join(map(series.text, given.times)) == index
    assert given.name == name


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("", None, ": it is empty"),
        ("year,value\n", None, "it has a header and no rows"),
        ("a,b\n1,2\n2\n", None, "line 3: expected 2 columns as in the first line, got 1"),
        ("t,x\n1,2\n2,\n", None, "line 3: column 'x' must hold a finite number in every row, got nothing; fill or drop such rows"),
        ("t,x\n1,2\n2,nan\n", None, "line 3: column 'x'.*got 'nan'"),
        ("day,x\n2020-01-02,1\n2020-01-01,2\n", None, "line 3: the dates in column 'day' must rise from row to row, got '2020-01-01' after '2020-01-02'; sort the file, oldest first, without repeats"),
        ("# of a shop\nday,x\n2020-01,1\n2020-02,2\n2020-02,3\n2020-01,3\n", "x", "line 5: the dates in column 'day' .*got '2020-02' after '2020-02'"),
        ("t,x\n1,inf\n", None, "line 2: column 'x'.*got 'inf'"),
        ("t,x\n\n1,2\n2,many\n", None, "line 4: column 'x'.*got 'many'"),
        ("t,x,y\n1,2,3\n", None, "several columns hold numbers; name one of them with --column: x, y"),
        ("t,count\n1,2\n", "cuont", "no column 'cuont'. Did you mean 'count'. Columns: t, count"),
        ("t,x\na,b\n", None, "no column holds numbers. Columns: t, x"),
        (b"t,x\n1,2\n2,\xe9\n", None, "line 3: it must be text in UTF-8, got other bytes"),
        (b"t,x\n1,\x002\n", None, "line 2: it must be a text file, got zero bytes"),
    ],
    ids=str,
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, content, column, message):
    path = tmp_path / "s.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"^series {path}.*{message}"):
        series.read(path, column)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([1.0, 2.0, 3.0], ["4", "5"]),
        ([1.0], ["2", "3"]),
        (np.array(["2020-11", "2020-12"], "datetime64[s]"), ["2021-01-01", "2021-02-01"]),
        (np.array(["2020-01-31", "2020-02-07"], "datetime64[s]"), ["2020-02-14", "2020-02-21"]),
        (np.array(["1999-10-01", "2000-01-01", "2000-04-01"], "datetime64[s]"), ["2000-07-01", "2000-10-01"]),
    ],
    ids=str,
)
def test_the_index_goes_on(index, expected):
    assert [series.text(entry) for entry in series.after(np.asarray(index), 2)] == expected


# --- the baselines -----------------------------------------------------------------------------------------------------


def test_baselines_have_the_published_errors():
    fitted = SERIES.values[SERIES.times <= 1920]
    made = {
        "persistence": baselines.persistence(SERIES.values, 1),
        "AR(9)": baselines.autoregression(SERIES.values, baselines.fit_autoregression(fitted, 1, 9)),
    }
    targets = baselines.later(SERIES.values, 1)

    def errors(name):
        squares = (made[name] - targets)[:-1, 0] ** 2 / 1495.6
        years = SERIES.times[1:]
        return [round(squares[(years >= a) & (years <= b)].mean(), 3) for a, b in ((1921, 1955), (1956, 1979))]

    assert errors("persistence") == [0.427, 0.965]
    assert errors("AR(9)") == [0.126, 0.351]


def test_autoregression_finds_the_coefficients_of_a_series_made_by_it():
    clean = np.array([1.0, 4.0, 2.0])
    while len(clean) < 40:
        clean = np.append(clean, 7 + 0.6 * clean[-1] - 0.5 * clean[-2] + 0.2 * clean[-3])
    coefficients = baselines.fit_autoregression(clean, 2, 3)
    np.testing.assert_allclose(coefficients[0], [7, 0.6, -0.5, 0.2], rtol=1e-6)
    forecasts = baselines.autoregression(clean, coefficients)
    assert np.isnan(forecasts[:2]).all()
    np.testing.assert_allclose(forecasts[2:-1, 0], clean[3:], rtol=1e-9)
    np.testing.assert_allclose(forecasts[2:-2, 1], clean[4:], rtol=1e-9)


def test_the_order_follows_from_the_series():
    noise = np.random.default_rng(0).normal(size=3000)
    values = np.zeros(3000)
    for t in range(2, 3000):
        values[t] = 0.5 * values[t - 1] - 0.7 * values[t - 2] + noise[t]
    assert baselines.fit_autoregression(values, 1).shape[1] - 1 in (2, 3, 4)
    assert baselines.fit_autoregression(noise, 1).shape[1] - 1 < 12


def test_seasons():
    values = noisy(120)
    assert baselines.season(values) % 12 == 0
    made = baselines.seasonal(np.arange(10.0), 5, 3)
    np.testing.assert_array_equal(made[5], [3, 4, 5, 3, 4])  # of steps 6 to 10
    assert np.isnan(made[0, :2]).all()


# --- the networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment():
    return TASK.load(CONFIG)


@pytest.fixture(scope="module")
def params(experiment):
    params = TASK.init(CONFIG, experiment.constants, KEY)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params)


def by_hand(params, member, constants, values):
    """Forecasts one step ahead of one network, in float64."""
    rnn, head = ({k: np.asarray(v[member], np.float64) for k, v in params[layer].items()} for layer in ("rnn", "head"))
    mean, scale = constants["mean"][member], constants["scale"][member]
    h, made = np.zeros(3), []
    for value in values:
        z = np.array([(np.sqrt(value) - mean) / scale])
        h = np.tanh(z @ rnn["kernel"] + h @ rnn["recurrent_kernel"] + rnn["bias"])
        made.append(np.sqrt(value) + scale * (h @ head["kernel"] + head["bias"])[0])
    return np.array(made)


def test_a_forecast_is_the_formula_in_float64(experiment, params):
    roots = np.sqrt(SERIES.values[SERIES.times <= 1920])
    np.testing.assert_allclose(experiment.constants["mean"], roots.mean(), rtol=1e-6)
    np.testing.assert_allclose(experiment.constants["scale"], roots.std(), rtol=1e-6)
    made = TASK.predict(CONFIG, params, experiment.constants, None)
    expected = [np.maximum(by_hand(params, m, experiment.constants, SERIES.values), 0) ** 2 for m in range(2)]
    np.testing.assert_allclose([float(row[2]) for row in made.rows], np.mean(expected, 0)[10:], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose([float(row[3]) for row in made.rows], np.std(expected, 0)[10:], rtol=1e-2, atol=1e-3)
    assert [row[0] for row in made.rows] == [str(year) for year in range(1711, 2010)]
    assert [row[1] for row in made.rows] == [*(f"{x:.10g}" for x in SERIES.values[11:]), ""]


def test_the_loss_is_the_squared_error_of_the_fitted_steps_and_the_penalty(experiment, params):
    batch = experiment.batch(0, range(1))
    losses, _ = experiment.loss(params, (), batch, KEY)
    values = SERIES.values[SERIES.times <= 1920]
    for member in range(2):
        root = by_hand(params, member, experiment.constants, values)[:-1]
        errors = (root * np.abs(root) - values[1:]) / values.std()
        weights = (params["rnn"]["kernel"], params["rnn"]["recurrent_kernel"], params["head"]["kernel"])
        penalty = 0.003 * sum(float((np.asarray(w[member], np.float64) ** 2).sum()) for w in weights)
        np.testing.assert_allclose(losses[member], np.mean(errors[10:] ** 2) + penalty, rtol=1e-5)


@pytest.mark.parametrize("base", ["persistence", "autoregression"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_forecast_does_not_depend_on_later_steps(tmp_path, base, horizon):
    values = noisy(90)
    config = user_config(tmp_path / "s.csv", values, horizon=horizon, base=base)
    experiment = TASK.load(config)
    params = jax.tree.map(lambda x: x + 0.3, TASK.init(config, experiment.constants, KEY))
    altered = np.concatenate([values[:70], 20 - values[70:]])
    user_config(tmp_path / "t.csv", altered)
    before, after = (TASK.predict(config, params, experiment.constants, p) for p in (None, tmp_path / "t.csv"))
    index = [row[0] for row in before.rows]
    place = index.index("2005-11-01")  # step 70, the first that differs
    assert [row[2] for row in before.rows[: place + 1]] == [row[2] for row in after.rows[: place + 1]]
    assert before.rows[place + 1][2] != after.rows[place + 1][2]
    assert [row[0] for row in before.rows[-horizon:]] == [f"2007-{7 + h:02d}-01" for h in range(horizon)]


@pytest.mark.parametrize("base", ["persistence", "autoregression"])
def test_nothing_after_the_fitted_part_is_learned(tmp_path, base):
    values = noisy(100)
    learned, fitted = 64, 80  # of 100 steps 20 are a test; of the others the last fifth ends training

    def result(altered):
        experiment = TASK.load(user_config(tmp_path / "s.csv", altered, base=base))
        params = TASK.init(user_config(tmp_path / "s.csv", altered, base=base), experiment.constants, KEY)
        loss = experiment.loss(params, (), experiment.batch(3, range(1)), KEY)[0]
        return np.asarray(loss), experiment.constants, experiment.score(jax.tree.map(lambda x: x + 0.1, params))

    def altered_from(step):
        return np.concatenate([values[:step], 3 * values[step:] + 1])

    (loss, constants, score), after_fit, after_learned, before = map(
        result, (values, altered_from(fitted), altered_from(learned), altered_from(learned - 1))
    )
    np.testing.assert_array_equal(after_fit[0], loss)
    assert after_fit[2] == score
    for name, x in constants.items():
        np.testing.assert_array_equal(after_fit[1][name], x)
    np.testing.assert_array_equal(after_learned[0], loss)
    np.testing.assert_array_equal(after_learned[1]["mean"], constants["mean"])
    assert after_learned[2] != score
    assert not np.array_equal(before[0], loss)


def test_training_starts_at_the_linear_model(tmp_path):
    config = user_config(tmp_path / "s.csv", noisy(100), horizon=2, order=3)
    experiment = TASK.load(config)
    params = TASK.init(config, experiment.constants, KEY)
    assert experiment.score(params) == 1.0
    errors = experiment.report(params).scores["errors_by_horizon"]
    np.testing.assert_allclose(errors["ensemble"], errors["AR(3), least squares"], rtol=1e-4)


def test_scores_are_of_the_periods_asked_for(experiment, params):
    scores = experiment.report(params).scores
    made = np.mean([np.maximum(by_hand(params, m, experiment.constants, SERIES.values), 0) ** 2 for m in range(2)], 0)
    squares = (made[:-1] - SERIES.values[1:]) ** 2 / 1495.6
    years = SERIES.times[1:]
    expected = [squares[(years >= a) & (years <= b)].mean() for a, b in ((1921, 1955), (1956, 1979))]
    np.testing.assert_allclose(scores["errors"]["ensemble"], expected, rtol=1e-4)
    assert scores["next"]["index"] == ["2009"]


def test_each_block_is_forecast_by_networks_that_have_not_seen_it():
    config = dataclasses.replace(CONFIG, folds=3)
    experiment = TASK.load(config)
    assert experiment.members == 6
    counted = experiment.batch(0, range(1))["counted"][0, :, 0]  # (T - 1, M): the forecast of step t + 1 counts
    years = SERIES.times[1 : 1 + len(counted)]
    assert (counted[years > 1710].sum(axis=1) == 4).all()
    for fold in range(3):
        own = years[~counted[:, 2 * fold] & (years > 1710)]
        assert own.tolist() == list(range(1711 + 70 * fold, 1781 + 70 * fold))
    params = TASK.init(config, experiment.constants, KEY)
    np.testing.assert_array_equal(params["rnn"]["kernel"][0], params["rnn"]["kernel"][4])
    report = experiment.report(jax.tree.map(lambda x: x.at[2:4].add(1e3), params))  # the fold of 1781 to 1850
    alone = experiment.report(params)
    assert report.scores["errors"]["ensemble"] != alone.scores["errors"]["ensemble"]
    assert report.scores["errors"]["persistence"] == alone.scores["errors"]["persistence"]


def test_free_running_goes_on_from_its_own_forecasts(tmp_path):
    values = noisy(60)
    for base in ("persistence", "autoregression"):
        config = user_config(tmp_path / "s.csv", values, base=base, future=3)
        experiment = TASK.load(config)
        params = jax.tree.map(lambda x: x + 0.2, TASK.init(config, experiment.constants, KEY))
        free = forecast._free(config, experiment.constants, params, values)
        alone = dataclasses.replace(config, future=0)
        assert forecast._free(alone, experiment.constants, params, values).shape == (2, 0)
        for member in range(2):
            longer = values
            for step in range(3):
                following = forecast._ahead(config, experiment.constants, params, longer)[member, -1, 0]
                np.testing.assert_allclose(free[member, step], following, rtol=1e-5)
                longer = np.append(longer, following)


def test_windows_of_a_long_series(tmp_path):
    config = user_config(tmp_path / "s.csv", noisy(300), window=40, batch_size=8, base="persistence", inputs="levels")
    experiment = TASK.load(config)
    values = series.read(tmp_path / "s.csv").values
    whole = experiment.batch(5, range(8))
    assert whole["inputs"].shape == (8, 40)
    parts = [experiment.batch(5, rows) for rows in (range(3), range(3, 8))]
    for name, x in whole.items():
        np.testing.assert_array_equal(x, np.concatenate([part[name] for part in parts]))
    starts = set()
    for step in range(40):
        batch = experiment.batch(step, range(8))
        for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
            start = int(np.flatnonzero(values.astype(np.float32) == inputs[0])[0])
            starts.add(start)
            np.testing.assert_array_equal(inputs, values[start : start + 40].astype(np.float32))
            np.testing.assert_array_equal(targets[:, 0], values[start + 1 : start + 41].astype(np.float32))
    assert (min(starts), max(starts)) == (0, 192 - 41)  # 300 steps, 240 fitted, 192 learned from


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transform": "log"}, r"s.csv, line 5: column 'value' must be positive for transform='log', got 0.0"),
        ({"horizon": 30}, "too few rows, 60"),
        ({"window": 10}, "sequences have 10 steps .* the first 10 of which only warm up"),
        ({"order": 19}, "`order` must be at most 18, half of the steps .* got 19"),
        ({"fit_until": "1990"}, "`fit_until`: '1990' is no entry like those of .*2000-01-01"),
        ({"fit_until": "2000-06"}, "too few rows"),
        (
            {"tests": (("2000-01", "2000-05"),), "fit_until": "2003-12"},
            "`tests`: 2000-01 to 2000-05 must be steps of .* after",
        ),
        ({"column": "x"}, "no column 'x'"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_series(tmp_path, fields, message):
    values = np.abs(noisy(60))
    values[3] = 0
    with pytest.raises(ValueError, match=message):
        TASK.load(user_config(tmp_path / "s.csv", values, **fields))


@pytest.mark.parametrize(
    ("constant", "fields", "message"),
    [
        (slice(0, 60), {}, "lines 2 to 61: column 'value' must vary, got 7 in all rows: "),
        (slice(0, 38), {}, r"lines 2 to 39: .* in all rows to learn from \(fit_until, "),
        (slice(38, 48), {}, r"lines 40 to 49: .* in all rows that end training early \(validation_share\)"),
        (slice(48, 60), {}, r"lines 50 to 61: .* in all rows to be scored, 2004-01-01 to 2004-12-01 \(tests, "),
        (slice(50, 53), {"tests": (("2004-03", "2004-05"),)}, "lines 52 to 54: .* to be scored, 2004-03-2004-05 "),
        (
            slice(11, 48),
            {"folds": 2, "base": "persistence", "patience": 0},
            "lines 13 to 49: .* to be scored, 2 blocks",
        ),
    ],
    ids=str,
)
def test_what_is_constant_is_refused_before_training(tmp_path, constant, fields, message):
    values = noisy(60)
    values[constant] = 7
    config = user_config(tmp_path / "s.csv", values, **fields)
    with pytest.raises(ValueError, match=f"^series {config.data}, {message}.*nothing to learn or to score"):
        program.validate(config)


def test_a_constant_test_has_a_score_where_its_variance_is_given(tmp_path):
    values = noisy(60)
    values[48:] = 7
    config = user_config(tmp_path / "s.csv", values, variance=2.0)
    experiment = TASK.load(config)
    errors = experiment.report(TASK.init(config, experiment.constants, KEY)).scores["errors"]
    assert errors["persistence"] == [pytest.approx((values[47] - 7) ** 2 / 12 / 2)]


def test_the_column_that_a_run_was_fitted_to_is_found_in_other_files(tmp_path):
    config = user_config(tmp_path / "s.csv", noisy(60))
    experiment = TASK.load(config)
    params = TASK.init(config, experiment.constants, KEY)

    def predicted(name, head, *cells, column=None):
        lines = [f"{1900 + i},{','.join(each)}" for i, each in enumerate(zip(*cells, strict=True))]
        path = written(tmp_path / name, head, *lines)
        return TASK.predict(dataclasses.replace(config, column=column), params, experiment.constants, path)

    y, x = (list(map(str, noisy(30, seed))) for seed in (1, 2))
    alone = predicted("one.csv", "year,other name", y)
    assert predicted("two.csv", "year,x,value", x, y) == alone
    for column in (None, "value"):
        with pytest.raises(
            ValueError, match=r"two.csv: it has no column 'value', which the run was fitted to"
        ) as caught:
            predicted("two.csv", "year,x,z", x, y, column=column)
        assert str(caught.value).endswith(" Columns: year, x, z.")


@pytest.mark.parametrize(
    ("head", "base", "label"), [("month,value", "autoregression", "month"), (",value", "persistence", "index")]
)
def test_pictures_say_what_they_show(tmp_path, monkeypatch, head, base, label):
    drawn, save = {}, Figure.savefig

    def watched(figure, path, **options):
        drawn["curves" if "step" in figure.axes[0].get_xlabel() else "forecast"] = figure.axes
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", watched)
    config = user_config(tmp_path / "s.csv", noisy(60), base=base, steps=2, log_every=1, evaluate_every=1, horizon=2)
    path = tmp_path / "s.csv"
    path.write_text(path.read_text().replace("month,value", head))
    program.train(config, workdir=tmp_path / "run")
    assert [axes.get_xlabel() for axes in drawn["forecast"]] == [label, label]
    assert drawn["forecast"][1].get_title(loc="left") == (
        "Error of the test, 1 to 2 steps ahead: mean squared error / variance of the period"
    )
    (curves,) = drawn["curves"]
    assert curves.get_ylabel() == "loss and validation score"
    model = "linear model" if base == "autoregression" else "persistence"
    assert curves.get_legend_handles_labels()[1] == ["loss", f"validation: mean squared error / that of the {model}"]


def test_rows_are_counted_where_there_is_no_index(tmp_path):
    assert series.read(written(tmp_path / "s.csv", "value", "1.5", "2")).axis == "row"
    assert series.read(written(tmp_path / "s.csv", "2000,1.5", "2001,2")).axis == "index"


@pytest.mark.slow
def test_a_series_of_the_users_own(tmp_path, capsys):
    config = user_config(tmp_path / "s.csv", noisy(120))
    options = [
        "--data",
        config.data,
        "--horizon",
        "2",
        "--steps",
        "3",
        "--networks",
        "2",
        "--workdir",
        str(tmp_path / "r"),
    ]
    assert main(["train", "forecast", *options]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("persistence", "season of", "AR(", "ensemble", "value, 1 to 2 steps ahead"))
    assert main(["runs", str(tmp_path)]) == 0
    assert "error 2008-01-01 to 2009-12-01 " in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "r" / "forecast.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((tmp_path / "r" / "scores.json").read_text())
    assert scores["next"]["index"] == ["2010-01-01", "2010-02-01"]
    assert main(["predict", str(tmp_path / "r"), "--output", str(tmp_path / "o.csv")]) == 0
    assert (tmp_path / "o.csv").read_text().splitlines()[-1].startswith("2010-02-01,,")


@pytest.mark.slow
def test_the_bundled_config_beats_the_linear_model(tmp_path):
    errors = program.train("sunspots", workdir=tmp_path / "run").scores["errors"]
    for mine, linear, wanted in zip(errors["ensemble"], errors["AR(9), least squares"], (0.094, 0.266), strict=True):
        assert mine < linear
        np.testing.assert_allclose(mine, wanted, atol=0.002)
    of = program.load(tmp_path / "run")
    free = forecast._free(SUNSPOTS, of.constants, of.params, SERIES.values).mean(axis=0)
    assert free.min() >= 0
    assert free.max() < 200
    assert jnp.isfinite(free).all()
