"""Proof that the tests bite: puts each fault of `mutations.py` by itself into a copy of the library and runs its tests there.

`python tests/mutate.py [NAME ...] [--results FILE] [--jobs N]` prints a table "mutation | caught by" and ends with 1 if a
fault went unnoticed. What the results file has already is not run again, so it can be stopped and started anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mutations import MUTATIONS, Mutation

_NOTHING_RAN = 5  # pytest's exit code
ROOT = Path(__file__).parent.parent
NEEDED = ("flax_srnn", "tests", "configs", "pyproject.toml", "README.md")
UNMUTATED = "unmutated"


class InvalidError(Exception):
    """The tests neither passed nor failed: nothing is known about them."""


def copied(folder: Path, mutation: Mutation | None) -> None:
    """The library and its tests in `folder`, with a fault."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    if mutation:
        path = folder / "flax_srnn" / mutation.file
        path.write_text(mutation.applied(path.read_text()))


def first_failure(mutation: Mutation | None, nodes: Iterable[str], seconds: float) -> str | None:
    """The first of the tests that fails with the fault, or None.

    Raises:
      InvalidError: they could not be run: no such test, an error before the first test, no end.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copied(folder, mutation)
        # First on the path, before an editable installation.
        environment = os.environ | {"PYTHONPATH": str(folder)}
        where = "import importlib.util; print(importlib.util.find_spec('flax_srnn').origin)"
        found = _run([sys.executable, "-c", where], folder, environment, seconds).stdout.strip()
        if found != str(folder / "flax_srnn" / "__init__.py"):
            raise InvalidError(f"{found} would be imported, not the copy")
        report = folder / "report.xml"
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
        options += ["-o", "junit_family=xunit1"]  # which has room for what tests record
        for marked in ("not slow", ""):
            command = [sys.executable, "-m", "pytest", *options, "-m", marked, *nodes]
            done = _run(command, folder, environment, seconds)
            if done.returncode != _NOTHING_RAN:
                break
        failed = _failed(report) if done.returncode == 1 else None
        if done.returncode != 0 and failed is None:
            raise InvalidError("\n".join((done.stdout + done.stderr).splitlines()[-8:]))
        return failed


def _run(command: Sequence[str], folder: Path, environment: Any, seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise InvalidError(f"no end after {seconds:.0f} seconds") from error


def _failed(report: Path) -> str | None:
    """The test that failed; an error while it was set up is no failure."""
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None:
            return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
    return None


def tested(mutation: Mutation, seconds: float) -> dict[str, Any]:
    """What became of a fault; "error" instead of "caught" if its tests could not be run."""
    start = time.monotonic()
    result: dict[str, Any] = {"name": mutation.name, "digest": mutation.digest}
    try:
        by = first_failure(mutation, mutation.nodes, seconds)
        result |= {"caught": by is not None, "by": by}
    except InvalidError as error:
        result["error"] = str(error)
    return result | {"seconds": round(time.monotonic() - start, 1)}


def chosen(names: Sequence[str]) -> list[Mutation]:
    """The faults of these names, or all."""
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        raise SystemExit(f"there is no mutation called {', '.join(sorted(unknown))}.")
    return [mutation for mutation in MUTATIONS if not names or mutation.name in names]


def table(mutations: Sequence[Mutation], results: dict[int, dict[str, Any]]) -> str:
    """What was caught by what, in Markdown."""
    lines = ["| mutation | caught by |", "|---|---|"]
    for mutation in mutations:
        result = results.get(mutation.digest, {})
        by = result.get("by") or ("**nothing**" if "caught" in result else "not valid")
        lines.append(f"| {mutation.name} | {by.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutations")
    parser.add_argument(
        "--results", type=Path, default=Path("mutations.jsonl"), help="JSON lines; begin another after a change"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one mutation")
    given = parser.parse_args(arguments)
    mutations = chosen(given.names)
    entries = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []

    def note(entry: dict[str, Any]) -> None:
        with given.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    # A test that fails anyway proves nothing.
    passed = {node for entry in entries if entry["name"] == UNMUTATED for node in entry["passed"]}
    by_file: dict[str, dict[str, None]] = {}
    for node in (node for mutation in mutations for node in mutation.nodes if node not in passed):
        by_file.setdefault(node.split("::")[0], {})[node] = None
    for file, nodes in by_file.items():
        start = time.monotonic()
        try:
            by = first_failure(None, nodes, 6 * given.timeout)
        except InvalidError as error:
            by = str(error)
        if by:
            print(f"the tests do not pass as they are: {by}")
            return 1
        seconds = round(time.monotonic() - start, 1)
        note({"name": UNMUTATED, "passed": list(nodes), "seconds": seconds})
        print(f"{UNMUTATED}: {file} passes ({seconds:.0f} s)", flush=True)

    results = {entry["digest"]: entry for entry in entries if "digest" in entry}
    missing = [mutation for mutation in mutations if mutation.digest not in results]
    pool = ThreadPoolExecutor(given.jobs)
    try:
        for future in as_completed([pool.submit(tested, mutation, given.timeout) for mutation in missing]):
            result = future.result()
            results[result["digest"]] = result
            if "error" not in result:  # which may be over the next time
                note(result)
            outcome = f"not valid: {result['error']}" if "error" in result else f"caught by {result['by']}"
            outcome = outcome if result.get("caught", True) else "SURVIVED"
            print(f"{result['name']}: {outcome} ({result['seconds']:.0f} s)", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)

    print(f"\n{table(mutations, results)}\n")
    survivors = [mutation.name for mutation in mutations if not results[mutation.digest].get("caught")]
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} caught" + "".join(f"\nnot: {s}" for s in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
