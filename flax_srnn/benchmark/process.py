"""One measuring process of the benchmark: what is timed, and how.

Everything is cases × models × a measurement. A case (`Case`) is shapes and options; `problem` makes its arrays, the same
in every process. A model (`Model`) is a function of these arrays, so that forward and training are derived once for all;
what makes it is a contestant, and the contestants are handed in. The models of a case take turns, in another order every
round, and the median of each is kept; before anything is timed, their outputs or gradients are compared with this library's.

PyTorch runs in a process of its own, because its spinning threads slow down their neighbours. There this file is executed
as a script, in an environment that may have neither JAX nor this package: at module level it imports NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "GRID", "LONG", "NARROW", "NETWORKS", "OPTIONS", "OTHER", "OURS", "RULES", "SECTIONS", "TOLERANCE",
    "TORCH_SECTIONS", "Case", "Contestants", "MeasurementError", "Model", "Plan", "Problem", "Record", "Section",
    "Shape", "alternate", "check_agreement", "fingerprint", "grid", "label", "problem", "process", "program", "race",
]  # fmt: skip

OURS = "flax-srnn"
"""The contestant that is this library."""

Shape = tuple[int, int, int, int]
"""B (batch), T (time steps), I (input features), H (units)."""

GRID: tuple[Shape, ...] = (
    (32, 100, 32, 64),
    (32, 100, 64, 256),
    (64, 256, 128, 512),
    (1, 1000, 16, 64),
    (8, 2000, 8, 32),
    (128, 50, 512, 1024),
    (16, 784, 1, 128),
    (256, 28, 28, 128),
    (1, 10000, 8, 128),
    (4, 512, 256, 256),
)
"""The shapes whose geometric mean counts: small and large batches, short and long sequences, few and many units."""
OTHER: tuple[Shape, ...] = (
    (1, 50, 4, 8),
    (1, 20, 2, 4),
    (1, 16, 1, 16),
    (1, 100, 2, 64),
    (2, 16, 3, 16),
    (3, 20, 5, 7),
    (4, 30, 2, 8),
    (1, 300, 1, 200),
    (64, 1, 32, 64),
    (512, 12, 3, 16),
)
"""Tiny and odd shapes, where a rule that suits the grid may fail."""
LONG: Shape = (8, 100_000, 8, 128)
"""The shape of the memory section: it is compiled, never executed."""
NARROW: Shape = (1, 8192, 8, 128)
"""The shape of the chunked solver: one long sequence, and a step too small for two cores."""

TOLERANCE = {"bfloat16": 0.1, "torch, bfloat16": 0.1}  # eight bits of mantissa, through a whole recurrence
"""Relative difference from the first contestant's arrays up to which a contestant computes the same; else 1e-3, or on a GPU,
whose products of float32 round to ten bits of mantissa (TF32), 0.02."""


class Case(NamedTuple):
    """Shapes and options of one computation."""

    shape: Shape
    activation: str = "tanh"
    mask: bool = False
    recurrent_dropout: float = 0.0
    last: bool = False  # the last output only
    dtype: str = "float32"
    implementation: str | None = None  # of this library
    tuning: tuple[tuple[str, int], ...] = ()  # fields of this library's `Tuning` that are not as measured
    time_major: bool = False
    network: str = "layer"  # or "stack" (3 layers), "cells" (one RNN of 3 cells), "bidirectional"


Model = Callable[[Any, Any, Any, Any], Any]
"""(params, inputs (B, T, I), mask (B, T) or None, key) -> outputs (B, T, H), or (B, H) for the last output only."""
Contestants = Mapping[str, Callable[[Case], Model]]
"""By name, what makes the model of a case; this library is `OURS`."""


class Problem(NamedTuple):
    """The arrays of a case, float32."""

    params: list[dict[str, Any]]  # one entry per layer, cell or direction
    inputs: Any
    mask: Any
    key: Any
    cotangent: Any  # the loss is the sum of outputs * cotangent


def problem(case: Case) -> Problem:
    """Random arrays; recurrent kernels are 0.9 times orthogonal, so that states stay bounded."""
    batch, steps, features, units = case.shape
    rng = np.random.default_rng(0)
    widths = {"layer": [features], "bidirectional": [features] * 2}.get(case.network, [features, units, units])
    width = 2 * units if case.network == "bidirectional" else units

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    params = [
        {
            "kernel": normal(fan_in, units) / np.float32(math.sqrt(fan_in)),
            "recurrent_kernel": np.float32(0.9) * np.linalg.qr(normal(units, units))[0],
            "bias": np.float32(0.1) * normal(units),
        }
        for fan_in in widths
    ]
    lengths = rng.integers((steps + 1) // 2, steps, (batch, 1), endpoint=True)
    return Problem(
        params=params,
        inputs=normal(batch, steps, features),
        mask=np.arange(steps) < lengths if case.mask else None,
        key=np.array([1, 0], np.uint32),
        cotangent=normal(batch, width) if case.last else normal(batch, steps, width),
    )


class MeasurementError(RuntimeError):
    """There is no result, for a process failed or a contestant computes something else."""


@dataclasses.dataclass
class Record:
    """One comparison.

    Attributes:
      group: what is measured; one table of the report.
      case: the row of that table.
      unit: "s", or what else is counted.
      values: the figures of each contestant, one per process; the first contestant is what the others are divided by.
      fingerprint: of the first one's outputs or gradients, for comparison with a peer in another process.
    """

    group: str
    case: str
    unit: str
    values: dict[str, list[float]]
    fingerprint: list[tuple[float, float]] = dataclasses.field(default_factory=list)


# --- measurements -----------------------------------------------------------------------------------------------------


def program(model: Model, train: bool) -> Callable[..., Any]:
    """Of the arrays of a `Problem`: the outputs, or (loss, gradients of params and inputs)."""
    import jax
    import jax.numpy as jnp

    def forward(params: Any, x: Any, mask: Any, key: Any, cotangent: Any) -> Any:
        return model(params, x, mask, key)

    def loss(params: Any, x: Any, mask: Any, key: Any, cotangent: Any) -> Any:
        return jnp.vdot(model(params, x, mask, key).astype(cotangent.dtype), cotangent)

    return jax.value_and_grad(loss, argnums=(0, 1)) if train else forward


def alternate(calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 5) -> dict[str, list[float]]:
    """Median seconds of each call; they take turns for about `seconds`, and at least `rounds` times.

    Every round is shuffled: who runs before whom moves the ratio of small programs by a tenth.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, fills caches
        # One sample takes about a millisecond, or one call. A program's first calls take longer than it does: taken as its time,
        # they gave the first contestant fewer repetitions, and up to a quarter more time at 1x16x1x16.
        times = max(1, round(5e-3 / _elapsed(call, 1)))
        repeats[name] = max(1, round(1e-3 * times / _elapsed(call, times)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < deadline:
        for name in random.sample(list(calls), len(calls)):
            samples[name].append(_elapsed(calls[name], repeats[name]) / repeats[name])
        rounds -= 1
    return {name: [statistics.median(taken)] for name, taken in samples.items()}


def _elapsed(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - start


def fingerprint(arrays: Iterable[Any]) -> list[tuple[float, float]]:
    """Of each array a random projection and the norm: small enough to leave the process, and they differ where arrays do."""
    prints = []
    for array in arrays:
        flat = np.asarray(array, np.float32).ravel()
        direction = np.random.default_rng(1).standard_normal(flat.size, dtype=np.float32)
        prints.append((float(np.dot(flat, direction)), float(np.linalg.norm(flat))))
    return prints


def check_agreement(record: Record, name: str, theirs: Sequence[tuple[float, float]], on_gpu: bool = False) -> None:
    """A contestant that computes something else is an error, not a result.

    Raises:
      MeasurementError: the fingerprints say that some array differs from the first contestant's, relative to its norm.
    """
    ours = record.fingerprint
    errors = [np.abs(np.subtract(a, b)) / max(a[1], 1e-30) for a, b in zip(ours, theirs, strict=True)]
    error = np.max(errors)
    allowed = TOLERANCE.get(name, 0.02 if on_gpu else 1e-3)
    if not error <= allowed:  # nor may it be NaN
        first = next(iter(record.values))
        raise MeasurementError(
            f"{record.group}, {record.case}: {name} is {error:.1g} from {first} (allowed: {allowed:g})"
        )


def race(group: str, case: Case, models: Mapping[str, Model], train: bool, seconds: float) -> Record:
    """Times the models on the arrays of a case, after comparing what they return."""
    import jax

    arrays = jax.device_put(problem(case))
    record = Record(group, label(case.shape), "s", {name: [] for name in models})
    calls = {}
    for name, model in models.items():
        run = jax.jit(program(model, train))
        calls[name] = lambda run=run: jax.block_until_ready(run(*arrays))
        prints = fingerprint(jax.tree.leaves(run(*arrays)[1] if train else run(*arrays)))
        record.fingerprint = record.fingerprint or prints
        check_agreement(record, name, prints, on_gpu=jax.default_backend() == "gpu")
    record.values = alternate(calls, seconds)
    return record


# --- sections: what is compared with what -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one process measures; travels as JSON.

    Attributes:
      sections: keys of `SECTIONS`, or of others that are handed in.
      peers: who is compared with this library.
      grid, other: shapes of training, forward, bfloat16, tuning and the native kernel.
      few: shapes of the options, the networks and compilation.
      narrow: shapes of the chunked solver.
      quick: the length section takes two activations only.
      seconds: for one comparison; at least five rounds are measured whatever they take.
      torch_device: not empty in the process of PyTorch, which measures only itself.
      limit: seconds after which no further comparison begins; with a limit, training and forward leave out a comparison
        that fails. Both are said. None: there is no limit, and a failure ends the process.
    """

    sections: Sequence[str]
    peers: Sequence[str]
    grid: Sequence[Shape]
    other: Sequence[Shape]
    few: Sequence[Shape]
    narrow: Sequence[Shape]
    quick: bool
    seconds: float
    torch_device: str = ""
    limit: float | None = None


def label(shape: Shape) -> str:
    """32x100x32x64."""
    return "x".join(map(str, shape))


def _models(plan: Plan, contestants: Contestants, case: Case) -> dict[str, Model]:
    """This library's model of a case, then those of the peers that are wanted and run in this process."""
    # Of the peers only Keras has every option and network; the others run what all of them have.
    everywhere = case == Case(case.shape, last=case.last)
    peers = [peer for peer in plan.peers if peer in contestants and (everywhere or peer == "keras")]
    return {name: contestants[name](case) for name in (OURS, *peers)}


def grid(plan: Plan, what: str) -> Iterator[tuple[str, Shape]]:
    """The shapes of the grid and the others, each with its group of records."""
    yield from ((what, shape) for shape in plan.grid)
    yield from ((f"{what}, tiny and odd shapes", shape) for shape in plan.other)


def _plain(what: str, plan: Plan, contestants: Contestants) -> Iterator[Record]:
    for group, shape in grid(plan, what):
        try:
            case = Case(shape)
            yield race(group, case, _models(plan, contestants, case), what == "training", plan.seconds)
        except Exception as error:
            if plan.limit is None:
                raise
            print(f"  left out: {group}, {label(shape)}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)


def _variants(variants: Mapping[str, Mapping[str, Any]], plan: Plan, contestants: Contestants) -> Iterator[Record]:
    for name, options in variants.items():
        for shape in plan.few:
            case = Case(shape, **options)
            yield race(f"training, {name}", case, _models(plan, contestants, case), True, plan.seconds)


def _bfloat16(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    for shape in (*plan.grid, *plan.other):
        case = Case(shape)
        models = {dtype: contestants[OURS](case._replace(dtype=dtype)) for dtype in ("float32", "bfloat16")}
        yield race("training in half precision", case, models, True, plan.seconds)


def _tuning(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    for what in ("forward", "training"):
        for group, shape in grid(plan, what):
            tunings = {"every rule": (), **{f"without {rule}": (field,) for rule, field in RULES.items()}}
            models = {name: contestants[OURS](Case(shape, tuning=tuning)) for name, tuning in tunings.items()}
            yield race(f"{group}, a rule taken out", Case(shape), models, what == "training", plan.seconds)


def _chunked(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    # The network of `problem` forgets: each step shrinks a difference of states to less than 0.9 of it.
    for shape in plan.narrow:
        models = {name: contestants[OURS](Case(shape, implementation=name)) for name in ("chunked", "scan")}
        for what in ("forward", "training"):
            yield race(f"{what} in chunks of time", Case(shape), models, what == "training", plan.seconds)


def _memory(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    import jax

    batch, steps, features, units = LONG
    for last in (False, True):
        case = Case(LONG, last=last)
        outputs = (batch, units) if last else (batch, steps, units)
        arrays = problem(case._replace(shape=(batch, 1, features, units)))._replace(
            inputs=jax.ShapeDtypeStruct((batch, steps, features), np.float32),
            cotangent=jax.ShapeDtypeStruct(outputs, np.float32),
        )
        values = {}
        for name, model in _models(plan, contestants, case).items():
            usage: Any = jax.jit(program(model, train=True)).lower(*arrays).compile().memory_analysis()
            values[name] = [usage.temp_size_in_bytes / (4 * batch * steps * units)]
        row = f"{label(LONG)}, {'last output only' if last else 'all outputs'}"
        yield Record("temporary memory of training", row, "arrays (B, T, H)", values)


def _length(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    import jax

    from flax_srnn import activations

    for activation in ("tanh", "gelu") if plan.quick else activations.NAMES:
        for batch, mask in ((1, False), (1, True), (8, False), (8, True)):
            calls = {}
            for steps in (500, 4000):
                case = Case((batch, steps, 8, 64), activation=activation, mask=mask)
                run, arrays = jax.jit(program(contestants[OURS](case), train=True)), jax.device_put(problem(case))
                calls[steps] = lambda run=run, arrays=arrays: jax.block_until_ready(run(*arrays))
            times = alternate({f"T = {steps}": call for steps, call in calls.items()}, plan.seconds / 10)
            values = {name: [times[name][0] / steps] for name, steps in zip(times, calls, strict=True)}
            row = f"{activation}, B = {batch}{', mask' if mask else ''}"
            yield Record("time per step of training", row, "s", values)


def _compilation(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    import jax

    def compile_anew(model: Model, arrays: Problem) -> None:
        jax.jit(program(model, train=True)).lower(*arrays).compile()  # a new function: nothing is found in JAX's caches

    for shape in plan.few:
        case = Case(shape)
        calls = {
            name: functools.partial(compile_anew, model, problem(case))
            for name, model in _models(plan, contestants, case).items()
        }
        yield Record(
            "compilation of training", label(shape), "s", alternate(calls, seconds=0, rounds=1 if plan.quick else 3)
        )


OPTIONS: dict[str, dict[str, Any]] = {
    "mask": {"mask": True},
    "recurrent dropout": {"recurrent_dropout": 0.5},
    "last output only": {"last": True},
    "relu": {"activation": "relu"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "3 layers": {"network": "stack"},
    "one RNN of 3 cells": {"network": "cells"},
    "bidirectional": {"network": "bidirectional"},
}
RULES: dict[str, tuple[str, int]] = {
    "sums": ("summed_products", 0),
    "products of each row": ("row_products", 0),
    "gathering by step": ("gathered_products", 0),
    "hoisting": ("hoisted_features", sys.maxsize),
    "whole sequences": ("whole_elements", 0),
}
"""The rules of this library's `Tuning`, and what takes each out."""
Section = Callable[[Plan, Contestants], Iterator[Record]]
SECTIONS: dict[str, Section] = {
    "training": functools.partial(_plain, "training"),
    "forward": functools.partial(_plain, "forward"),
    "options": functools.partial(_variants, OPTIONS),
    "networks": functools.partial(_variants, NETWORKS),
    "bfloat16": _bfloat16,
    "chunked": _chunked,
    "memory": _memory,
    "length": _length,
    "compilation": _compilation,
    "tuning": _tuning,
}
TORCH_SECTIONS = ("training", "forward")
"""The sections in which PyTorch takes part."""


def _torch(plan: Plan) -> Iterator[Record]:
    """PyTorch on the cases of `TORCH_SECTIONS`; on a GPU with and without TF32, and in bfloat16."""
    import torch

    settings = {"torch": (False, torch.float32)}
    if plan.torch_device == "cuda":
        settings |= {"torch, TF32": (True, torch.float32), "torch, bfloat16": (False, torch.bfloat16)}
    for what in [section for section in plan.sections if section in TORCH_SECTIONS]:
        for group, shape in grid(plan, what):
            for name, (tf32, dtype) in settings.items():
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
                call = _torch_call(shape, what == "training", plan.torch_device, dtype)
                prints = fingerprint(array.float().cpu() for array in call())
                yield Record(group, label(shape), "s", alternate({name: call}, plan.seconds / 2), prints)


def _torch_call(shape: Shape, train: bool, device: str, dtype: Any) -> Callable[[], list[Any]]:
    """PyTorch's layer on the arrays of a case: outputs, or gradients in the order of `program`'s."""
    import torch

    data = problem(Case(shape))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    rnn = torch.nn.RNN(shape[2], shape[3], batch_first=True)
    with torch.no_grad():
        for parameter, name in ("weight_ih", "kernel"), ("weight_hh", "recurrent_kernel"), ("bias_ih", "bias"):
            getattr(rnn, f"{parameter}_l0").copy_(torch.tensor(data.params[0][name].T))
        rnn.bias_hh_l0.zero_()
    rnn.to(device, dtype)
    inputs = torch.tensor(data.inputs, device=device, dtype=dtype, requires_grad=train)
    cotangent = torch.tensor(data.cotangent, device=device, dtype=dtype)
    sources = [rnn.bias_ih_l0, rnn.weight_ih_l0, rnn.weight_hh_l0, inputs, rnn.bias_hh_l0]

    def call() -> list[Any]:
        with torch.set_grad_enabled(train):
            results = [rnn(inputs)[0]]
        if train:
            bias, kernel, recurrent_kernel, x, _ = torch.autograd.grad((results[0] * cotangent).sum(), sources)
            results = [bias, kernel.T, recurrent_kernel.T, x]
        wait()
        return results

    return call


def process(request: str, contestants: Contestants, sections: Mapping[str, Section] = SECTIONS) -> None:
    """Measures a plan given as JSON and prints a line for every record as it is made, then one about the machine."""
    plan = Plan(**json.loads(request))
    began = time.perf_counter()
    if plan.torch_device:
        _print_records({"torch": _torch(plan)}, plan, began)
        about = {"torch": importlib.metadata.version("torch")}
    else:
        import jax

        _print_records({section: sections[section](plan, contestants) for section in plan.sections}, plan, began)
        about = {"device": "CPU" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind}
    print(json.dumps({"about": about}))


def _print_records(sections: Mapping[str, Iterator[Record]], plan: Plan, began: float) -> None:
    for section, records in sections.items():
        start = time.perf_counter()
        for record in records:
            print(json.dumps({"record": dataclasses.asdict(record)}), flush=True)
            if plan.limit is not None and time.perf_counter() - began > plan.limit:
                print(f"  {plan.limit:.0f} s are over: the rest is left out", file=sys.stderr, flush=True)
                return
        print(f"  {section}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":  # in PyTorch's Python, which needs no other contestant
    process(sys.argv[1], contestants={})
