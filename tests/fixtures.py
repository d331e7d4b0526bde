"""Fixtures of the suite and of that of native/."""

import jax
import pytest


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
