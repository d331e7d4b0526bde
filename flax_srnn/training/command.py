"""The commands of the training program: options out of a config's fields, results to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import tyro

from flax_srnn import atomic
from flax_srnn.exits import wrote
from flax_srnn.identifiers import did_you_mean
from flax_srnn.training import config as configs
from flax_srnn.training import metrics, processes, program, tasks
from flax_srnn.training.config import Training

__all__ = ["cluster", "connected", "predict", "resume", "runs", "sample", "show_help", "train"]

_ROWS_SHOWN = 30
_HEARTBEAT_SECONDS = 20
_OPTIONS = (
    "--workdir", "--overwrite", "--validate", "--resume", "--coordinator", "--processes", "--process-id", "--heartbeat-timeout",
)  # fmt: skip


def cluster(
    coordinator: str | None, count: int | None, process_id: int | None, heartbeat: int | None
) -> processes.Cluster | None:
    """Where processes meet, by the options of `flax-srnn train`; None: this is the only one."""
    if coordinator is None:
        if (count, process_id, heartbeat) != (None, None, None):
            raise ValueError("--processes, --process-id and --heartbeat-timeout need --coordinator HOST:PORT, or auto.")
        return None
    heartbeat = _HEARTBEAT_SECONDS if heartbeat is None else heartbeat
    if not 1 <= heartbeat <= 3600:
        raise ValueError(f"--heartbeat-timeout must be at least 1 and at most 3600 seconds, got {heartbeat}.")
    if coordinator == "auto":
        if (count, process_id) != (None, None):
            raise ValueError(
                "--coordinator auto finds the number of processes out: give no --processes or --process-id."
            )
        return processes.Cluster(None, None, None, heartbeat)
    found = re.fullmatch(r"(?:\[[^\s\]]+\]|[^\s:]+):(\d+)", coordinator)
    if not found or not 0 < int(found[1]) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT of process 0, or auto, got {coordinator!r}.")
    if count is None or process_id is None:
        raise ValueError(f"--coordinator {coordinator} needs --processes N and --process-id I.")
    if count < 1 or not 0 <= process_id < count:
        raise ValueError(f"--process-id must be at least 0 and less than --processes, got {process_id} of {count}.")
    return processes.Cluster(coordinator, count, process_id, heartbeat)


@contextlib.contextmanager
def connected(cluster: processes.Cluster | None) -> Iterator[None]:
    """What is done together with the other processes of a cluster."""
    if cluster is not None:
        processes.connect(cluster)
    try:
        yield
    except processes.Lost:
        if cluster is not None:  # JAX ends this process as soon as it knows which one is lost, and its watcher says so
            time.sleep(cluster.heartbeat + 10)
        raise


def train(name: str | None, options: list[str], workdir: Path | None, *, overwrite: bool, only_validate: bool) -> None:
    """`flax-srnn train NAME [options of the config]`."""
    if name is None:
        raise ValueError(f"train needs the NAME of a config or task: {_names()} (see `flax-srnn train --help`)")
    if overwrite and workdir is None:
        raise ValueError("--overwrite replaces the run in --workdir, which was not given.")
    task, config = program.find(name)
    config = _with_options(config, options, f"flax-srnn train {name}")
    if only_validate:
        program.validate(config)
        if processes.is_first():
            print(f"{name}: the config, of the task {task}, and its data can be used.")
    else:
        program.start(task, config, Path(name).stem, workdir, overwrite=overwrite)


def resume(folder: Path) -> None:
    """`flax-srnn train --resume RUN`."""
    program.resume(folder)


def runs(folder: Path) -> None:
    """`flax-srnn runs [DIR]`."""
    metrics.print_table(program.runs(folder), metrics.console())


def predict(folder: Path, input: Path | None, output: Path | None, *, overwrite: bool) -> None:
    """`flax-srnn predict RUN`: all rows to a CSV file, or the last ones to stdout."""
    if output is not None and output.exists() and not overwrite:
        raise FileExistsError(f"output {output}: it exists already; --overwrite replaces it.")
    table = program.predict(folder, input)
    if output is None:
        left_out = len(table.rows) - _ROWS_SHOWN
        metrics.print_table(table._replace(rows=table.rows[-_ROWS_SHOWN:]), metrics.console())
        if left_out > 0:
            print(f"the last {_ROWS_SHOWN} of {len(table.rows)} rows; --output FILE writes all")
        return
    with atomic.writing_file(output) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([table.headings, *table.rows])
    print(wrote(output, f"{len(table.rows)} rows of {', '.join(table.headings)}"))


def sample(folder: Path, prompt: str, length: int, temperature: float, seed: int) -> None:
    """`flax-srnn sample RUN`."""
    written = program.sample(folder, prompt, length, temperature, seed)
    metrics.console().print(written, soft_wrap=True, markup=False)


def show_help(name: str | None, parser: argparse.ArgumentParser) -> None:
    """All options: those of the command, and those of a config with its values as defaults."""
    parser.print_help()
    if name is None:
        print("\nconfigs, which take --OPTION for each of their fields (flax-srnn train NAME --help):")
        for each, path in configs.bundled().items():
            print(f"  {each:<16}{_first_line(path)}")
        print("tasks, with their defaults:")
        for each in tasks.names():
            task = tasks.get(each)
            print(
                f"  {each:<16}{(task.config.__doc__ or '').splitlines()[0]}"
                + (f" --data: {task.data}" if task.data else "")
            )
        return
    print(f"\noptions of {name}, in place of its values:\n")
    with contextlib.suppress(SystemExit):
        tyro.cli(type(config := program.find(name)[1]), args=["--help"], default=config, prog=f"flax-srnn train {name}")


def _with_options(config: Training, options: list[str], prog: str) -> Training:
    """The config with what the command line says; every error in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given, unknown = tyro.cli(
                type(config), args=options, default=config, prog=prog, return_unknown_args=True, add_help=False
            )
    except SystemExit as error:
        raise ValueError(f"{_in_one_line(said.getvalue())} (see `{prog} --help`)") from error
    if unknown:
        first = next((each for each in unknown if each.startswith("-")), unknown[0])
        flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(config)]
        flags += _OPTIONS
        wrong = first.partition("=")[0].replace("_", "-")
        hint = did_you_mean(wrong, flags) or _by_initials(wrong, flags)
        raise ValueError(f"unknown argument {first!r}.{hint} (see `{prog} --help`)")
    return given


def _by_initials(wrong: str, flags: list[str]) -> str:
    """--lr is --learning-rate."""
    meant = [each for each in flags if "".join(word[0] for word in each[2:].split("-")) == wrong.lstrip("-")]
    return f" Did you mean {meant[0]!r}?" if meant else ""


def _in_one_line(said: str) -> str:
    """What tyro says, without its frame and title."""
    lines = [re.sub(r"[^\x20-\x7e]|\s{2,}", " ", line).strip() for line in said.splitlines()]
    body = [line for line in lines if line and not set(line) <= {"-", " "}]
    ends = next(
        (i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full helptext"))), len(body)
    )
    return " ".join(body[1:ends]) or "the arguments cannot be read."


def _names() -> str:
    return ", ".join(dict.fromkeys([*configs.bundled(), *tasks.names()]))


def _first_line(path: Path) -> str:
    found = re.search(r'"""(.*)', path.read_text(encoding="utf-8"))
    return found[1] if found else ""
