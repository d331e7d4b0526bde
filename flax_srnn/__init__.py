"""The SimpleRNN family of Keras for JAX and Flax: every option, the same numbers, explicit state.

Layers, for Flax Linen:
    SimpleRNN            a simple RNN over a sequence
    SimpleRNNCell        one step of it
    RNN                  any Flax cell, or several stacked, over a sequence
    StackedRNNCells      several cells as one
    Bidirectional        a layer in both directions, merged

Functions, no layer:
    cell_step            one step, for `jax.lax.scan`
    simple_rnn           a whole sequence
    truncated_rnn        the same, with gradients that stop every few steps
    init_params          their parameters
    dropout_masks        their dropout masks
    compute_mask         the mask of what they return

States of stateful layers:
    reset_states         set back, in a new tree

Penalties and constraints:
    regularization_loss  the sum of what the layers sowed
    collect_constraints  of a model, as a tree
    keep_constraints     keeps parameters within them; the last in an `optax.chain`
    apply_constraints    projects parameters once

How a sequence is run, the argument `implementation`:
    Scan                 "scan", the default: a hand-written backward pass
    Autodiff             "autodiff": differentiated by JAX, in forward mode too
    Chunked              "chunked": pieces of time side by side; `flax_srnn.chunked` counts its sweeps

Elsewhere: the same layers for Flax NNX in `flax_srnn.nnx`; models and weights of Keras in `flax_srnn.interop.keras`, of PyTorch
in `flax_srnn.interop.torch`; the training program in `flax_srnn.training`; all programs by `flax-srnn --help`.
"""

from flax_srnn import chunked as chunked
from flax_srnn.core.cell import cell_step as cell_step
from flax_srnn.core.parallel_in_time import Chunked as Chunked
from flax_srnn.core.parameters import dropout_masks as dropout_masks
from flax_srnn.core.parameters import init_params as init_params
from flax_srnn.core.recurrence import Autodiff as Autodiff
from flax_srnn.core.recurrence import Scan as Scan
from flax_srnn.core.sequence import compute_mask as compute_mask
from flax_srnn.core.sequence import simple_rnn as simple_rnn
from flax_srnn.layers.projection import apply_constraints as apply_constraints
from flax_srnn.layers.projection import keep_constraints as keep_constraints
from flax_srnn.layers.states import reset_states as reset_states
from flax_srnn.linen.cells import SimpleRNNCell as SimpleRNNCell
from flax_srnn.linen.cells import StackedRNNCells as StackedRNNCells
from flax_srnn.linen.layers import RNN as RNN
from flax_srnn.linen.layers import Bidirectional as Bidirectional
from flax_srnn.linen.layers import SimpleRNN as SimpleRNN
from flax_srnn.linen.penalties import collect_constraints as collect_constraints
from flax_srnn.linen.penalties import regularization_loss as regularization_loss
from flax_srnn.truncated import truncated_rnn as truncated_rnn

__version__ = "0.1.0"
__all__ = [
    "RNN",
    "Autodiff",
    "Bidirectional",
    "Chunked",
    "Scan",
    "SimpleRNN",
    "SimpleRNNCell",
    "StackedRNNCells",
    "apply_constraints",
    "cell_step",
    "collect_constraints",
    "compute_mask",
    "dropout_masks",
    "init_params",
    "keep_constraints",
    "regularization_loss",
    "reset_states",
    "simple_rnn",
    "truncated_rnn",
]
