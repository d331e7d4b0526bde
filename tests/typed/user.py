"""A user's file for the type checkers: a line with the comment bad at its end is an error to both, and no other line is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import flax_srnn
import flax_srnn.nnx as srnn
from flax_srnn import Autodiff, Bidirectional, Chunked, Scan, SimpleRNN, SimpleRNNCell, chunked
from flax_srnn.truncated import truncated_rnn

x = jnp.ones((2, 5, 3))
key = jax.random.key(0)

# Functions.
params = flax_srnn.init_params(key, 3, 4)
final, outputs = flax_srnn.simple_rnn(params, x, activation="relu", implementation="autodiff")
first: jax.Array = outputs[:, 0]
state, output = flax_srnn.cell_step(params, final, x[:, 0])
flax_srnn.simple_rnn(params, x, implementation="native")
flax_srnn.simple_rnn(params, x, implementation=Chunked(pieces=4, tol=1e-3))
number: jax.Array = chunked.sweeps(params, x)
truncated_rnn(params, x, 5, activation="relu")
flax_srnn.simple_rnn(params, x, implementation="fast")  # bad
flax_srnn.simple_rnn(params, x, implementation=Scan)  # bad
flax_srnn.simple_rnn(params, x, units=4)  # bad
third = flax_srnn.simple_rnn(params, x)[2]  # bad
Scan(remat="yes")  # bad
Chunked(chunks=4)  # bad

# Linen.
layer = SimpleRNN(4, "relu", return_sequences=True, implementation=Autodiff())
SimpleRNN(units=4, kernel_regularizer="l2", dropout=0.1, implementation="scan", name="rnn")
both = Bidirectional(layer, merge_mode="ave")
stack = flax_srnn.RNN([SimpleRNNCell(4), nn.LSTMCell(5)], return_state=True)
variables = layer.init(key, x)
variables = layer.reset_states({**variables})
SimpleRNN(4, implementation="fast")  # bad
SimpleRNN(4, unit=4)  # bad
SimpleRNN("four")  # bad
Bidirectional(layer, merge_mode="avg")  # bad
layer.reset_states(3)  # bad


class Model(nn.Module):
    """Layers inside a module, called by name and by position."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = SimpleRNN(4, return_sequences=True)(x, mask=mask)
        x, state = SimpleRNN(4, return_state=True)(x, None, mask, True)
        _lost: str = SimpleRNN(4)(x)  # bad
        return x + state


# NNX.
cell = srnn.SimpleRNNCell(3, 4, rngs=nnx.Rngs(0))
rnn = srnn.SimpleRNN(3, 4, return_sequences=True, rngs=nnx.Rngs(0))
kernel: nnx.Param[jax.Array] = rnn.kernel
shape: tuple[int, ...] = cell.recurrent_kernel.shape
sequence: jax.Array = rnn(x, mask=None, training=False)
carry, output = cell(cell.initialize_carry((2, 3)), x[:, 0])
loss: jax.Array = srnn.regularization_loss(rnn)
text: str = rnn(x)  # bad
print(rnn.kernels)  # bad
srnn.SimpleRNN(3, 4)  # bad
srnn.Bidirectional(rnn, "avg", rngs=nnx.Rngs(0))  # bad
