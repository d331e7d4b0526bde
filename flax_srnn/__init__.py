"""The SimpleRNN family for JAX and Flax."""

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
