"""The shared library: loaded, compared with the JAX that is installed, and made known to it, when it is first needed."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import jax
import jaxlib

__all__ = ["BACKWARD", "FORWARD", "load"]

FORWARD, BACKWARD = "flax_srnn_forward", "flax_srnn_backward"
"""The library's functions, and the names by which compiled programs call them."""
FILE = Path(__file__).with_name("flax_srnn_native.so")
HEADER = Path(jaxlib.__file__).with_name("include") / "xla/ffi/api/c_api.h"


@functools.cache
def load() -> ctypes.CDLL:
    """The library, whose functions JAX knows from now on.

    Raises:
      RuntimeError: it is missing, cannot be loaded, or was built for a newer interface than JAX has. Registered all the
        same, it would take the whole CPU backend down.
    """
    try:
        library = ctypes.CDLL(str(FILE))
    except OSError as error:
        raise RuntimeError(f"flax-srnn-native: its library cannot be loaded, install it again: {error}.") from error
    built, found = library.flax_srnn_interface(), _interface()
    if built // 1000 != found // 1000 or built > found:
        raise RuntimeError(
            f"flax-srnn-native was built for version {_named(built)} of XLA's foreign function interface, JAX "
            f"{jax.__version__} has {_named(found)}: install a newer JAX, or build the package against this one."
        )
    for name in (FORWARD, BACKWARD):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _interface() -> int:
    """The version of the interface that the installed JAX has, 1000 · major + minor, by the header that comes with it."""
    try:
        text = HEADER.read_text(encoding="utf-8")
        found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text))
        return 1000 * int(found["MAJOR"]) + int(found["MINOR"])
    except (OSError, KeyError) as error:
        raise RuntimeError(
            f"flax-srnn-native: what version of XLA's foreign function interface JAX {jax.__version__} has is not to be "
            f"found in {HEADER}."
        ) from error


def _named(version: int) -> str:
    return f"{version // 1000}.{version % 1000}"
