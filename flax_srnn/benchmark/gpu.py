"""What `flax-srnn benchmark --device gpu` measures: in under eight minutes, the most telling first, each part with a limit.

Training and forward at T = 1024 against flax.linen, flax.nnx and PyTorch's cuDNN (float32, with TF32, bfloat16); this library once
more in a process whose XLA captures loops as CUDA graphs; the chunked solver against the scan on long sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flax_srnn.benchmark.process import Plan, Shape

__all__ = ["LONG", "SHAPES", "Part", "parts"]

SHAPES: tuple[Shape, ...] = tuple(
    (batch, 1024, 128, units) for units in (128, 256, 64, 512, 1024) for batch in (16, 1, 64, 256)
)
LONG: tuple[Shape, ...] = tuple((batch, steps, 8, 128) for steps in (4096, 16384, 65536) for batch in (1, 4))
CAPTURED = "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_command_buffer_unroll_loops=true"
"""Loops as CUDA graphs, off by default."""


class Part(NamedTuple):
    """A plan with a process of its own.

    Attributes:
      label: appended to the contestants' names.
      flags: for XLA.
    """

    plan: Plan
    label: str = ""
    flags: str = ""


def parts(peers: Sequence[str], shapes: Sequence[Shape], long: Sequence[Shape]) -> list[Part]:
    """The processes that run JAX, one after the other; PyTorch's is that of the first."""

    def plan(sections: Sequence[str], peers: Sequence[str], limit: float) -> Plan:
        return Plan(sections, peers, shapes, (), (), long, quick=False, seconds=0.2, limit=limit)

    both = ("training", "forward")
    return [
        Part(plan(both, peers, 240.0)),
        Part(plan(("chunked",), (), 60.0)),
        Part(plan(both, (), 80.0), ", loops as CUDA graphs", CAPTURED),
    ]
