"""The layers of Keras's models that are not recurrent: what each computes, and which of Keras's arguments it has.

Every layer takes (inputs, mask, training) and returns (outputs, mask): the mask that Keras hands from layer to layer behind
the scenes is a value here. Where training is concerned: regularizers, constraints and what is frozen are in `structure`, by
array; a frozen batch normalisation does not use the batch; initializers are not carried over.

A class that is to be read too needs a class in one of the modules below, an entry in `LAYERS`, and where it has arrays their
names in `structure.ARRAYS`.
"""

from __future__ import annotations

from typing import Any

from flax_srnn.interop.keras import merging, normalizing, over_time, pointwise

__all__ = ["LAYERS"]

LAYERS: dict[str, Any] = {
    name: getattr(module, name) for module in (pointwise, normalizing, over_time, merging) for name in module.__all__
}
"""By class everything that Keras writes as {"class_name": the name here, "config": the arguments that its `read` takes}."""
