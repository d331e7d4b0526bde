"""Writes `keras_<version>.zip`: the files that one version of Keras makes of small models, and what it predicts.

The tests compare with them what they read, for versions that are not installed there. Made with, each in a fresh virtual
environment of that Python:

    3.6   pip install keras==2.0.9 tensorflow==1.4.1 'h5py<3' 'protobuf<3.20'
    3.6   pip install keras==2.1.6 tensorflow==1.8.0 'h5py<3' 'protobuf<3.20'
    3.7   pip install keras==2.2.5 tensorflow==1.15.5 'h5py<3' 'protobuf<3.20'    # and tf.keras 2.2.4-tf, see below
    3.8   pip install tensorflow==2.4.4 'protobuf<3.20'                           # tf.keras 2.4.0
    3.10  pip install tensorflow-cpu==2.9.3 'protobuf<3.20' 'numpy<2'             # tf.keras 2.9.0
    3.11  pip install tensorflow-cpu==2.12.1                                      # tf.keras 2.12.0
    3.11  pip install tensorflow==2.15.1                                          # tf.keras 2.15.0, see below
    3.11  pip install tensorflow==2.16.2 keras==3.0.5                             # and with keras==3.6.0, see below
    3.11  pip install tensorflow-cpu==2.16.2 keras==3.3.3
    3.11  pip install tensorflow-cpu==2.19.1 keras==3.9.2
    3.13  pip install keras==3.15.1 'jax[cpu]'                                    # with KERAS_BACKEND=jax

and `python make_keras_files.py`, or `python make_keras_files.py tf.keras` for the Keras inside a TensorFlow where there is
another one beside it. With Python 3.6, `pip install pip==21.3.1` comes first. Keras 2.1.6 cannot do softmax with an older
TensorFlow; `nested` has a mask and stacked cells, which Keras 3.9.2 cannot do with JAX. The archives of 2.15.0, 3.0.5 and
3.6.0 are older than this script's other models: they hold `plain` and `nested`, which it still writes alike.
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

try:
    if sys.argv[1:] == ["tf.keras"]:
        raise ImportError
    import keras
except ImportError:  # asked for, or a TensorFlow that has it inside
    from tensorflow import keras

layers = keras.layers
rng = np.random.default_rng(0)
version = tuple(int(part) for part in keras.__version__.split("-")[0].split("."))
legacy = version < (3,)
LATEST = version >= (2, 12)  # the first that can write zip archives
CELLS = "units" in layers.SimpleRNNCell(3).get_config()  # else nothing reads the cells that are in layers again


def randomised(model):
    model.set_weights([rng.uniform(-1 if w.ndim > 1 else 0.2, 1, w.shape) for w in model.get_weights()])
    return model


def known(module, name):
    try:
        return module.get(name) is not None
    except ValueError:
        return False


def first(layer, shape, **given):
    """`layer(...)` as the first of a Sequential, as people write it in this version; `shape` begins with the batch's."""
    if not legacy:
        return [keras.Input(batch_shape=shape), layer(**given)]
    if shape[0] is not None:
        return [layer(batch_input_shape=shape, **given)]
    if layer is layers.Embedding:
        return [layer(input_length=shape[1], **given)]
    return [layer(input_shape=shape[1:], **given)]


def plain():
    """Masked real numbers; a `hard_sigmoid`, which changed between Keras 2 and 3."""
    return keras.Sequential(
        [
            layers.InputLayer((5, 3)) if legacy else keras.Input((5, 3)),
            layers.Masking(0.5),
            layers.SimpleRNN(4, activation="hard_sigmoid", return_sequences=True, dropout=0.1, go_backwards=True),
            layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True), merge_mode="sum", name="both"),
            layers.RNN(layers.SimpleRNNCell(3, use_bias=False), name="last")
            if CELLS
            else layers.SimpleRNN(3, use_bias=False, name="last"),
            layers.Dense(2, activation="softmax"),
        ]
    )


def nested():
    """Masked words; a model in the model; frozen layers, which legacy files list differently."""
    inner = keras.Sequential(
        [
            layers.InputLayer((4, 3)) if legacy else keras.Input((4, 3)),
            layers.BatchNormalization(),
            layers.SimpleRNN(2, return_sequences=True, name="inner_rnn"),
            layers.Dense(3, trainable=False),
        ],
        name="inside",
    )
    gelu = "gelu" if known(keras.activations, "gelu") else "softplus"
    # Old ones take no mask into a model, or into Flatten.
    masked = getattr(layers.InputLayer((4,)), "supports_masking", False) or not legacy
    flatten = not masked or version >= (2, 4)
    return keras.Sequential(
        [
            layers.InputLayer((4,)) if legacy else keras.Input((4,)),
            layers.Embedding(6, 3, mask_zero=masked, name="words"),
            layers.Dropout(0.3),
            inner,
            layers.RNN([layers.SimpleRNNCell(4, "elu"), layers.SimpleRNNCell(2)], return_sequences=True, name="two")
            if CELLS
            else layers.SimpleRNN(2, return_sequences=True, name="one"),
            layers.TimeDistributed(layers.Dense(3, activation=gelu), name="each"),
        ]
        + ([layers.LayerNormalization()] if hasattr(layers, "LayerNormalization") else [])
        + [
            layers.Activation("tanh"),
            layers.Flatten() if flatten else layers.SimpleRNN(3),
            layers.Dense(2),
        ]
    )


def imdb():
    """Sentiment of words, as in every course; the only one that is trained (a little), so that files hold an optimizer."""
    model = keras.Sequential(
        [
            *first(layers.Embedding, (None, 4), input_dim=6, output_dim=3),
            layers.SimpleRNN(4, return_sequences=True),
            layers.SimpleRNN(2),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def gated():
    """LSTM and GRU with the defaults of this version, a GRU with the other `reset_after`; what masked steps give is seen."""
    stack = first(layers.Embedding, (None, 4), input_dim=6, output_dim=3, mask_zero=True)
    stack += [layers.LSTM(4, return_sequences=True), layers.GRU(3, return_sequences=True)]
    default = stack[-1].get_config().get("reset_after")
    if default is not None:
        stack.append(layers.GRU(2, return_sequences=True, reset_after=not default))
    stack += [
        layers.LSTM(3, return_sequences=True, use_bias=False, go_backwards=True, dropout=0.1, recurrent_dropout=0.1),
        layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        layers.Bidirectional(layers.GRU(2, return_sequences=True), merge_mode="ave"),
        layers.Dense(2),
    ]
    return keras.Sequential(stack)


def conv():
    """Convolutions over words without a mask."""
    return keras.Sequential(
        [
            *first(layers.Embedding, (None, 8), input_dim=6, output_dim=3),
            layers.SpatialDropout1D(0.2),
            layers.Conv1D(4, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling1D(2),
            layers.Conv1D(3, 2, padding="causal", dilation_rate=2),
            layers.LeakyReLU(0.2),
            layers.LSTM(3),
            layers.Dense(2),
        ]
    )


def graph():
    """Words and real numbers, a layer that reads both, two outputs."""
    words, reals = layers.Input((4,), name="words"), layers.Input((5, 3), name="reals")
    shared = layers.SimpleRNN(4, name="shared")
    masked = layers.Masking(0.5)(reals)
    one, two = shared(layers.Embedding(6, 3, mask_zero=True)(words)), shared(masked)
    joined = layers.Concatenate()([one, layers.LSTM(2)(masked), two])
    hidden = layers.Dense(3, activation="relu")(joined)
    added = layers.Add()([two, one])
    outputs = [layers.Dense(2, activation="softmax", name="kind")(hidden), layers.Dense(1, name="size")(added)]
    return keras.models.Model([words, reals], outputs)


def seq2seq():
    """An encoder's states are where the decoder starts; any number of steps."""
    source, target = layers.Input((None, 3)), layers.Input((None, 2))
    sequence, h, c = layers.LSTM(4, return_sequences=True, return_state=True)(source)
    _, state = layers.SimpleRNN(3, return_state=True)(sequence)
    decoded, _, _ = layers.LSTM(4, return_sequences=True, return_state=True)(target, initial_state=[h, c])
    decoded = layers.SimpleRNN(3, return_sequences=True)(decoded, initial_state=state)
    return keras.models.Model([source, target], layers.TimeDistributed(layers.Dense(2, activation="softmax"))(decoded))


def nested_graph():
    """A graph in the graph, called twice, and a Sequential in it."""
    inside = layers.Input((5, 3))
    steps = layers.SimpleRNN(2, return_sequences=True)(inside)
    ends = layers.Concatenate()([layers.GRU(3)(steps), layers.SimpleRNN(2, go_backwards=True)(inside)])
    inner = keras.models.Model(inside, layers.Dense(2)(ends))
    stack = keras.Sequential([*first(layers.LSTM, (None, 5, 3), units=2), layers.Dense(3, activation="tanh")])
    one, two = layers.Input((5, 3)), layers.Input((5, 3))
    joined = layers.concatenate([inner(two), stack(one), inner(one)])
    return keras.models.Model([one, two], layers.Dense(2)(joined))


def stateful():
    """Goes on where the last batch ended."""
    return keras.Sequential(
        [*first(layers.SimpleRNN, (2, 5, 3), units=4, stateful=True, return_sequences=True), layers.Dense(2)]
    )


def layer_configs():
    """A SimpleRNNCell for every activation and every initializer, regularizer and constraint there is."""
    keywords = [
        {"activation": name}
        for name in ["relu", "elu", "selu", "gelu", "swish", "tanh", "sigmoid", "hard_sigmoid", "softplus"]
    ]
    keywords += [
        {"activation": name} for name in ["softsign", "exponential", "linear", "softmax", "mish", "leaky_relu"]
    ]
    keywords = [each for each in keywords if known(keras.activations, each["activation"])]
    initializers, regularizers = keras.initializers, keras.regularizers
    keywords += [
        {"kernel_initializer": value}
        for value in [
            *[
                "glorot_normal",
                "glorot_uniform",
                "he_normal",
                "he_uniform",
                "lecun_normal",
                "lecun_uniform",
                "zeros",
                "ones",
            ],
            initializers.Constant(0.25),
            initializers.Identity(2.0),
            initializers.Orthogonal(0.5, seed=1),
            initializers.RandomNormal(0.1, 0.2, seed=2),
            initializers.RandomUniform(-0.3, 0.4, seed=3),
            initializers.TruncatedNormal(0.1, 0.2, seed=4),
            initializers.VarianceScaling(2.0, "fan_out", "uniform", seed=5),
        ]
    ]
    keywords += [
        {"kernel_regularizer": value}
        for value in ["l1", "l2", regularizers.L1L2(0.1, 0.2)]
        + ([regularizers.OrthogonalRegularizer(0.3)] if hasattr(regularizers, "OrthogonalRegularizer") else [])
    ]
    constraints = keras.constraints
    keywords += [
        {"kernel_constraint": value}
        for value in [constraints.MaxNorm(3), constraints.MinMaxNorm(0.5, 2, 0.9), "non_neg", constraints.UnitNorm(1)]
    ]
    serialize = layers.serialize if legacy else keras.saving.serialize_keras_object
    return [serialize(layers.SimpleRNNCell(3, **each)) for each in keywords]


def cells():
    """Of which some versions write no more than the names of their classes."""
    return keras.Sequential([layers.RNN(layers.SimpleRNNCell(3), input_shape=(5, 3)), layers.Dense(2)])


def write(out, name, model, inputs, calls=1):
    """Writes the model in every format of this version, and what it predicts in each of so many calls."""
    many = isinstance(inputs, list)
    arrays = {f"input_{i}": each for i, each in enumerate(inputs)} if many else {"inputs": inputs}
    for call in range(calls):
        outputs = model.predict(inputs, batch_size=len(inputs[0] if many else inputs), verbose=0)
        suffix = f"_{call + 1}" if call else ""
        if isinstance(outputs, list):
            arrays.update({f"output_{i}{suffix}": each for i, each in enumerate(outputs)})
        else:
            arrays["outputs" + suffix] = outputs
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)

    # Not every model in every format, to keep archives small.
    endings = [".keras"] if LATEST else [".h5"]
    if LATEST and name in ("plain", "nested"):
        endings.append(".weights.h5")
    if LATEST and name in ("plain", "nested", "nested_graph") and version != (3, 0, 5):
        endings.append(".h5")  # 3.0.5 cannot write these models to legacy files
    if legacy and name in ("plain", "nested", "gated")[: 2 if LATEST else 3]:
        endings.append("_legacy.h5")
    with tempfile.TemporaryDirectory() as folder:
        for ending in endings:
            path = f"{folder}/{name}{ending}"
            if ending in (".weights.h5", "_legacy.h5"):
                model.save_weights(path)
            elif ending == ".keras" and version[:2] == (2, 12):
                model.save(path, save_format="keras_v3")  # else it is HDF5 by another name
            else:
                model.save(path)
            out.write(path, name + ending)
    out.writestr(name + ".npz", buffer.getvalue())


def main():
    x = rng.normal(size=(3, 5, 3)).astype(np.float32)
    x[0, 2:] = x[1, 0] = 0.5
    words = np.array([[1, 2, 0, 0], [3, 0, 4, 5], [0, 0, 0, 0]], np.int32)

    path = Path(f"keras_{keras.__version__}.zip")
    level = {"compresslevel": 9} if sys.version_info >= (3, 7) else {}
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED, **level) as out:
        write(out, "plain", randomised(plain()), x)
        write(out, "nested", randomised(nested()), words)

        def fresh(make):
            keras.backend.clear_session()  # layers are named as in a new process
            return randomised(make())

        model = fresh(imdb)
        model.train_on_batch(words, np.array([[0], [1], [1]]))
        write(out, "imdb", model, words)
        write(out, "gated", fresh(gated), words)
        write(out, "conv", fresh(conv), rng.integers(0, 6, (3, 8)).astype(np.int32))
        write(out, "graph", fresh(graph), [words, x])
        y = rng.normal(size=(3, 4, 2)).astype(np.float32)
        write(out, "seq2seq", fresh(seq2seq), [x, y])
        write(out, "nested_graph", fresh(nested_graph), [x, x[:, ::-1].copy()])
        model = fresh(stateful)
        if legacy:
            model.reset_states()
        else:
            model.layers[0].reset_state()
        write(out, "stateful", model, x[:2], calls=2)
        if not CELLS:
            write(out, "cells", fresh(cells), x)
        out.writestr("configs.json", json.dumps(layer_configs()))
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
