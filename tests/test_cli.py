"""The command line: what it writes, what it prints, and that bad input ends in one line and exit code 2."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flax_srnn.__main__ import main
from flax_srnn.training import plots, run
from flax_srnn.training.data import SUNSPOTS, read_series
from flax_srnn.training.forecast import WARM_UP, one_year_ahead

TINY = ["train", "sunspots", "--units", "2", "--seeds", "3", "--steps", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "trained"
    assert main([*TINY, "--workdir", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, trained):
    """A working folder with a run in `trained/`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "trained")
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_names_every_command(capsys):
    for arguments, words in (
        (["--help"], ["train", "predict", "convert", "benchmark"]),
        (["train", "--help"], ["CONFIG", "--workdir", "--validate", "--units", "--learning_rate", "sunspots"]),
        (["predict", "--help"], ["RUN", "--input", "--output", "--overwrite"]),
        (["convert", "--help"], ["IN", "OUT"]),
        (["benchmark", "--help"], ["--quick", "--sections", "--output", "--torch-python"]),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_the_module_is_a_program():
    done = subprocess.run([sys.executable, "-m", "flax_srnn", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_train_writes_numbered_runs_with_everything_in_them(here, capsys):
    assert main(TINY) == 0
    out = capsys.readouterr().out
    for words in (
        "persistence",
        "0.427",
        "0.965",
        "AR(9)",
        "0.126",
        "0.351",
        "3 single networks",
        "ensemble",
        "sunspots-1",
    ):
        assert words in out
    first = here / "runs" / "sunspots-1"
    assert sorted(contents(first)) == ["config.json", "forecast.png", "metrics.json", "params.npz"]
    assert (first / "forecast.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((first / "config.json").read_text())
    assert (config["units"], config["seeds"], config["steps"]) == (2, 3, 4)
    metrics = json.loads((first / "metrics.json").read_text())
    single = np.array(list(metrics["single_networks"].values()))
    assert single.shape == (2, 3)
    errors = {row: list(values.values()) for row, values in metrics["average_relative_variance"].items()}
    np.testing.assert_allclose(errors["single_mean"], single.mean(axis=1))
    np.testing.assert_allclose(errors["single_std"], single.std(axis=1))

    before = contents(first)
    assert main(TINY) == 0
    second = contents(here / "runs" / "sunspots-2")
    assert contents(first) == before
    assert second["config.json"] == before["config.json"]
    with np.load(here / "runs" / "sunspots-2" / "params.npz") as again, np.load(first / "params.npz") as once:
        for name in once:
            np.testing.assert_array_equal(again[name], once[name])
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["sunspots-1", "sunspots-2"]


@pytest.mark.slow
def test_a_config_of_the_users_own(here, capsys):
    Path("mine.py").write_text(
        "from flax_srnn.training.config import SunspotsConfig\n"
        "config = SunspotsConfig(units=2, l2=0, learning_rate=0.01, steps=1, seeds=1, seed=3)\n"
    )
    assert main(["train", "mine.py", "--seed", "5"]) == 0
    assert json.loads(Path("runs/mine-1/config.json").read_text())["seed"] == 5


@pytest.mark.slow
def test_validate_prints_errors_and_saves_nothing(here, capsys):
    before = contents(here)
    assert main([*TINY, "--validate"]) == 0
    out = capsys.readouterr().out
    for words in ("1711-1920", "persistence", "AR(9)", "0.1504", "4 steps"):
        assert words in out
    assert contents(here) == before


def test_predict_prints_the_last_years_and_the_next(here, capsys):
    assert main(["predict", "trained"]) == 0
    out = capsys.readouterr().out
    assert all(str(year) in out for year in range(1988, 2010))
    assert "2.9" in out


def test_predict_writes_what_the_saved_networks_forecast(here):
    assert main(["predict", "trained", "--output", "out.csv"]) == 0
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    series = read_series()
    forecasts = one_year_ahead(run.load(Path("trained"))[1], series.counts)[:, WARM_UP:]
    assert [int(row["year"]) for row in rows] == list(range(1711, 2010))
    assert [row["observed"] for row in rows] == [*map(str, series.counts[WARM_UP + 1 :]), ""]
    np.testing.assert_allclose([float(row["forecast"]) for row in rows], forecasts.mean(axis=0), atol=0.005)
    np.testing.assert_allclose([float(row["spread"]) for row in rows], forecasts.std(axis=0), atol=0.005)


def test_predict_on_a_series_of_the_users_own(here, capsys):
    assert main(["predict", "trained", "--output", "all.csv"]) == 0
    lines = [line for line in SUNSPOTS.read_text().splitlines() if line[0] != "#"]
    Path("same.csv").write_text("Year, Value\r\n" + "\r\n".join(lines[1:]) + "\r\n\r\n", encoding="utf-8-sig")
    assert main(["predict", "trained", "--input", "same.csv", "--output", "same-out.csv"]) == 0
    assert Path("same-out.csv").read_bytes() == Path("all.csv").read_bytes()
    Path("short.csv").write_text("year,value\n" + "".join(f"{2000 + k},{10 * k}\n" for k in range(11)))
    assert main(["predict", "trained", "--input", "short.csv", "--output", "all.csv", "--overwrite"]) == 0
    assert [row["year"] for row in csv.DictReader(Path("all.csv").read_text().splitlines())] == ["2011"]
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def series_file(name, *rows):
    def make():
        Path(name).write_text("\n".join(rows) + "\n")

    return make


def config_file(name, *lines):
    return series_file(name, "from flax_srnn.training.config import SunspotsConfig as C", *lines)


GOOD = "units=2, l2=0.0, learning_rate=0.01, steps=4, seeds=2, seed=0"
YEARS = [f"{year},{year % 11}" for year in range(1900, 1930)]
BROKEN = {  # name: (arguments, what the line must say, what makes the bad input)
    "no command": ([], "required: COMMAND", None),
    "unknown command": (["trian"], "invalid choice: 'trian'", None),
    "no config": (["train"], "required: CONFIG", None),
    "misspelt config": (["train", "sunspot"], "'sunspot'.*one of: sunspots.*Did you mean 'sunspots'", None),
    "missing config file": (["train", "configs/none.py"], "'configs/none.py' is neither a file", None),
    "config is a folder": (["train", "."], "neither a file", None),
    "config with a syntax error": (["train", "c.py"], "c.py: SyntaxError", config_file("c.py", "config = C(")),
    "config is not text": (["train", "c.py"], "config c.py: ", lambda: Path("c.py").write_bytes(b"\xff\xfe\x00\x01")),
    "config that fails": (["train", "c.py"], "c.py: ZeroDivisionError", config_file("c.py", "config = 1 / 0")),
    "config that exits": (["train", "c.py"], "c.py: SystemExit", config_file("c.py", "raise SystemExit(0)")),
    "config without config": (["train", "c.py"], "must define `config", config_file("c.py", "configs = 1")),
    "config of another type": (["train", "c.py"], "got config = {'units': 2}", config_file("c.py", "config = {'units': 2}")),
    "config lacks a value": (["train", "c.py"], "missing.*'units'", config_file("c.py", "config = C(l2=0.1)")),
    "config with an unknown key": (
        ["train", "c.py"], "'unit'.*Did you mean 'units'", config_file("c.py", f"config = C({GOOD}, unit=4)")
    ),
    "config with a bad value": (
        ["train", "c.py"], "`units` must be a whole number.*got 2.5", config_file("c.py", f"config = C({GOOD.replace('2', '2.5', 1)})")
    ),
    "config with text for a number": (
        ["train", "c.py"], "`l2` must be a number.*got '0.1'", config_file("c.py", f"config = C({GOOD.replace('0.0,', repr('0.1') + ',')})")
    ),
    "unknown option": (["train", "sunspots", "--unit", "4"], "'--unit'.*Did you mean '--units'", None),
    "abbreviated option": (["train", "sunspots", "--learn", "4"], "unknown argument '--learn'", None),
    "unknown option, nothing near": (["train", "sunspots", "--zzz=1"], "unknown argument '--zzz=1'", None),
    "key=value": (["train", "sunspots", "seeds=4"], "'seeds=4'.*Did you mean '--seeds'", None),
    "option without a value": (["train", "sunspots", "--units"], "--units: expected one argument", None),
    "text for a number": (["train", "sunspots", "--units", "four"], "--units: invalid int value: 'four'", None),
    "fraction of a unit": (["train", "sunspots", "--units", "4.5"], "--units: invalid int value: '4.5'", None),
    "no units": (["train", "sunspots", "--units", "0"], "`units`.*at least 1.*got 0", None),
    "too many units": (["train", "sunspots", "--units", "9999"], "`units`.*at most 1024.*got 9999", None),
    "negative penalty": (["train", "sunspots", "--l2", "-1"], "`l2`.*at least 0.*got -1", None),
    "infinite penalty": (["train", "sunspots", "--l2", "inf"], "`l2`.*got inf", None),
    "learning rate NaN": (["train", "sunspots", "--learning_rate", "nan"], "`learning_rate`.*got nan", None),
    "learning rate zero": (["train", "sunspots", "--learning_rate", "0"], "`learning_rate`.*more than 0.*got 0", None),
    "no steps": (["train", "sunspots", "--steps", "0"], "`steps`.*got 0", None),
    "no seeds": (["train", "sunspots", "--seeds", "0"], "`seeds`.*got 0", None),
    "negative seed": (["train", "sunspots", "--seed", "-1"], "`seed`.*got -1", None),
    "an existing run": ([*TINY, "--workdir", "trained"], "workdir trained: it exists already", None),
    "workdir is a file": ([*TINY, "--workdir", "f"], "workdir f: it exists already", series_file("f", "")),
    "workdir below a file": ([*TINY, "--workdir", "f/run"], "f", series_file("f", "")),
    "workdir where nothing can be": ([*TINY, "--workdir", "/proc/run"], "/proc/", None),
    "validate into a folder": ([*TINY, "--validate", "--workdir", "x"], "not allowed with", None),
    "no run": (["predict"], "required: RUN", None),
    "missing run": (["predict", "nowhere"], "run nowhere: nowhere does not exist", None),
    "not a run": (["predict", "empty"], "empty/config.json does not exist", lambda: Path("empty").mkdir()),
    "run without parameters": (["predict", "trained"], "params.npz does not exist", lambda: Path("trained/params.npz").unlink()),
    "run with damaged parameters": (
        ["predict", "trained"], "params.npz is damaged", lambda: Path("trained/params.npz").write_bytes(b"PK\x03\x04 no zip")
    ),
    "run with a damaged config": (["predict", "trained"], "config.json is damaged", lambda: Path("trained/config.json").write_text("{")),
    "run with another's config": (
        ["predict", "trained"], "does not fit config.json: .*params/rnn/kernel",
        lambda: Path("trained/config.json").write_text(Path("trained/config.json").read_text().replace('"units": 2', '"units": 3')),
    ),
    "run that is not finite": (["predict", "trained"], "not finite", lambda: spoil_parameters("trained/params.npz")),
    "missing series": (["predict", "trained", "--input", "no.csv"], "series no.csv: there is no such file", None),
    "empty series": (["predict", "trained", "--input", "s.csv"], "got an empty file", series_file("s.csv", "")),
    "series of bytes": (["predict", "trained", "--input", "s.csv"], "UTF-8", lambda: Path("s.csv").write_bytes(b"\xff\xfe\x00")),
    "wrong columns": (["predict", "trained", "--input", "s.csv"], "must be 'year,value', got 'time,n'", series_file("s.csv", "time,n", *YEARS)),
    "no header": (["predict", "trained", "--input", "s.csv"], "must be 'year,value', got '1900,8'", series_file("s.csv", *YEARS)),
    "a third column": (["predict", "trained", "--input", "s.csv"], "line 2: expected two columns", series_file("s.csv", "year,value", "1900,1,2")),
    "not a number": (["predict", "trained", "--input", "s.csv"], "line 3: .*'1901,many'", series_file("s.csv", "year,value", "1900,1", "1901,many")),
    "missing value": (["predict", "trained", "--input", "s.csv"], "line 2: .*'1900,'", series_file("s.csv", "year,value", "1900,")),
    "a fraction of a year": (["predict", "trained", "--input", "s.csv"], "line 2: .*'1900.5,1'", series_file("s.csv", "year,value", "1900.5,1")),
    "an impossible year": (["predict", "trained", "--input", "s.csv"], "line 2: a year must lie", series_file("s.csv", "year,value", "99999999999999999999,1")),
    "NaN": (["predict", "trained", "--input", "s.csv"], "line 2: a count must be .*'nan'", series_file("s.csv", "year,value", "1900,nan")),
    "infinity": (["predict", "trained", "--input", "s.csv"], "line 2: a count must be .*'inf'", series_file("s.csv", "year,value", "1900,inf")),
    "negative count": (["predict", "trained", "--input", "s.csv"], "line 2: a count must be .*'-1'", series_file("s.csv", "year,value", "1900,-1")),
    "a gap": (["predict", "trained", "--input", "s.csv"], "line 4: .*got 1903 after 1901", series_file("s.csv", "year,value", "1900,1", "1901,1", "1903,1")),
    "a year twice": (["predict", "trained", "--input", "s.csv"], "line 3: .*got 1900 after 1900", series_file("s.csv", "year,value", "1900,1", "1900,1")),
    "too short": (["predict", "trained", "--input", "s.csv"], "at least 11 years are needed, got 10", series_file("s.csv", "year,value", *YEARS[:10])),
    "an existing output": (["predict", "trained", "--output", "o.csv"], "output o.csv: it exists already", series_file("o.csv", "mine")),
    "output in a missing folder": (["predict", "trained", "--output", "no/o.csv"], "no", None),
    "conversion without output": (["convert", "a.keras"], "required: OUT", None),
    "conversion of a missing file": (["convert", "none.keras", "out.msgpack"], "none.keras", None),
    "unknown benchmark option": (["benchmark", "--no-such-option"], "no-such-option", None),
}  # fmt: skip


def spoil_parameters(file):
    with np.load(file) as arrays:
        spoilt = {name: np.full_like(value, np.nan) for name, value in arrays.items()}
    np.savez(file, **spoilt)


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_is_one_line_and_exit_code_2(name, here, capsys):
    arguments, expected, prepare = BROKEN[name]
    if prepare:
        prepare()
    before = contents(here)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flax-srnn: error: ")
    assert re.search(expected, captured.err), captured.err
    assert {name: data for name, data in contents(here).items() if "__pycache__" not in name} == before


def test_a_missing_extra_is_named_before_the_work_starts(here, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "flax_srnn.training.plots")
    monkeypatch.delattr("flax_srnn.training.plots")
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert main(TINY) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "flax-srnn: error: matplotlib is not installed: pip install 'flax-srnn[train]'\n"


@pytest.mark.parametrize(
    ("problem", "code"), [(OSError(28, "No space left on device", "x"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_run_that_fails_while_it_is_written_leaves_nothing(here, capsys, monkeypatch, problem, code):
    def fail(*arguments):
        raise problem

    monkeypatch.setattr(plots, "draw_forecasts", fail)
    assert main([*TINY, "--workdir", "new/run"]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert list(Path("new").iterdir()) == []
