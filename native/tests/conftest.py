"""Session settings, those of the main suite: eight virtual CPU devices, strict JAX, programs that LLVM optimises little."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0") + " --xla_force_host_platform_device_count=8"
)

import jax
from fixtures import worst, x64  # noqa: F401  # fixtures

jax.config.update("jax_numpy_rank_promotion", "raise")
