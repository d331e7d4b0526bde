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
    return_sequences=True,
    input_dropout_mask=None,
    recurrent_dropout_mask=None,
):
    """(final_state, outputs) of `flax_srnn.simple_rnn`, with any number of batch dimensions."""
    act = ACTIVATIONS[activation]
    w = {name: np.asarray(p, np.float64) for name, p in params.items()}
    x = np.asarray(inputs, np.float64)
    x = np.moveaxis(x, 0, -2) if time_major else x
    *batch, steps, _ = x.shape
    units = w["kernel"].shape[1]
    zeros = np.zeros((*batch, units))
    h0 = zeros + w.get("initial_state", 0.0) if initial_state is None else np.asarray(initial_state, np.float64)
    r0 = h0 if reset_state is None else np.asarray(reset_state, np.float64)
    outputs, final, last = np.zeros((*batch, steps, units)), zeros.copy(), zeros.copy()
    for b in np.ndindex(*batch):
        h = output = h0[b]
        for position, t in enumerate(range(steps - 1, -1, -1) if go_backwards else range(steps)):
            if resets is not None and np.asarray(resets)[b][t]:
                h = r0[b]
            use = mask is None or bool(np.asarray(mask)[b][t])
            if seq_lengths is not None:
                use = use and t < np.asarray(seq_lengths)[b]
            if use:
                x_t, s = x[b][t], h
                if input_dropout_mask is not None:
                    x_t = x_t * np.asarray(input_dropout_mask, np.float64)[b]
                if recurrent_dropout_mask is not None:
                    s = s * np.asarray(recurrent_dropout_mask, np.float64)[b]
                h = act(x_t @ w["kernel"] + w.get("bias", 0.0) + s @ w["recurrent_kernel"])
            output = h if use or not zero_output_for_mask else 0.0
            outputs[b][t if keep_order else position] = output
        final[b], last[b] = h, output
    if not return_sequences:
        return final, last
    return final, np.moveaxis(outputs, -2, 0) if time_major else outputs
