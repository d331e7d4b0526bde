"""The SimpleRNN family for Flax NNX: the same options and the same numbers as for Flax Linen, to the last bit."""

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
