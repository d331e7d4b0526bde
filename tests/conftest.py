"""Session settings: Keras on the JAX backend, eight virtual CPU devices, strict JAX."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

from flax_srnn import recurrence

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for the time of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of the fewest steps that the recurrence makes, so that a short sequence has several."""

    def forget():
        for program in (recurrence.run, recurrence.plain):
            program.clear_cache()

    forget()
    monkeypatch.setattr(recurrence, "CHUNK_ELEMENTS", 1)
    yield
    forget()
