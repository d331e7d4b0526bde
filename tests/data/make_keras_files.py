"""Writes `keras_<version>.zip`: the files that one version of Keras makes of two small models, and what it predicts.

The tests compare with them what they read, for versions that are not installed there. Made with:

    pip install tensorflow==2.15.1                 python make_keras_files.py    # tf.keras 2.15.0
    pip install tensorflow==2.16.2 keras==3.0.5    python make_keras_files.py    # and the same with keras==3.6.0
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

layers = keras.layers
rng = np.random.default_rng(0)
legacy = keras.__version__.startswith("2.")


def randomised(model):
    model.set_weights([rng.uniform(-1 if w.ndim == 2 else 0.2, 1, w.shape) for w in model.get_weights()])
    return model


def plain():
    """Masked real numbers; a `hard_sigmoid`, which changed between Keras 2 and 3."""
    return keras.Sequential(
        [
            layers.InputLayer((5, 3)) if legacy else keras.Input((5, 3)),
            layers.Masking(0.5),
            layers.SimpleRNN(4, activation="hard_sigmoid", return_sequences=True, dropout=0.1, go_backwards=True),
            layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True), merge_mode="sum", name="both"),
            layers.RNN(layers.SimpleRNNCell(3, use_bias=False), name="last"),
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
    return keras.Sequential(
        [
            layers.InputLayer((4,)) if legacy else keras.Input((4,)),
            layers.Embedding(6, 3, mask_zero=True, name="words"),
            layers.Dropout(0.3),
            inner,
            layers.RNN([layers.SimpleRNNCell(4, "elu"), layers.SimpleRNNCell(2)], return_sequences=True, name="two"),
            layers.TimeDistributed(layers.Dense(3, activation="gelu"), name="each"),
            layers.LayerNormalization(),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(2),
        ]
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
        for value in ["l1", "l2", regularizers.L1L2(0.1, 0.2), regularizers.OrthogonalRegularizer(0.3)]
    ]
    constraints = keras.constraints
    keywords += [
        {"kernel_constraint": value}
        for value in [constraints.MaxNorm(3), constraints.MinMaxNorm(0.5, 2, 0.9), "non_neg", constraints.UnitNorm(1)]
    ]
    serialize = layers.serialize if legacy else keras.saving.serialize_keras_object
    return [serialize(layers.SimpleRNNCell(3, **each)) for each in keywords]


def main():
    x = rng.normal(size=(3, 5, 3)).astype(np.float32)
    x[0, 2:] = x[1, 0] = 0.5
    words = np.array([[1, 2, 0, 0], [3, 0, 4, 5], [0, 0, 0, 0]], np.int32)

    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(f"keras_{keras.__version__}.zip", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name, model, inputs in (("plain", randomised(plain()), x), ("nested", randomised(nested()), words)):
            endings = [".keras", ".weights.h5"]
            if keras.__version__ != "3.0.5":  # which cannot write these models to legacy files
                endings.append(".h5")
            for ending in endings:
                (model.save_weights if "weights" in ending else model.save)(f"{folder}/{name}{ending}")
            if legacy:
                endings.append("_legacy.h5")
                model.save_weights(f"{folder}/{name}_legacy.h5")
            for ending in endings:
                out.write(f"{folder}/{name}{ending}", f"{name}{ending}")
            buffer = io.BytesIO()
            np.savez(buffer, inputs=inputs, outputs=model.predict(inputs, verbose=0))
            out.writestr(f"{name}.npz", buffer.getvalue())
        out.writestr("configs.json", json.dumps(layer_configs()))
    print(Path(out.filename).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
