"""Session settings, those of the main suite: eight virtual CPU devices, strict JAX, programs that LLVM optimises little."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def worst():
    """Worst errors by what was compared, printed at the end."""
    errors = {}
    yield errors
    for what, error in errors.items():
        print(f"{what:60} {error:.1e}")


@pytest.fixture
def x64():
    """Float64 for the time of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
