"""The command line `flax-srnn`: train, runs, predict, sample, convert, show, benchmark.

Bad input ends in one line on stderr and exit code 2. What a command needs is imported when the command runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flax_srnn import benchmark, worker
from flax_srnn.exits import Failed, Interrupted, wrote
from flax_srnn.identifiers import did_you_mean

_MAX_MESSAGE = 4000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_EXTRAS = dict.fromkeys(("matplotlib", "grain", "orbax", "tyro", "tensorboardX", "sklearn"), "train") | {
    "h5py": "interop",
    "safetensors": "interop",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0, or 1 if a run or measurement failed, 2 after bad input, 128 and more after a signal."""
    try:
        parsed, unknown = _parser().parse_known_args(argv)
        if parsed.run is _train:  # which has an option for every field of a config
            return _train(parsed, unknown, sys.argv[1:] if argv is None else argv)
        if unknown:
            raise ValueError(_not_understood(unknown, parsed.parser))
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads the output, `head`, say, has seen enough. Python would complain when it flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Interrupted as interrupted:
        print(f"flax-srnn: {interrupted}", file=sys.stderr)
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        print("flax-srnn: interrupted; nothing was saved.", file=sys.stderr)
        return 130
    except (Failed, benchmark.MeasurementError) as error:
        print(f"flax-srnn: error: {_in_one_line(error)}", file=sys.stderr)
        return 1
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"flax-srnn: error: {_in_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, OSError) and error.errno in _NO_ROOM else 2
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
        "train", help="fit a model, print its scores, save a run", add_help=False, allow_abbrev=False
    )
    train.description = (
        "Fits the model of a config to its data, prints the scores and saves a run: parameters, scores, pictures."
    )
    train.add_argument(
        "name", metavar="NAME", nargs="?", help="a config, a task with its defaults, or the path of a config file (.py)"
    )
    train.add_argument(
        "--workdir", metavar="DIR", type=Path, help="new folder of the run (default: runs/NAME-1, -2, ...)"
    )
    train.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    train.add_argument("--validate", action="store_true", help="only check the config and the data")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped")
    several = train.add_argument_group("one of several processes, each of which is started with this command")
    several.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of process 0; auto: JAX finds out (Slurm, Kubernetes, TPU pods, ...)",
    )
    several.add_argument("--processes", metavar="N", type=int, help="their number")
    several.add_argument("--process-id", metavar="I", type=int, help="of this one, from 0")
    several.add_argument(
        "--heartbeat-timeout", metavar="SECONDS", type=int, help="silence after which one is lost (default: 20)"
    )
    train.add_argument(
        "-h", "--help", action="store_true", help="show this, or with NAME every option of the config with its default"
    )
    train.set_defaults(run=_train, parser=train)

    runs = commands.add_parser("runs", help="list runs with their scores", allow_abbrev=False)
    runs.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="(default: runs)")
    runs.set_defaults(run=_runs, parser=runs)

    predict = commands.add_parser(
        "predict",
        help="what a finished run says about data",
        description="What a finished run says about the data of a file, or about its own: forecasts, classes, bits.",
        epilog="Example: flax-srnn predict runs/sunspots-1 --input my.csv --output forecasts.csv",
        allow_abbrev=False,
    )
    predict.add_argument("folder", metavar="RUN", type=Path, help="folder that `flax-srnn train` wrote")
    predict.add_argument("--input", metavar="FILE", type=Path, help="of the kind that the run was fitted to")
    predict.add_argument(
        "--output", metavar="CSV", type=Path, help="file to write; without it, the last rows are printed"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    predict.set_defaults(run=_predict, parser=predict)

    sample = commands.add_parser("sample", help="let a finished run write text", allow_abbrev=False)
    sample.add_argument("folder", metavar="RUN", type=Path, help="folder that `flax-srnn train` wrote")
    sample.add_argument("--prompt", metavar="TEXT", default="", help="what the text begins with (default: nothing)")
    sample.add_argument("--length", metavar="N", type=int, default=500, help="characters to write (default: 500)")
    sample.add_argument("--temperature", metavar="X", type=float, default=1.0, help="0: the likeliest (default: 1.0)")
    sample.add_argument("--seed", metavar="N", type=int, default=0, help="(default: 0)")
    sample.set_defaults(run=_sample, parser=sample)

    convert = commands.add_parser(
        "convert",
        help="convert a Keras model to Flax, or its weights back",
        description=(
            "Converts a Keras model to a folder for Flax, or to weights for Keras.\n\n"
            "  IN   a whole model in a .keras, .h5 or .hdf5 file, or a folder that was written before\n"
            "  OUT  a name without an ending: a folder with variables.msgpack (of flax.serialization), config.json and\n"
            "       metadata.json\n"
            "       NAME.weights.h5: weights for Keras's own load_weights (needs h5py, of the extra [interop])"
        ),
        epilog="`flax-srnn show IN` says beforehand what can be converted. From Python: flax_srnn.interop.keras.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    convert.add_argument("input", metavar="IN", type=Path, help="file or folder to read")
    convert.add_argument("output", metavar="OUT", type=Path, help="new folder or new .weights.h5 file to write")
    convert.set_defaults(run=_convert, parser=convert)

    show = commands.add_parser(
        "show",
        help="what is in a Keras file",
        description="Lists the layers of a Keras file with their arrays, and says what can be loaded here; runs nothing of it.",
        allow_abbrev=False,
    )
    show.add_argument(
        "input", metavar="FILE", type=Path, help="a .keras, .weights.h5 or .h5 file, or what convert wrote"
    )
    show.set_defaults(run=_show, parser=show)

    compare = commands.add_parser(
        "benchmark",
        help="time this library and its peers side by side",
        description="Times this library and its peers side by side, and writes the figures to a new folder.",
        allow_abbrev=False,
    )
    benchmark.add_arguments(compare)
    compare.set_defaults(run=benchmark.run, parser=compare)
    return parser


def _train(parsed: argparse.Namespace, options: list[str], argv: Sequence[str]) -> int:
    from flax_srnn.training import command

    if parsed.help:
        command.show_help(parsed.name, parsed.parser)
        return 0
    if parsed.resume is not None and (parsed.name or options or parsed.workdir or parsed.overwrite or parsed.validate):
        raise ValueError("--resume takes everything from the run: give nothing else with it but where processes meet.")
    cluster = command.cluster(parsed.coordinator, parsed.processes, parsed.process_id, parsed.heartbeat_timeout)
    if cluster is not None and not worker.is_worker():
        return worker.watch(argv)
    with command.connected(cluster):
        if parsed.resume is not None:
            command.resume(parsed.resume)
        else:
            command.train(
                parsed.name, options, parsed.workdir, overwrite=parsed.overwrite, only_validate=parsed.validate
            )
    return 0


def _runs(parsed: argparse.Namespace) -> None:
    from flax_srnn.training import command

    command.runs(parsed.folder)


def _predict(parsed: argparse.Namespace) -> None:
    from flax_srnn.training import command

    command.predict(parsed.folder, parsed.input, parsed.output, overwrite=parsed.overwrite)


def _sample(parsed: argparse.Namespace) -> None:
    from flax_srnn.training import command

    command.sample(parsed.folder, parsed.prompt, parsed.length, parsed.temperature, parsed.seed)


def _convert(parsed: argparse.Namespace) -> None:
    from flax_srnn.interop.keras import convert, describe
    from flax_srnn.interop.keras.files import FILES

    convert(parsed.input, parsed.output)
    layers = [layer for layer in describe(parsed.output) if layer.arrays]
    arrays = [shape for layer in layers for shape in layer.arrays.values()]
    about = f"{len(layers)} layers with {len(arrays)} arrays, {sum(map(math.prod, arrays)):,} parameters"
    if parsed.output.is_dir():
        load = "in Python: from flax_srnn.interop.keras import load_model; module, variables = load_model"
    else:
        load = "in Keras: model.load_weights"
    print(wrote(parsed.output, about, FILES, f"{load}({str(parsed.output)!a})"))


def _show(parsed: argparse.Namespace) -> None:
    from flax_srnn.interop.keras.description import summary

    print(summary(parsed.input))


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
    return _plain(str(error))


def _plain(text: str) -> str:
    """On one line of bounded length, without control characters: what a message quotes from a file must not steer a terminal."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 3]}..."


if __name__ == "__main__":
    sys.exit(worker.serve(main))
