"""The oracle: the simple RNN as plain float64 NumPy loops, one step and one row at a time."""

import numpy as np

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0.0),
    "linear": lambda a: a,
    None: lambda a: a,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "softmax": lambda a: np.exp(a - a.max()) / np.exp(a - a.max()).sum(),
}


def simple_rnn(
    params,
    inputs,
    *,
    initial_state=None,
    mask=None,
    seq_lengths=None,
    resets=None,
    reset_state=None,
    activation="tanh",
    go_backwards=False,
    keep_order=False,
    zero_output_for_mask=False,
    time_major=False,
    input_dropout_mask=None,
    recurrent_dropout_mask=None,
):
    """(final_state, outputs) of `flax_srnn.simple_rnn` for batch-major or time-major `inputs` with one batch dimension."""
    act = ACTIVATIONS[activation]
    w = {name: np.asarray(p, np.float64) for name, p in params.items()}
    x = np.asarray(inputs, np.float64)
    x = x.swapaxes(0, 1) if time_major else x
    rows, steps, _ = x.shape
    units = w["kernel"].shape[1]
    h0 = np.zeros((rows, units)) if initial_state is None else np.asarray(initial_state, np.float64)
    r0 = h0 if reset_state is None else np.asarray(reset_state, np.float64)
    outputs, final = np.zeros((rows, steps, units)), np.zeros((rows, units))
    for b in range(rows):
        h = h0[b]
        for position, t in enumerate(range(steps - 1, -1, -1) if go_backwards else range(steps)):
            if resets is not None and resets[b][t]:
                h = r0[b]
            use = (mask is None or bool(mask[b][t])) and (seq_lengths is None or t < seq_lengths[b])
            if use:
                x_t = x[b, t] if input_dropout_mask is None else x[b, t] * np.asarray(input_dropout_mask, np.float64)[b]
                s = h if recurrent_dropout_mask is None else h * np.asarray(recurrent_dropout_mask, np.float64)[b]
                h = act(x_t @ w["kernel"] + w.get("bias", 0.0) + s @ w["recurrent_kernel"])
            outputs[b, t if keep_order else position] = h if use or not zero_output_for_mask else 0.0
        final[b] = h
    return final, outputs.swapaxes(0, 1) if time_major else outputs
