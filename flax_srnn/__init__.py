"""The SimpleRNN family for JAX and Flax."""

from flax_srnn.cell import cell_step as cell_step
from flax_srnn.cell import dropout_masks as dropout_masks
from flax_srnn.cell import init_params as init_params
from flax_srnn.layers import RNN as RNN
from flax_srnn.layers import Bidirectional as Bidirectional
from flax_srnn.layers import SimpleRNN as SimpleRNN
from flax_srnn.linen_cells import SimpleRNNCell as SimpleRNNCell
from flax_srnn.linen_cells import StackedRNNCells as StackedRNNCells
from flax_srnn.optim import apply_constraints as apply_constraints
from flax_srnn.optim import collect_constraints as collect_constraints
from flax_srnn.optim import keep_constraints as keep_constraints
from flax_srnn.optim import regularization_loss as regularization_loss
from flax_srnn.sequence import compute_mask as compute_mask
from flax_srnn.sequence import simple_rnn as simple_rnn
from flax_srnn.states import reset_states as reset_states

__version__ = "0.1.0"
