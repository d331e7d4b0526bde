"""Random functional models of Keras: `RandomModel(seed).model`."""

from __future__ import annotations

import jax
import keras
import numpy as np
from keras import layers, ops
from keras_models import F, T

# What Keras's "linear" returns is the very array with its mask, so no layer of it.
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softsign", "elu", "linear")


class RandomModel:
    """A graph that grows by one random call after the other on random results; what is unused at the end is an output.

    Attributes:
      model: the result.
      steps: how many calls there are, those inside nested models not counted.
    """

    def __init__(self, seed: int, steps: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps = steps
        self.free_time = self.chance(0.2)
        inputs = [self.word_input() if self.chance(0.5) else self.real_input() for _ in range(self.rng.integers(1, 4))]
        starts = [self.embedded(x) if x.dtype == "int32" else self.maybe_masked(x) for x in inputs]
        self.model = self.grown(inputs, starts, steps, depth=0)

    # Choices

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *values):
        return values[self.rng.integers(len(values))]

    def length(self) -> int | None:
        return None if self.free_time else self.pick(T, T, 3)

    def word_input(self):
        return keras.Input((self.length(),), dtype="int32")

    def real_input(self):
        return keras.Input((self.length(), self.pick(F, 3)))

    def embedded(self, x):
        return layers.Embedding(7, self.pick(F, 3), mask_zero=self.chance(0.8))(x)

    def maybe_masked(self, x):
        return layers.Masking()(x) if self.chance(0.6) else x

    # Growth

    def grown(self, inputs, starts, steps: int, depth: int):
        """The model of these inputs, whose graph begins with `starts`."""
        results, used, shared = list(starts), set(), []
        for _ in range(steps):
            new = self.call(results, used, shared, depth)
            results += [each for each in new if 2 <= len(each.shape) <= 3]
        ends = [each for each in results if id(each) not in used] or results[-1:]
        outputs = [self.shown(each) for each in ends[-4:]] if depth == 0 else ends[-2:]
        return keras.Model(inputs, outputs[0] if len(outputs) == 1 and self.chance(0.5) else outputs)

    def shown(self, x):
        """A SimpleRNN shows what is masked."""
        return layers.SimpleRNN(2, return_sequences=True)(x) if len(x.shape) == 3 else x

    def call(self, results, used, shared, depth):
        """A random call on random results, by a new layer or by one of `shared`."""
        x = self.pick(*results[-4:]) if self.chance(0.7) else self.pick(*results)
        fitting = [(layer, shape) for layer, shape in shared if shape == x.shape]
        if fitting and self.chance(0.4):
            new = self.pick(*(layer for layer, _ in fitting))(x)
        elif (merged := self.merged(x, results, used)) is not None:
            new = merged
        elif (started := self.started(x, results, used)) is not None:
            new = started
        elif depth < 2 and self.chance(0.12):
            new = self.nested(x, results, used, shared, depth)
        elif self.chance(0.12):
            new = self.operation(x, results, used)
        else:
            layer = self.of_sequences() if len(x.shape) == 3 else self.of_vectors()
            new = layer(x)
            shared.append((layer, x.shape))
        used.add(id(x))
        return jax.tree.leaves(new)

    def like(self, x, results):
        """Other results of the same shape, if it is known."""
        return [] if None in x.shape[1:] else [each for each in results if each.shape == x.shape and each is not x]

    def merged(self, x, results, used):
        others = self.like(x, results)
        if not others or not self.chance(0.35):
            return None
        several = [x, *(self.pick(*others) for _ in range(self.pick(1, 1, 2)))]
        kind = self.pick("Add", "Average", "Multiply", "Maximum", "Minimum", "Subtract", "Concatenate", "Concatenate")
        used.update(map(id, several))
        if kind == "Concatenate":
            return layers.Concatenate(axis=self.pick(-1, 1))(several)
        return getattr(layers, kind)()(several[:2] if kind == "Subtract" else several)

    def started(self, x, results, used):
        """A recurrent layer with a given initial state, or mask."""
        if len(x.shape) != 3 or not self.chance(0.25):
            return None
        states = [each for each in results if len(each.shape) == 2 and each.shape[1] is not None]
        kind = self.pick("SimpleRNN", "GRU", "LSTM")
        if not states:
            states = [layers.GlobalMaxPooling1D()(x)]
        h = self.pick(*states)
        same = [each for each in states if each.shape == h.shape]
        both = [h, self.pick(*same)] if kind == "LSTM" else [h]
        if self.chance(0.5):
            both = [layers.Dense(3, "tanh")(each) for each in both]
        layer = getattr(layers, kind)(
            int(both[0].shape[1]), return_sequences=self.chance(0.7), return_state=self.chance(0.3)
        )
        used.update(map(id, both))
        given = {}
        if self.chance(0.3):
            given["mask"] = ops.any(ops.greater(x, self.pick(-0.5, 0, 0.1)), axis=-1)
        one = both[0] if len(both) == 1 and self.chance(0.5) else both
        return layer(x, one, **given) if self.chance(0.3) else layer(x, initial_state=one, **given)

    def nested(self, x, results, used, shared, depth):
        """A model of this result and perhaps another one, called once or twice."""
        if self.chance(0.25):
            inner = keras.Sequential([layers.Dense(self.units()), layers.LayerNormalization(), layers.Dense(F, "tanh")])
            if self.chance(0.5):
                inner.build(x.shape)
            shared.append((inner, x.shape))
            return inner(x)
        others = self.like(x, results)
        several = [x, self.pick(*others)] if others and self.chance(0.6) else [x]
        inputs = [keras.Input(each.shape[1:]) for each in several]
        inner = self.grown(inputs, [*map(self.maybe_masked_of, inputs)], int(self.rng.integers(1, 4)), depth + 1)
        used.update(map(id, several))
        if len(several) == 1:
            shared.append((inner, x.shape))
        first = inner(several if len(several) > 1 else x)
        if self.chance(0.3):
            again = inner(several[::-1] if len(several) > 1 else x)
            return [first, again]
        return first

    def maybe_masked_of(self, x):
        return self.maybe_masked(x) if len(x.shape) == 3 and self.chance(0.3) else x

    def operation(self, x, results, used):
        if len(x.shape) == 3:
            step = self.pick(0, -1, 2)
            return self.pick(
                lambda: x + 0.5,
                lambda: x[:, step],
                lambda: x[:, 1:],
                lambda: x[..., :2],
                lambda: ops.expand_dims(x[:, step], 1),
                lambda: 2 - x * x,
                lambda: x / 3,
                lambda: -x,
                lambda: ops.mean(x, axis=1),
                lambda: ops.concatenate([x, x], axis=self.pick(1, -1)),
                lambda: ops.maximum(x, x[:, :1]),
            )()
        return self.pick(
            lambda: x - 0.1, lambda: ops.expand_dims(x, 1), lambda: x[:, :2], lambda: ops.minimum(x, 0.3), lambda: x * x
        )()

    # Layers

    def of_vectors(self):
        return self.pick(
            lambda: layers.Dense(self.units(), self.pick(*ACTIVATIONS), use_bias=self.chance(0.7)),
            lambda: layers.RepeatVector(self.pick(2, T)),
            lambda: layers.LayerNormalization(),
            lambda: layers.BatchNormalization(),
            lambda: layers.Activation(self.pick(*ACTIVATIONS[:-1])),
            lambda: layers.Reshape((1, -1)),
            lambda: layers.Dropout(0.3),
            lambda: layers.UnitNormalization(),
        )()

    def of_sequences(self):
        if self.chance(0.5):
            return self.recurrent()
        return self.pick(
            lambda: layers.Dense(self.units(), self.pick(*ACTIVATIONS)),
            lambda: layers.TimeDistributed(layers.Dense(self.units(), "tanh")),
            lambda: layers.TimeDistributed(keras.Sequential([layers.Dense(self.units()), layers.LayerNormalization()])),
            lambda: layers.Masking(),
            lambda: layers.LayerNormalization(),
            lambda: layers.BatchNormalization(),
            lambda: layers.Dropout(0.3),
            lambda: layers.SpatialDropout1D(0.3),
            lambda: layers.GaussianNoise(0.3),
            lambda: layers.Conv1D(self.units(), 2, padding=self.pick("same", "causal"), activation="tanh"),
            lambda: layers.MaxPooling1D(2, padding="same"),
            lambda: layers.AveragePooling1D(2, strides=1, padding="same"),
            lambda: layers.GlobalMaxPooling1D(keepdims=self.chance(0.3)),
            lambda: layers.GlobalAveragePooling1D(),
            lambda: layers.ZeroPadding1D(self.pick(1, (0, 2))),
            lambda: layers.Activation(self.pick(*ACTIVATIONS[:-1])),
            lambda: layers.LeakyReLU(negative_slope=0.2),
            lambda: layers.PReLU(shared_axes=[1]),
            lambda: layers.UnitNormalization(),
            lambda: layers.Rescaling(0.5, offset=0.1),
            lambda: layers.ActivityRegularization(l2=0.1),
        )()

    def units(self) -> int:
        return self.pick(3, F, 5)

    def recurrent(self):
        options = {"return_sequences": self.chance(0.7), "return_state": self.chance(0.2)}
        if self.chance(0.3):
            layer, backward = self.directed(**options), None
            if layer.go_backwards or self.chance(0.3):  # Keras turns a layer round that goes forward only
                config = layer.get_config()
                config |= {"go_backwards": not layer.go_backwards, "name": f"{layer.name}_other"}
                backward = type(layer).from_config(config)
            modes = ("concat", None) if options["return_state"] else ("concat", "sum", "mul", "ave", None)
            return layers.Bidirectional(layer, merge_mode=self.pick(*modes), backward_layer=backward)
        return self.directed(**options)

    def directed(self, **options):
        options |= {"go_backwards": self.chance(0.2), "zero_output_for_mask": self.chance(0.2)}
        if self.chance(0.2):
            cells = [self.cell() for _ in range(self.pick(1, 2, 3))]
            return layers.RNN(cells[0] if len(cells) == 1 else cells, **options)
        kind = self.pick("SimpleRNN", "GRU", "LSTM")
        return getattr(layers, kind)(**self.cell_options(kind), **options)

    def cell(self):
        kind = self.pick("SimpleRNN", "GRU", "LSTM")
        return getattr(layers, f"{kind}Cell")(**self.cell_options(kind))

    def cell_options(self, kind: str):
        options = {"units": self.units(), "use_bias": self.chance(0.8), "dropout": self.pick(0.0, 0.0, 0.2)}
        if self.chance(0.4):
            options["activation"] = self.pick(*ACTIVATIONS)
        if kind != "SimpleRNN" and self.chance(0.3):
            options["recurrent_activation"] = self.pick("hard_sigmoid", "tanh", "softsign")
        if kind == "GRU":
            options["reset_after"] = self.chance(0.6)
        return options
