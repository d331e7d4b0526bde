"""The package: its object, what it says where it cannot run, calls from many threads, forks, and wrong sizes."""

import concurrent.futures
import dataclasses
import importlib.metadata
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_srnn_native import Native, implementation, library
from flax_srnn_native.implementation import INSTRUCTIONS
from flax_srnn_native.library import BACKWARD, FORWARD, load

from flax_srnn import SimpleRNN, init_params, simple_rnn
from flax_srnn.core import implementations

PARAMS = init_params(jax.random.key(0), 3, 4)
X = jnp.ones((2, 5, 3))


def call(**options):
    return simple_rnn(PARAMS, X, **{"implementation": "native", **options})


def program(code):
    """What a fresh process says, and its exit code."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr[-2000:], done.returncode


# --- the object --------------------------------------------------------------------------------------------------------


def test_the_object_is_frozen_hashable_and_equal_to_its_like():
    values = [Native(), *map(Native, INSTRUCTIONS)]
    assert len(set(values)) == 4
    for value in values:
        again = dataclasses.replace(value)
        assert (again, hash(again)) == (value, hash(value))
        assert SimpleRNN(4, implementation=value) == SimpleRNN(4, implementation=again)
        assert eval(repr(value), {"Native": Native}) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        Native().instructions = "avx2"


@pytest.mark.parametrize("wrong", ["avx", "AVX2", "", 2, True, ["avx2"]])
def test_wrong_instructions(wrong):
    with pytest.raises(ValueError, match="`instructions` must be None or one of generic, avx2, avx512, got"):
        Native(wrong)


def test_the_name_is_an_entry_point():
    (point,) = importlib.metadata.entry_points(group=implementations.GROUP, name="native")
    assert point.load() is Native
    assert implementations.get("native") == Native()


def test_nothing_changes_for_who_does_not_ask_for_it():
    """The package is not imported, and what None chooses is the same program before and after it was used."""
    said, code = program(
        """
import sys
import jax, jax.numpy as jnp
import flax_srnn, flax_srnn.nnx
from flax_srnn import simple_rnn

params, x = flax_srnn.init_params(jax.random.key(0), 3, 4), jnp.ones((2, 5, 3))

def lowered():
    jax.clear_caches()
    grads = jax.grad(lambda params, x, mask: simple_rnn(params, x, mask=mask)[1].sum(), argnums=(0, 1))
    made = jax.jit(grads).lower(params, x, jnp.ones((2, 5), bool))
    return made.as_text(), made.compile().as_text()

texts = []
for used in (False, True):
    if used:
        simple_rnn(params, x, implementation="native")
    assert ("flax_srnn_native" in sys.modules) == used
    texts.append(lowered())  # of this one line: a compiled program knows where it is from
assert texts[0] == texts[1]
assert not any("flax_srnn_forward" in text for text in texts[0])
print("the same")
"""
    )
    assert (said, code) == ("the same\n", 0)


# --- where it cannot run -----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """A library that was not loaded yet, and the names that are registered."""
    registered, register = [], jax.ffi.register_ffi_target

    def recorded(name, *rest, **options):
        registered.append(name)
        register(name, *rest, **options)

    monkeypatch.setattr(jax.ffi, "register_ffi_target", recorded)
    load.cache_clear()
    yield registered
    load.cache_clear()


def test_a_library_is_registered_at_first_use_only(fresh):
    call()
    call()
    assert fresh == [FORWARD, BACKWARD]


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF, but no library"])
def test_a_missing_or_broken_library(content, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "FILE", tmp_path / "flax_srnn_native.so")
    if content is not None:
        library.FILE.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"its library cannot be loaded, install it again: .*flax_srnn_native.so"):
        call()
    assert not fresh


@pytest.mark.parametrize(
    ("major", "minor", "runs"), [(0, 0, False), (1, 0, False), (1, 99, False), (0, 1, True), (0, 99, True)]
)
def test_versions_are_compared_before_anything_is_registered(major, minor, runs, fresh, monkeypatch, tmp_path):
    """Built for 0.1: JAX may have a later minor version, and no other major one."""
    header = tmp_path / "c_api.h"
    header.write_text(f"#pragma once\n#define XLA_FFI_API_MAJOR {major}\n#define XLA_FFI_API_MINOR {minor}\n")
    monkeypatch.setattr(library, "HEADER", header)
    if runs:
        call()
        return
    with pytest.raises(
        RuntimeError, match=rf"built for version 0\.1 .*{jax.__version__} has {major}\.{minor}: install"
    ):
        call()
    assert not fresh


@pytest.mark.parametrize("text", [None, "#pragma once\n", "#define XLA_FFI_API_MAJOR 0\n"])
def test_an_unknown_version(text, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "HEADER", tmp_path / "c_api.h")
    if text is not None:
        library.HEADER.write_text(text)
    with pytest.raises(RuntimeError, match=r"foreign function interface JAX .* is not to be found in .*c_api.h"):
        call()
    assert not fresh


def test_the_installed_header_is_read():
    assert library._interface() >= load().flax_srnn_interface() == 1


def test_another_platform(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"on a CPU only, the default device here is a gpu; .* jax.default_device"):
        call()
    for device in (jax.devices()[1], "cpu"):
        with jax.default_device(device):
            call()


def test_another_processor(monkeypatch):
    load()
    monkeypatch.setattr(implementation, "load", lambda: types.SimpleNamespace(flax_srnn_runs=lambda code: code == 0))
    call(implementation=Native("generic"))
    with pytest.raises(ValueError, match="this processor has no avx512; leave `instructions` out"):
        call(implementation=Native("avx512"))


# --- threads and forks -------------------------------------------------------------------------------------------------


def test_a_thousand_calls_from_eight_threads():
    """Of a single row, whose products are done beside its recurrence, and of rows that are divided: the same to the bit."""
    calls = []
    for rows, steps in ((1, 3000), (4, 300)):
        params = init_params(jax.random.key(1), 3, 16)
        x = jax.random.normal(jax.random.key(2), (rows, steps, 3))
        grads = jax.jit(jax.value_and_grad(lambda p, x: simple_rnn(p, x, implementation="native")[1].sum(), (0, 1)))
        calls.append((grads, (params, x), jax.tree.map(np.asarray, grads(params, x))))

    def repeated(number):
        for i in range(125):
            function, arguments, expected = calls[(number + i) % 2]
            jax.tree.map(np.testing.assert_array_equal, function(*arguments), expected)
        return 125

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(repeated, range(8))) == 1000


@pytest.mark.parametrize("shape", [(4, 50, 3), (1, 3000, 3)], ids=str)
def test_a_fork_ends_in_a_message(shape):
    """Forward and backward: the pool's threads are gone, and what waits for them would wait for ever."""
    said, code = program(
        f"""
import os, signal
import jax, jax.numpy as jnp
from flax_srnn import init_params, simple_rnn

params, x = init_params(jax.random.key(0), 3, 16), jnp.ones({shape})
forward = jax.jit(lambda p, x: simple_rnn(p, x, implementation="native")[1])
vjp = jax.jit(lambda p, x: jax.grad(lambda p: simple_rnn(p, x, implementation="native")[1].sum())(p))
for function in (forward, vjp):
    jax.block_until_ready(function(params, x))
    if os.fork() == 0:
        signal.alarm(20)  # the end of a child that hangs
        try:
            jax.block_until_ready(function(params, x))
        except Exception as error:
            print(error, flush=True)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
    jax.block_until_ready(function(params, x))  # here nothing has changed
"""
    )
    assert code == 0, said
    assert said.count("this process was forked from one that had used JAX") == 2
    assert said.count("start processes by 'spawn' or 'forkserver'") == 2


# --- sizes are compared before anything is read ------------------------------------------------------------------------

G, B, T, F, U = 2, 3, 5, 2, 4
GIVEN = {
    "kernel": (G, F, U),
    "recurrent_kernel": (G, U, U),
    "bias": (G, U),
    "input_dropout_mask": (G, B, F),
    "recurrent_dropout_mask": (G, B, U),
    "inputs": (G, B, T, F),
    "initial_state": (G, B, U),
    "mask": (G, B, T),
    "resets": (G, B, T),
    "reset_state": (G, B, U),
}
RECORDED = {
    "the states": (G, B, T, U),
    "the final state's cotangent": (G, B, U),
    "the states' cotangents": (G, B, T, U),
}
RESULTS = {
    FORWARD: {"the final state": (G, B, U), "the states": (G, B, T, U)},
    BACKWARD: {
        "the kernel's cotangent": GIVEN["kernel"],
        "the recurrent kernel's cotangent": GIVEN["recurrent_kernel"],
        "the bias's cotangent": GIVEN["bias"],
        "the input dropout mask's cotangent": GIVEN["input_dropout_mask"],
        "the recurrent dropout mask's cotangent": GIVEN["recurrent_dropout_mask"],
        "the inputs' cotangent": GIVEN["inputs"],
        "the initial state's cotangent": GIVEN["initial_state"],
        "the reset state's cotangent": GIVEN["reset_state"],
    },
}
ARGUMENTS = {FORWARD: GIVEN, BACKWARD: {**GIVEN, **RECORDED}}
OPTIONAL = {
    FORWARD: {"bias", "input_dropout_mask", "recurrent_dropout_mask", "mask", "the states"},
    BACKWARD: {"mask", "the states' cotangents"},
}
"""What may be absent, with the rest as above: of a single dimension, of size 0."""


REFUSED = (ValueError, jax.errors.JaxRuntimeError)


def direct(function, arguments=(), results=(), dtypes=(), **how):
    """A call of the library itself, by other shapes and dtypes than are right."""
    given = ARGUMENTS[function] | dict(arguments)
    kinds = {"mask": bool, "resets": bool} | dict(dtypes)
    arrays = [jnp.zeros(shape, kinds.get(name, jnp.float32)) for name, shape in given.items()]
    shapes = (RESULTS[function] | dict(results)).values()
    options = {"code": 0, "activation": 1, "reverse": False, "time_major": False} | how
    run = jax.ffi.ffi_call(function, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    return jax.block_until_ready(jax.jit(lambda *x: run(*x, **options))(*arrays))


def with_shape(function, name, shape):
    kind = "arguments" if name in ARGUMENTS[function] else "results"
    return direct(function, **{kind: {name: shape}})


EVERY = [(function, name) for function in ARGUMENTS for name in [*ARGUMENTS[function], *RESULTS[function]]]


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_right_sizes(function):
    for results in (direct(function), *(with_shape(function, name, (0,)) for name in OPTIONAL[function])):
        assert all(np.isfinite(x).all() for x in results)


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_wrong_sizes_are_refused(function, name):
    """By the name of the array, or of one that does not go with it."""
    right = (ARGUMENTS[function] | RESULTS[function])[name]
    larger = [(*right[:i], right[i] + 1, *right[i + 1 :]) for i in range(len(right))]
    absent = [] if name in OPTIONAL[function] else [(0,)]
    for shape in [*larger, right[1:], (*right, 1), (), (7,), *absent]:
        others = name in ("inputs", "kernel") or (shape == (0,) and name in OPTIONAL[FORWARD])
        with pytest.raises(REFUSED, match="flax_srnn_native: " if others else f"flax_srnn_native: .*{name} "):
            with_shape(function, name, shape)


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_wrong_numbers_and_dtypes_are_refused(function):
    for how, said in (
        ({"activation": 4}, "there is no such activation"),
        ({"activation": -1}, "there is no such activation"),
        ({"code": 3}, "lacks the instructions"),
        ({"code": -1}, "lacks the instructions"),
    ):
        with pytest.raises(REFUSED, match=said):
            direct(function, **how)
    for dtypes in ({"inputs": jnp.float16}, {"mask": jnp.float32}, {"kernel": jnp.int32}):
        with pytest.raises(REFUSED, match="dtype"):
            direct(function, dtypes=dtypes)
