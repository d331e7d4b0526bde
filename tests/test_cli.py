"""The command line: what it writes, what it prints, and that bad input ends in one line and exit code 2."""

import csv
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flax_srnn.__main__ import main
from flax_srnn.training import plots, program
from flax_srnn.training.tasks.forecast import SHIPPED

TINY = ["train", "sunspots", "--units", "2", "--networks", "3", "--steps", "4"]


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
        (["--help"], ["train", "runs", "predict", "sample", "convert", "show", "benchmark"]),
        (["runs", "--help"], ["DIR"]),
        (["sample", "--help"], ["RUN", "--prompt", "--length", "--temperature", "--seed"]),
        (["predict", "--help"], ["RUN", "--input", "--output", "--overwrite"]),
        (["convert", "--help"], ["IN", "OUT", ".keras", ".h5", "without an ending", ".weights.h5"]),
        (["show", "--help"], ["FILE", "runs nothing of it"]),
        (["benchmark", "--help"], ["--quick", "--sections", "--output", "--torch-python"]),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_help_of_train_lists_configs_and_with_a_name_every_option(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    words = ["NAME", "--workdir", "--resume", "--validate", "sunspots", "digits", "adding", "characters", "forecast"]
    assert [word for word in words if word not in out] == []
    for name in ("sunspots", "digits"):
        assert main(["train", name, "--help"]) == 0
        out = capsys.readouterr().out
        fields = dataclasses.asdict(program.find(name)[1])
        options = ["--" + field.replace("_", "-") for field in fields]
        assert [option for option in options if option not in out] == []
        assert "--workdir" in out
        assert f"(default: {fields['learning_rate']:g})" in out


def test_a_reader_who_has_seen_enough_is_no_error():
    """`flax-srnn show FILE | head`: the exit code is that of a closed pipe, and stderr is empty."""
    show = "import sys; from flax_srnn import __main__ as m; m.benchmark.run = lambda _: print('x' * 10**6); sys.exit(m.main(['benchmark']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(show)} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("141", "")


def test_the_module_is_a_program():
    done = subprocess.run([sys.executable, "-m", "flax_srnn", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_train_writes_numbered_runs_with_everything_in_them(here, capsys):
    assert main(TINY) == 0
    out = capsys.readouterr().out
    for words in (
        "persistence",
        "0.4268",
        "0.9647",
        "AR(9)",
        "0.1265",
        "0.3506",
        "3 single networks",
        "ensemble",
        "sunspots-1",
    ):
        assert words in out
    first = here / "runs" / "sunspots-1"
    *_, said = out.partition("wrote runs/sunspots-1\n")
    *files, then = said.splitlines()
    assert sorted(line.split()[0] for line in files) == sorted(path.name for path in first.iterdir())
    assert then.startswith("next: flax-srnn predict runs/sunspots-1 ")
    before = contents(first)
    assert {"config.json", "curves.png", "forecast.png", "metrics.jsonl", "params.npz", "scores.json"} < before.keys()
    about = json.loads(before["config.json"])
    assert (about["task"], about["config"]["units"], about["config"]["steps"]) == ("forecast", 2, 4)
    single = np.array(json.loads(before["scores.json"])["single_networks"])
    assert single.shape == (2, 3)
    for value in single.mean(axis=1):
        assert f"{value:.4g} +- " in out
    assert main(TINY) == 0
    second = contents(here / "runs" / "sunspots-2")
    assert contents(first) == before
    for name in ("config.json", "scores.json", "params.npz"):
        assert second[name] == before[name]
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["sunspots-1", "sunspots-2"]


@pytest.mark.slow
def test_a_config_of_the_users_own(here, capsys):
    Path("mine.py").write_text(
        "from flax_srnn.training.tasks.forecast import Forecast\n"
        "config = Forecast(data='sunspots', units=2, steps=1, networks=1, seed=3)\n"
    )
    assert main(["train", "mine.py", "--seed", "5"]) == 0
    assert json.loads(Path("runs/mine-1/config.json").read_text())["config"]["seed"] == 5


def test_a_file_of_the_users_is_executed_only_where_its_name_says_python(here):
    for name in ("forecast", "mine"):
        config_file(name, "raise SystemExit")()
    assert program.find("forecast")[0] == "forecast"
    with pytest.raises(ValueError, match=re.escape("mine is no config (a .py file)")):
        program.find("mine")


def test_validate_checks_and_saves_nothing(here, capsys):
    before = contents(here)
    assert main([*TINY, "--validate"]) == 0
    assert "can be used" in capsys.readouterr().out
    assert main([*TINY, "--validate", "--data", "no.csv"]) == 2
    assert contents(here) == before


def test_predict_prints_the_last_years_and_the_next(here, capsys):
    assert main(["predict", "trained"]) == 0
    out = capsys.readouterr().out
    assert all(str(year) in out for year in range(1988, 2010))
    assert "2.9" in out


def test_predict_on_a_series_of_the_users_own(here, capsys):
    assert main(["predict", "trained", "--output", "all.csv"]) == 0
    assert capsys.readouterr().out == "wrote all.csv: 299 rows of index, observed, forecast, spread\n"
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == list(range(1711, 2010))
    lines = [line for line in SHIPPED["sunspots"].read_text().splitlines() if line[0] != "#"]
    Path("same.csv").write_text("Year, Value\r\n" + "\r\n".join(lines[1:]) + "\r\n\r\n", encoding="utf-8-sig")
    assert main(["predict", "trained", "--input", "same.csv", "--output", "same-out.csv"]) == 0
    assert Path("same-out.csv").read_bytes() == Path("all.csv").read_bytes()
    Path("short.csv").write_text("year,value\n" + "".join(f"{2000 + k},{10 * k}\n" for k in range(11)))
    assert main(["predict", "trained", "--input", "short.csv", "--output", "all.csv", "--overwrite"]) == 0
    assert [row["index"] for row in csv.DictReader(Path("all.csv").read_text().splitlines())] == ["2011"]
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def series_file(name, *rows):
    def make():
        Path(name).write_text("\n".join(rows) + "\n")

    return make


def config_file(name, *lines):
    return series_file(name, "from flax_srnn.training.tasks.forecast import Forecast as C", *lines)


YEARS = [f"{year},{year % 11}" for year in range(1900, 1930)]
BROKEN = {  # name: (arguments, what the line must say, what makes the bad input)
    "no command": ([], "required: COMMAND", None),
    "unknown command": (["trian"], "invalid choice: 'trian'", None),
    "no name": (["train"], "needs the NAME of a config or task: adding, digits", None),
    "misspelt config": (["train", "sunspot"], "'sunspot'.*one of: .*sunspots.*Did you mean 'sunspots'", None),
    "missing config file": (["train", "configs/none.py"], "'configs/none.py' is neither a config file", None),
    "config is a folder": (["train", "."], "neither a config file", None),
    "data for a config": (["train", "s.csv"], "error: s.csv is no config .a .py file.; a series of your own: flax-srnn train forecast --data s.csv$", series_file("s.csv", "year,value")),
    "sequences for a config": (["train", "s.npz"], "; sequences of your own: flax-srnn train classify --data s.npz$", series_file("s.npz", "PK")),
    "text for a config": (["train", "s.txt"], "; text of your own: flax-srnn train characters --data s.txt$", series_file("s.txt", "Once")),
    "config with a syntax error": (["train", "c.py"], "c.py: SyntaxError", config_file("c.py", "config = C(")),
    "config is not text": (["train", "c.py"], "config c.py: ", lambda: Path("c.py").write_bytes(b"\xff\xfe\x00\x01")),
    "config that fails": (["train", "c.py"], "c.py: ZeroDivisionError", config_file("c.py", "config = 1 / 0")),
    "config that exits": (["train", "c.py"], "c.py: SystemExit", config_file("c.py", "raise SystemExit(0)")),
    "config without config": (["train", "c.py"], "must define `config", config_file("c.py", "configs = 1")),
    "config of another type": (["train", "c.py"], "got config = {'units': 2}", config_file("c.py", "config = {'units': 2}")),
    "config with an unknown key": (
        ["train", "c.py"], "'unit'.*Did you mean 'units'", config_file("c.py", "config = C(unit=4)")
    ),
    "config with a bad value": (
        ["train", "c.py"], "`units` must be a whole number.*got 2.5", config_file("c.py", "config = C(units=2.5)")
    ),
    "config with text for a number": (
        ["train", "c.py"], "`l2` must be a number.*got '0.1'", config_file("c.py", "config = C(l2='0.1')")
    ),
    "task without its data": (["train", "forecast"], "`data`: forecast needs a series: --data FILE.csv; the config sunspots", None),
    "unknown option": (["train", "sunspots", "--unit", "4"], "'--unit'.*Did you mean '--units'", None),
    "an option of another program": (["train", "sunspots", "--lr", "4"], "'--lr'.*Did you mean '--learning-rate'", None),
    "abbreviated option": (["train", "sunspots", "--learn", "4"], "unknown argument '--learn'", None),
    "unknown option, nothing near": (["train", "sunspots", "--zzz=1"], "unknown argument '--zzz=1'", None),
    "two names": (["train", "sunspots", "digits"], "unknown argument 'digits'", None),
    "option without a value": (["train", "sunspots", "--units"], "Missing value for argument '--units'", None),
    "text for a number": (["train", "sunspots", "--units", "four"], "--units: .*'four'", None),
    "fraction of a unit": (["train", "sunspots", "--units", "4.5"], "--units: .*'4.5'", None),
    "no units": (["train", "sunspots", "--units", "0"], "`units`.*at least 1.*got 0", None),
    "too many units": (["train", "sunspots", "--units", "9999"], "`units`.*at most 1024.*got 9999", None),
    "negative penalty": (["train", "sunspots", "--l2", "-1"], "`l2`.*at least 0.*got -1", None),
    "infinite penalty": (["train", "sunspots", "--l2", "inf"], "`l2`.*got inf", None),
    "learning rate NaN": (["train", "sunspots", "--learning-rate", "nan"], "`learning_rate`.*got nan", None),
    "learning rate zero": (["train", "sunspots", "--learning-rate", "0"], "`learning_rate`.*at least 1e-12.*got 0", None),
    "no steps": (["train", "sunspots", "--steps", "0"], "`steps`.*got 0", None),
    "negative seed": (["train", "sunspots", "--seed", "-1"], "`seed`.*got -1", None),
    "unknown optimizer": (["train", "sunspots", "--optimizer", "adma"], "'adma'.*'adam', 'adamw'", None),
    "more shards than devices": (["train", "sunspots", "--model-shards", "7"], "`model_shards` must divide .*8, got 7", None),
    "an existing run": ([*TINY, "--workdir", "trained"], "workdir trained: it exists already.*--resume trained", None),
    "workdir is a file": ([*TINY, "--workdir", "f"], "workdir f: it exists already", series_file("f", "")),
    "workdir below a file": ([*TINY, "--workdir", "f/run"], "f", series_file("f", "")),
    "workdir where nothing can be": ([*TINY, "--workdir", "/proc/run"], "error: /proc/run: ", None),
    "overwriting nothing": ([*TINY, "--overwrite"], "--overwrite replaces the run in --workdir", None),
    "resume and more": ([*TINY, "--resume", "trained"], "--resume takes everything from the run", None),
    "resume of a finished run": (["train", "--resume", "trained"], "run trained: it is finished", None),
    "resume of nothing": (["train", "--resume", "nowhere"], "run nowhere: nowhere does not exist", None),
    "no folder of runs": (["runs", "nowhere"], "nowhere: there is no such folder of runs in /", None),
    "a run that writes no text": (["sample", "trained"], "run trained: the task forecast writes no text", None),
    "no run": (["predict"], "required: RUN", None),
    "missing run": (["predict", "nowhere"], "run nowhere: nowhere does not exist", None),
    "not a run": (["predict", "empty"], "empty/config.json does not exist", lambda: Path("empty").mkdir()),
    "run that is not finished": (["predict", "trained"], "run trained: it is not finished; go on with: flax-srnn train --resume trained$", lambda: Path("trained/scores.json").unlink()),
    "sample of a run that is not finished": (["sample", "trained"], "it is not finished; go on with: ", lambda: unfinished("trained")),
    "run without parameters": (["predict", "trained"], "run trained: params.npz is damaged or missing: .*No such file", lambda: Path("trained/params.npz").unlink()),
    "run with damaged parameters": (
        ["predict", "trained"], "params.npz is damaged", lambda: Path("trained/params.npz").write_bytes(b"PK\x03\x04 no zip")
    ),
    "run with a damaged config": (["predict", "trained"], "config.json cannot be used", lambda: Path("trained/config.json").write_text("{")),
    "run with another's config": (
        ["predict", "trained"], "does not fit config.json: .*rnn/kernel",
        lambda: Path("trained/config.json").write_text(Path("trained/config.json").read_text().replace('"units": 2', '"units": 3')),
    ),
    "run that is not finite": (["predict", "trained"], "not finite", lambda: spoil_parameters("trained/params.npz")),
    "missing series": (["predict", "trained", "--input", "no.csv"], "series no.csv: there is no such file in /.*[^.]\\.$", None),
    "empty series": (["predict", "trained", "--input", "s.csv"], "series s.csv: it is empty", series_file("s.csv", "")),
    "series of bytes": (["predict", "trained", "--input", "s.csv"], "UTF-8", lambda: Path("s.csv").write_bytes(b"a,b\n1,\xff")),
    "not a number": (["predict", "trained", "--input", "s.csv"], "s.csv, line 3: .*'many'", series_file("s.csv", "year,value", "1900,1", "1901,many")),
    "missing value": (["predict", "trained", "--input", "s.csv"], "line 2: column .value. must .*got nothing", series_file("s.csv", "year,value", "1900,", "1901,2")),
    "negative count": (["predict", "trained", "--input", "s.csv"], "line 2: .*at least 0 for transform='sqrt', got -1", series_file("s.csv", "year,value", "1900,-1")),
    "too short": (["predict", "trained", "--input", "s.csv"], "at least 11 rows are needed.*got 10", series_file("s.csv", "year,value", *YEARS[:10])),
    "an existing output": (["predict", "trained", "--output", "o.csv"], "output o.csv: it exists already", series_file("o.csv", "mine")),
    "output in a missing folder": (["predict", "trained", "--output", "no/o.csv"], "error: no/o.csv: No such file or directory$", None),
    "output that is a folder": (["predict", "trained", "--output", "trained", "--overwrite"], "error: trained: Is a directory$", None),
    "conversion without output": (["convert", "a.keras"], "required: OUT", None),
    "conversion of a missing file": (["convert", "none.keras", "out.msgpack"], "none.keras", None),
    "unknown benchmark option": (["benchmark", "--no-such-option"], "no-such-option", None),
}  # fmt: skip


def unfinished(run):
    """As a run is that was stopped in training."""
    for name in ("scores.json", "params.npz"):
        Path(run, name).unlink()


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


@pytest.mark.parametrize("package", ["matplotlib.axes", "tyro", "grain", "orbax.checkpoint"])
def test_a_missing_extra_is_named_before_the_work_starts(here, capsys, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("flax_srnn.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(TINY) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = f"flax-srnn: error: {package.partition('.')[0]} is not installed: pip install 'flax-srnn[train]'\n"
    assert captured.err == expected
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_whose_picture_fails_can_go_on(here, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as broken:
        broken.setattr(plots, "draw_forecasts", fail)
        assert main([*TINY, "--workdir", "new/run"]) == 1
    assert "No space left on device; go on with: flax-srnn train --resume new/run" in capsys.readouterr().err
    assert not Path("new/run/scores.json").exists()
    assert main(["train", "--resume", "new/run"]) == 0
    assert Path("new/run/scores.json").read_bytes() == Path("trained/scores.json").read_bytes()
