"""The command line `flax-srnn`: train, predict, convert, benchmark.

Bad input ends in one line on stderr and exit code 2. What a command needs is imported when the command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flax_srnn import benchmark
from flax_srnn.identifiers import did_you_mean
from flax_srnn.training.config import SunspotsConfig, bundled, load_config, settings

_EXTRAS = {"matplotlib": "train", "h5py": "interop"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0, or 1 if a measurement failed, 2 after bad input, 130 after Ctrl-C."""
    try:
        parsed, unknown = _parser().parse_known_args(argv)
        if unknown:
            raise ValueError(_not_understood(unknown, parsed.parser))
        parsed.run(parsed)
    except KeyboardInterrupt:
        print("flax-srnn: interrupted; nothing was saved.", file=sys.stderr)
        return 130
    except (OSError, ValueError, ModuleNotFoundError, benchmark.MeasurementError) as error:
        print(f"flax-srnn: error: {_in_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, benchmark.MeasurementError) else 2
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors reach `main`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="flax-srnn",
        description="The programs of flax_srnn, the SimpleRNN family for JAX and Flax.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("flax-srnn"))
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="fit the forecaster of a config, print its errors, save a run",
        description="Fits an ensemble of recurrent networks to the sunspot numbers 1700-1920, tests it one year ahead on "
        "1921-1955 and 1956-1979 and saves a run: parameters, config, metrics and forecast.png.",
        epilog="Example: flax-srnn train sunspots --units 8 --seeds 4",
        allow_abbrev=False,
    )
    train.add_argument(
        "config", metavar="CONFIG", help=f"a Python file that defines `config`, or one of: {', '.join(bundled())}"
    )
    place = train.add_mutually_exclusive_group()
    place.add_argument(
        "--workdir", metavar="DIR", type=Path, help="new folder of the run (default: runs/CONFIG-1, -2, ...)"
    )
    place.add_argument(
        "--validate", action="store_true", help="only print the errors inside 1711-1920 by which settings are chosen"
    )
    overrides = train.add_argument_group("settings, in place of the config's")
    for field, kind in settings(SunspotsConfig):
        overrides.add_argument(
            f"--{field.name}",
            type=kind,
            metavar=kind.__name__.upper(),
            help=field.metadata["help"],
            default=argparse.SUPPRESS,
        )
    train.set_defaults(run=_train, parser=train)

    predict = commands.add_parser(
        "predict",
        help="forecast with a saved run",
        description="Forecasts every year of a series one year ahead, and the year after its last, with a saved run.",
        epilog="Example: flax-srnn predict runs/sunspots-1 --input my.csv --output forecasts.csv",
        allow_abbrev=False,
    )
    predict.add_argument("folder", metavar="RUN", type=Path, help="folder that `flax-srnn train` wrote")
    predict.add_argument(
        "--input",
        metavar="CSV",
        type=Path,
        help="yearly counts with the columns year,value, without gaps (default: the sunspot numbers 1700-2008)",
    )
    predict.add_argument(
        "--output", metavar="CSV", type=Path, help="file to write; without it, the last years are printed"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    predict.set_defaults(run=_predict, parser=predict)

    convert = commands.add_parser(
        "convert",
        help="convert a Keras file",
        description="Converts between the files of Keras and of Flax.",
        allow_abbrev=False,
    )
    convert.add_argument("input", metavar="IN", type=Path, help="file to read")
    convert.add_argument("output", metavar="OUT", type=Path, help="file to write")
    convert.set_defaults(run=_convert, parser=convert)

    compare = commands.add_parser(
        "benchmark",
        help="time this library and its peers side by side",
        description="Times this library and its peers side by side, and writes the figures to a new folder.",
        allow_abbrev=False,
    )
    benchmark.add_arguments(compare)
    compare.set_defaults(run=benchmark.run, parser=compare)
    return parser


def _train(parsed: argparse.Namespace) -> None:
    config = load_config(parsed.config)
    given = {field.name: vars(parsed)[field.name] for field, _ in settings(SunspotsConfig) if field.name in parsed}
    config = dataclasses.replace(config, **given)
    from flax_srnn.training import program

    if parsed.validate:
        program.validate(config)
    else:
        program.train(config, Path(parsed.config).stem, parsed.workdir)


def _predict(parsed: argparse.Namespace) -> None:
    from flax_srnn.training import program

    program.predict(parsed.folder, parsed.input, parsed.output, overwrite=parsed.overwrite)


def _convert(parsed: argparse.Namespace) -> None:
    from flax_srnn.interop.keras import convert

    convert(parsed.input, parsed.output)


def _not_understood(arguments: list[str], parser: argparse.ArgumentParser) -> str:
    """The message for arguments that no option took: the first of them, and the option nearest to it."""
    first = next((argument for argument in arguments if argument.startswith("-")), arguments[0])
    options = re.findall(r"--[\w-]+", parser.format_usage())
    hint = did_you_mean("--" + first.lstrip("-").partition("=")[0], options)
    return f"unknown argument {first!r}.{hint} (see `{parser.prog} --help`)"


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0]
        if package in _EXTRAS:
            return f"{package} is not installed: pip install 'flax-srnn[{_EXTRAS[package]}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
