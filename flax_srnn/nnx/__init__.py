"""The SimpleRNN family for Flax NNX: the same options and the same numbers as for Flax Linen, to the last bit.

Layers:
    SimpleRNN            a simple RNN over a sequence
    SimpleRNNCell        one step of it
    RNN                  any NNX cell, or several stacked, over a sequence
    StackedRNNCells      several cells as one
    Bidirectional        a layer in both directions, merged

States of stateful layers:
    Carry                the kind of variable that holds one
    reset_states         sets them back

Penalties and constraints:
    Penalty              the kind of variable that holds a layer's penalties of its outputs
    regularization_loss  the sum of all penalties
    collect_constraints  of a model, for `flax_srnn.keep_constraints`

Parameters between these layers and those for Flax Linen:
    from_linen           gives a layer those of its Linen twin
    to_linen             those of a layer, for its Linen twin

The functions without layers are in `flax_srnn` itself: `cell_step`, `simple_rnn`, `init_params` and more.
"""

from flax_srnn.nnx.bridge import from_linen as from_linen
from flax_srnn.nnx.bridge import to_linen as to_linen
from flax_srnn.nnx.cells import SimpleRNNCell as SimpleRNNCell
from flax_srnn.nnx.cells import StackedRNNCells as StackedRNNCells
from flax_srnn.nnx.layers import RNN as RNN
from flax_srnn.nnx.layers import Bidirectional as Bidirectional
from flax_srnn.nnx.layers import Carry as Carry
from flax_srnn.nnx.layers import Penalty as Penalty
from flax_srnn.nnx.layers import SimpleRNN as SimpleRNN
from flax_srnn.nnx.layers import reset_states as reset_states
from flax_srnn.nnx.penalties import collect_constraints as collect_constraints
from flax_srnn.nnx.penalties import regularization_loss as regularization_loss

__all__ = [
    "RNN",
    "Bidirectional",
    "Carry",
    "Penalty",
    "SimpleRNN",
    "SimpleRNNCell",
    "StackedRNNCells",
    "collect_constraints",
    "from_linen",
    "regularization_loss",
    "reset_states",
    "to_linen",
]
