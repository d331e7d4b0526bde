"""Functional models of Keras, each for something of its own."""

import keras
from keras import layers, ops
from keras_models import B, F, T


def words(length=T, **options):
    return keras.Input((length,), dtype="int32", **options)


def sequence(length=T, **options):
    return keras.Input((length, F), **options)


def vectors(size=F, **options):
    return keras.Input((size,), **options)


def embedded(x, size=4):
    return layers.Embedding(7, size, mask_zero=True)(x)


def masked(x):
    return layers.Masking()(x)


# --- models ------------------------------------------------------------------------------------------------------------


def one_after_the_other():
    x = words()
    y = layers.SimpleRNN(3)(embedded(x))
    return keras.Model(x, layers.Dense(2, "softmax")(y))


def joined_in_time():
    a, b = words(), sequence(3)
    y = layers.Concatenate(axis=1)([embedded(a), masked(b)])
    return keras.Model([a, b], layers.SimpleRNN(3, return_sequences=True)(y))


def joined_features():
    a, b = words(), sequence()
    y = layers.Concatenate()([embedded(a, 3), masked(b)])
    return keras.Model([a, b], layers.GRU(3, return_sequences=True)(y))


def one_of_two_masked():
    a, b = words(), sequence(3)
    y = layers.Concatenate(axis=1)([embedded(a), b])
    return keras.Model([a, b], layers.LSTM(3, return_sequences=True)(y))


def sums_of_masked():
    a, b, c = words(), sequence(), sequence(name="no_mask")
    y = layers.Add()([embedded(a), masked(b)])
    z = layers.Multiply()([layers.SimpleRNN(4, return_sequences=True)(y), c])
    return keras.Model([a, b, c], [layers.SimpleRNN(3, return_sequences=True)(each) for each in (y, z)])


def encoder_and_decoder(kind, by_name=True):
    def make():
        a, b = words(), words(4)
        _, *states = kind(3, return_state=True)(embedded(a))
        decoder = kind(3, return_sequences=True, return_state=True)
        x = embedded(b)
        outputs = decoder(x, initial_state=states) if by_name else decoder(x, states)
        return keras.Model([a, b], [layers.Dense(2)(outputs[0]), *outputs[1:]])

    return make


def bidirectional_encoder():
    a, b = words(), words(4)
    _, h1, c1, h2, c2 = layers.Bidirectional(layers.LSTM(2, return_state=True))(embedded(a))
    h, c = layers.Concatenate()([h1, h2]), layers.Concatenate()([c1, c2])
    y = layers.LSTM(4, return_sequences=True)(embedded(b), initial_state=[h, c])
    return keras.Model([a, b], layers.TimeDistributed(layers.Dense(3, "softmax"))(y))


def states_of_both_directions():
    a, b = sequence(), sequence(3)
    _, *states = layers.Bidirectional(layers.LSTM(2, return_state=True))(masked(a))
    y = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(b, initial_state=states)
    return keras.Model([a, b], y)


def states_of_a_stack():
    def stack():
        return [layers.LSTMCell(3), layers.SimpleRNNCell(2), layers.GRUCell(4)]

    a, b = sequence(), sequence(3)
    _, *states = layers.RNN(stack(), return_state=True)(masked(a))
    return keras.Model([a, b], layers.RNN(stack(), return_sequences=True, return_state=True)(b, initial_state=states))


def states_given():
    x, h, c = sequence(), vectors(3, name="h"), vectors(3, name="c")
    return keras.Model([x, h, c], layers.LSTM(3, return_state=True)(masked(x), [h, c]))


def mask_given():
    x, mask = sequence(), keras.Input((T,), dtype="bool", name="mask_")
    y = layers.SimpleRNN(3, return_sequences=True)(x, mask=mask)
    return keras.Model([x, mask], [y, layers.GRU(2)(y)])


def mask_computed():
    x, w = sequence(), words()
    mask = ops.logical_and(ops.not_equal(w, 0), ops.any(ops.not_equal(x, 0), axis=-1))
    y = layers.LSTM(3, return_sequences=True)(x, mask=mask)
    return keras.Model([x, w], layers.Bidirectional(layers.SimpleRNN(2))(y, mask=mask))


def mask_overruled():
    """A given mask instead of the one that goes with the input; the one that goes on is the given one."""
    w, mask = words(), keras.Input((T,), dtype="bool", name="mask_")
    y = layers.SimpleRNN(3, return_sequences=True)(embedded(w), mask=mask)
    return keras.Model([w, mask], layers.SimpleRNN(2, return_sequences=True)(y))


def masks_given_to_others():
    """To models, poolings and normalisations, as numbers too."""
    x, mask, floats = sequence(), keras.Input((T,), dtype="bool", name="mask_"), keras.Input((T,), name="floats")
    a = sequence()
    inner = keras.Model(a, layers.SimpleRNN(3, return_sequences=True)(a))
    straight = keras.Sequential([layers.Dense(3), layers.GRU(2, return_sequences=True)])
    numbers = ops.cast(ops.greater(floats, 0), "float32")
    return keras.Model(
        [x, mask, floats],
        [
            layers.SimpleRNN(2, return_sequences=True)(inner(x, mask=mask)),
            straight(x, mask=mask),
            layers.GlobalAveragePooling1D()(layers.Dense(3)(x), mask=ops.logical_or(mask, floats > -9)),
            layers.LSTM(2)(layers.BatchNormalization()(x, mask=mask)),
            layers.Bidirectional(layers.GRU(2, return_sequences=True))(x, mask=mask),
            layers.LSTM(2, return_sequences=True)(x, mask=numbers),
        ],
    )


def never_in_training():
    x = words()
    y = layers.BatchNormalization()(embedded(x), training=False)
    return keras.Model(x, layers.LSTM(3, dropout=0.5)(layers.Dropout(0.5)(y, training=False), training=False))


def mask_and_states_given():
    x, h, mask = sequence(), vectors(3, name="h"), keras.Input((T,), dtype="bool", name="mask_")
    return keras.Model([x, h, mask], layers.GRU(3, return_sequences=True)(x, initial_state=h, mask=mask))


def shared_layers():
    a, b = words(), words(4)
    embedding, rnn, dense = layers.Embedding(7, 4, mask_zero=True), layers.LSTM(3), layers.Dense(3, "tanh")
    return keras.Model([a, b], layers.Subtract()([dense(dense(rnn(embedding(x)))) for x in (a, b)]))


def layer_on_its_own_results():
    x = sequence()
    rnn = layers.SimpleRNN(F, return_sequences=True)
    y = rnn(masked(x))
    z = rnn(rnn(y))
    return keras.Model(x, [rnn(z), layers.Average()([y, z])])


def list_of_one_output():
    x = sequence()
    return keras.Model([x], [layers.GRU(3)(x)])


def named_outputs():
    x = sequence()
    y, h = layers.SimpleRNN(3, return_sequences=True, return_state=True)(x)
    return keras.Model(x, {"z_last": h, "all": y, "mean": layers.GlobalAveragePooling1D()(y)})


def named_inputs():
    given = {"words": words(name="w"), "a": sequence(name="numbers")}
    y = layers.Concatenate()([embedded(given["words"]), given["a"]])
    return keras.Model(given, layers.LSTM(3)(y))


def inner_functional(size=4, outputs=1):
    a, b = sequence(), vectors(size, name="h")
    y, h = layers.SimpleRNN(size, return_sequences=True, return_state=True)(masked(a), initial_state=b)
    return keras.Model([a, b], y if outputs == 1 else [y, h], name="inner")


def nested_functional_twice():
    x, h = sequence(), vectors()
    inner = inner_functional()
    return keras.Model([x, h], layers.SimpleRNN(3)(inner([inner([x, h]), h])))


def nested_with_two_outputs():
    x, h = sequence(), vectors()
    inner = inner_functional(outputs=2)
    y, state = inner([x, h])
    z, last = inner([y, state])
    return keras.Model([x, h], [z, layers.Add()([last, state])])


def nested_sequential_masked():
    x = words()
    inner = keras.Sequential([keras.Input((T, F)), layers.Dense(4), layers.GRU(F, return_sequences=True)])
    return keras.Model(x, layers.SimpleRNN(2, return_sequences=True)(inner(inner(embedded(x)))))


def nested_sequential_without_input():
    x = words()
    inner = keras.Sequential([layers.Dense(F), layers.SimpleRNN(F, return_sequences=True)])
    return keras.Model(x, [inner(embedded(x)), layers.LSTM(2)(inner(inner(embedded(x))))])


def nested_is_the_output():
    x, h = sequence(), vectors()
    inner = inner_functional()
    y = inner([x, h])
    return keras.Model([x, h], [y, inner([y, h])])


def only_the_second_call_is_output():
    x, h = sequence(), vectors()
    inner = inner_functional()
    return keras.Model([x, h], inner([inner([x, h]), h]))


def inputs_as_outputs():
    x, h = sequence(), vectors()
    return keras.Model([x, h], [h, layers.SimpleRNN(3)(x, initial_state=layers.Dense(3)(h)), x])


def nested_input_as_output():
    x, a = words(), sequence()
    inner = keras.Model(a, [a, layers.Dense(3)(a)])
    y, z = inner(embedded(x))
    return keras.Model(x, [layers.SimpleRNN(2, return_sequences=True)(y), layers.GRU(2, return_sequences=True)(z)])


def nested_mappings():
    x, h = sequence(), vectors()
    a, b = sequence(name="b_"), vectors(name="a_")
    y, state = layers.GRU(4, return_sequences=True, return_state=True)(a, initial_state=b)
    inner = keras.Model({"steps": a, "first": b}, {"y": y, "state": state})
    once = inner({"steps": x, "first": h})
    return keras.Model([x, h], inner({"steps": once["y"], "first": once["state"]}))


def models_in_models_in_models():
    a, b, x = sequence(), sequence(), words()
    small = keras.Model(a, layers.Dense(F, "tanh")(a), name="small")
    middle = keras.Model(b, layers.SimpleRNN(F, return_sequences=True)(small(small(b))), name="middle")
    large = keras.Sequential([layers.Dense(F), middle, keras.Sequential([layers.Dense(F)])], name="large")
    return keras.Model(x, layers.LSTM(2, return_sequences=True)(large(large(embedded(x)))))


def over_time(make):
    def model():
        x = keras.Input((3, T, F))
        return keras.Model(x, layers.TimeDistributed(make())(x))

    return model


def over_time_masked():
    x = words()
    y = layers.TimeDistributed(layers.Dense(3, "relu"))(embedded(x))
    return keras.Model(x, layers.SimpleRNN(2, return_sequences=True)(y))


def nested_in_time():
    a = sequence()
    y = layers.Bidirectional(layers.GRU(2, return_sequences=True))(masked(a))
    return keras.Model(a, layers.Dense(3)(layers.LSTM(4)(y)))


def operators():
    x, v = sequence(), vectors()
    y = x + ops.expand_dims(v, 1)
    z = (2 * y - x / 3) * -1.5
    last, middle = z[:, -1], z[:, 1:3]
    steps = layers.SimpleRNN(3, return_sequences=True)(middle)
    parts = [last[:, None], ops.maximum(last, v)[:, None, :], z[..., ::2, :]]
    return keras.Model([x, v], [steps, ops.concatenate(parts, axis=1), ops.mean(z, axis=[1, 2], keepdims=True)])


def masked_operators():
    """An operation ends the mask."""
    x = words()
    y = embedded(x)
    return keras.Model(x, [layers.SimpleRNN(3, return_sequences=True)(each) for each in (y + 1, y[:, 1:], y)])


def dropped():
    """Keras does not write down whether a SpatialDropout1D is trainable, as it does for any other layer."""
    x = words()
    y = layers.SpatialDropout1D(0.5)(layers.GaussianNoise(0.5)(layers.Dropout(0.5)(embedded(x))))
    return keras.Model(x, layers.GRU(3, dropout=0.5, return_sequences=True)(y))


def stateful():
    x = sequence(batch_size=B)
    y = layers.LSTM(3, return_sequences=True, stateful=True)(masked(x))
    return keras.Model(x, layers.GRU(2, stateful=True)(y))


def both_directions(kind):
    def make():
        x = sequence()
        layer = layers.Bidirectional(kind(3, return_sequences=True, return_state=True), merge_mode=None)
        return keras.Model(x, layer(masked(x)))

    return make


def different_directions():
    x = words()
    forward = layers.RNN([layers.GRUCell(3), layers.GRUCell(2, reset_after=False)], return_sequences=True)
    backward = layers.LSTM(2, "relu", return_sequences=True, go_backwards=True)
    y = layers.Bidirectional(forward, backward_layer=backward, merge_mode="mul")(embedded(x))
    return keras.Model(x, layers.SimpleRNN(2, return_sequences=True)(y))


def recurrent(make):
    def model():
        x = words()
        return keras.Model(x, make()(embedded(x)))

    return model


EVERYTHING = {"return_sequences": True, "return_state": True}
RECURRENT = {
    "GRU, reset before": lambda: layers.GRU(3, reset_after=False, **EVERYTHING),
    "GRU, no biases": lambda: layers.GRU(3, use_bias=False, **EVERYTHING),
    "GRU, reset before, no biases": lambda: layers.GRU(3, use_bias=False, reset_after=False, **EVERYTHING),
    "GRU, backwards": lambda: layers.GRU(3, go_backwards=True, zero_output_for_mask=True, **EVERYTHING),
    "GRU, activations": lambda: layers.GRU(3, "relu", "hard_sigmoid", unroll=True, **EVERYTHING),
    "LSTM, no biases": lambda: layers.LSTM(3, use_bias=False, go_backwards=True, **EVERYTHING),
    "LSTM, activations": lambda: layers.LSTM(3, "elu", "softsign", unroll=True, **EVERYTHING),
    "LSTM, zeros": lambda: layers.LSTM(3, None, "tanh", zero_output_for_mask=True, **EVERYTHING),
    "RNN(LSTMCell)": lambda: layers.RNN(layers.LSTMCell(3), **EVERYTHING),
    "RNN(GRUCell)": lambda: layers.RNN(layers.GRUCell(3, reset_after=False), go_backwards=True, **EVERYTHING),
    "RNN of all cells": lambda: layers.RNN(
        [layers.LSTMCell(3), layers.SimpleRNNCell(2), layers.GRUCell(4), layers.LSTMCell(2)], **EVERYTHING
    ),
}

MODELS = {
    "encoder, decoder: LSTM": encoder_and_decoder(layers.LSTM),
    "one layer after the other": one_after_the_other,
    "joined in time": joined_in_time,
    "joined features": joined_features,
    "one of two masked": one_of_two_masked,
    "sums of masked": sums_of_masked,
    "encoder, decoder: SimpleRNN": encoder_and_decoder(layers.SimpleRNN),
    "encoder, decoder: GRU": encoder_and_decoder(layers.GRU),
    "encoder, decoder: LSTM, by position": encoder_and_decoder(layers.LSTM, by_name=False),
    "bidirectional encoder": bidirectional_encoder,
    "states of both directions": states_of_both_directions,
    "states of a stack": states_of_a_stack,
    "states given": states_given,
    "mask given": mask_given,
    "mask computed": mask_computed,
    "mask overruled": mask_overruled,
    "masks given to others": masks_given_to_others,
    "never in training": never_in_training,
    "mask and states given": mask_and_states_given,
    "shared layers": shared_layers,
    "a layer on its own results": layer_on_its_own_results,
    "a list of one output": list_of_one_output,
    "named outputs": named_outputs,
    "named inputs": named_inputs,
    "nested functional, twice": nested_functional_twice,
    "nested, with two outputs": nested_with_two_outputs,
    "nested sequential, masked": nested_sequential_masked,
    "nested sequential without input": nested_sequential_without_input,
    "nested is the output": nested_is_the_output,
    "inputs as outputs": inputs_as_outputs,
    "nested input as output": nested_input_as_output,
    "nested mappings": nested_mappings,
    "models in models in models": models_in_models_in_models,
    "Dense over time": over_time(lambda: layers.Dense(3, "tanh")),
    "Conv1D over time": over_time(lambda: layers.Conv1D(3, 2, padding="causal")),
    "LSTM over time": over_time(lambda: layers.LSTM(3, return_sequences=True)),
    "nested over time": over_time(nested_in_time),
    "masked, over time": over_time_masked,
    "operators": operators,
    "masked operators": masked_operators,
    "dropped": dropped,
    "stateful": stateful,
    "both directions: SimpleRNN": both_directions(layers.SimpleRNN),
    "both directions: LSTM": both_directions(layers.LSTM),
    "different directions": different_directions,
    **{name: recurrent(make) for name, make in RECURRENT.items()},
    "only the second call is output": only_the_second_call_is_output,
}
