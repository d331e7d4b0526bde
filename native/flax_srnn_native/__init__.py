"""A CPU kernel in C++ for flax_srnn: `implementation="native"`, or a `Native()`, in its functions and layers."""

from flax_srnn_native.implementation import Native as Native
from flax_srnn_native.library import load as load

__all__ = ["Native", "load"]
