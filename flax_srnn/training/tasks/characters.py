"""A model of text that reads one character after another and says how likely each next one is.

With x_t the number of character t, e its embedding, L layers and V characters in the vocabulary:

    y^0_t = e(x_{t-1})                                     of a file's first character: e(begin)
    s^l_t = tanh(y^{l-1}_t W_l + s^l_{t-1} U_l + b_l)      the SimpleRNN of this library, s = 0 before a file's first character
    y^l_t = s^l_t, and + y^{l-1}_t where l > 1
    p_t   = softmax(y^L_t O + c)                           of V characters and of "unknown", all others
    bits  = mean_t -log2 p_t(x_t), and + log2(1114112) where x_t is unknown

An unknown character is paid for: after "unknown" comes which of Unicode's code points it is, all equally likely. So the bits are
those of a text that can be restored from them, comparable with what gzip and xz make of each file alone. But these begin each
file knowing nothing, and the model with what other files taught it; its parameters are not counted.

Training is truncated back-propagation through time. The files follow each other in a new order each epoch, cut into B streams of
equal length; a step reads `window` characters of each stream and starts from the states in which the step before it ended. At
a file's first character, and where an epoch begins, the state is zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import SimpleRNN
from flax_srnn.training import text as texts
from flax_srnn.training.config import Training, Within
from flax_srnn.training.tasks import Experiment, Report, Table, Task
from flax_srnn.training.text import Corpus, Parts, Text

__all__ = ["TASK", "Characters", "Model", "bits"]

_UNKNOWN_BITS = math.log2(0x110000)
_EMBEDDING = nn.initializers.normal(1.0)  # the default is so small that the first layer hardly hears the character
_SCORED_ROWS, _SCORED_WINDOW = 32, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters(Training):
    """How text is learned.

    Args:
      data: a text file, or a folder of them, or python_source, the standard library of the Python that runs.
      layers: of SimpleRNN, one upon the other.
      units: of each layer.
      embedding: features of a character.
      dropout: of what goes into the layers above the first and into the output.
      window: characters of each stream in a step: how far gradients reach back.
      least: occurrences that a character needs in the training part to be in the vocabulary.
      test_share: of the files, or of the characters of a single file: what is reported at the end.
      validation_share: the same for the scores during training.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range.
    """

    data: str | None = None
    layers: Annotated[int, Within(1, 64)] = 1
    units: Annotated[int, Within(1, 16384)] = 256
    embedding: Annotated[int, Within(1, 16384)] = 64
    dropout: Annotated[float, Within(0, 0.99)] = 0.0
    window: Annotated[int, Within(1, 10**5)] = 64
    least: Annotated[int, Within(1, 10**9)] = 20
    test_share: Annotated[float, Within(0.001, 0.9)] = 0.05
    validation_share: Annotated[float, Within(0.001, 0.9)] = 0.02
    clip: Annotated[float, Within(0, 1e9)] = 1.0


def _load(config: Characters) -> Experiment:
    corpus, parts = _read(config)
    vocabulary = texts.characters(parts.training, config.least)
    if not len(vocabulary):
        raise ValueError(f"data {config.data}: it is too short: no character is {config.least} times in it (least).")
    codes, begin = texts.encode(vocabulary, parts.training), texts.begin(vocabulary)
    length = -(-sum(map(len, codes)) // (config.batch_size * config.window))  # of an epoch, in steps
    constants = {"vocabulary": vocabulary}
    model = Model(config, begin)

    @functools.lru_cache(maxsize=2)
    def streams(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, characters) read and to be predicted; behind the end of the last file `begin` is to be predicted."""
        order = np.random.default_rng((config.seed, epoch)).permutation(len(codes))
        targets = np.full((config.batch_size, length * config.window), begin, codes[0].dtype)
        inputs = np.full_like(targets, begin)
        start = 0
        for each in (codes[i] for i in order):
            targets.ravel()[start : start + len(each)] = each
            inputs.ravel()[start + 1 : start + len(each)] = each[:-1]
            start += len(each)
        return inputs, targets

    def batch(step: int, rows: range) -> dict[str, np.ndarray]:
        epoch, window = divmod(step, length)
        here = slice(rows.start, rows.stop), slice(window * config.window, (window + 1) * config.window)
        inputs, targets = (x[here] for x in streams(epoch))
        resets = inputs == begin
        if window == 0:
            resets[:, 0] = True
        return {"inputs": inputs, "targets": targets, "resets": resets}

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        outputs, carry = _apply(
            model, params, carry, batch["inputs"], batch["resets"], training=True, rngs={"dropout": key}
        )
        return jnp.mean(bits(outputs, batch["targets"]), where=batch["targets"] != begin), carry

    def score(params: Any) -> float:
        """Bits per character of the validation part."""
        return float(np.concatenate(_bits_of(config, params, vocabulary, parts.validation)).mean(dtype=np.float64))

    return Experiment(
        batch,
        loss,
        lambda params: _report(config, params, vocabulary, corpus, parts),
        score,
        carry=_carry(model, config.batch_size),
        constants=constants,
        measure="bits per character",
    )


def _read(config: Characters) -> tuple[Corpus, Parts]:
    if config.data is None:
        raise ValueError("`data`: characters needs text: --data FILE or folder; the config python_source shows some.")
    corpus = texts.read(config.data)
    return corpus, texts.split(corpus, config.validation_share, config.test_share)


# --- the network -------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Numbers of characters (B, T) -> logits of the next (B, T, V + 1); `begin`, V + 1, has none.

    States are variables of the collection "carry", so that `resets`, flags (B, T), set them back to zero: those of a layer that
    is given an `initial_state` set it back to that.
    """

    config: Characters
    begin: int

    @nn.compact
    def __call__(self, inputs: jax.Array, resets: jax.Array | None, training: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        drop = functools.partial(nn.Dropout(config.dropout), deterministic=not training)
        embed = nn.Embed(self.begin + 1, config.embedding, dtype=dtype, embedding_init=_EMBEDDING, name="embedding")
        outputs = embed(inputs.astype(jnp.int32))
        for index in range(config.layers):
            given = drop(outputs) if index else outputs
            outputs = self.layer(f"rnn_{index}", given, resets)
            outputs = given + outputs if index else outputs
        head = nn.Dense(self.begin, dtype=dtype, name="head")
        return head(drop(outputs)).astype(jnp.float32)

    @nn.nowrap
    def layer(self, name: str, inputs: jax.Array, resets: jax.Array | None) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        rnn = SimpleRNN(self.config.units, return_sequences=True, stateful=True, dtype=dtype, name=name)
        outputs: jax.Array = rnn(inputs, resets=resets)
        return outputs


def _init(config: Characters, constants: Mapping[str, np.ndarray], key: jax.Array) -> Any:
    model = Model(config, texts.begin(constants["vocabulary"]))
    return model.init(key, jnp.zeros((1, 1), jnp.int32), None)["params"]


def _carry(model: Model, rows: int) -> Any:
    """States of zeros."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((rows, 1), jnp.int32), None)["carry"]
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _apply(model: Model, params: Any, carry: Any, *inputs: Any, **options: Any) -> tuple[jax.Array, Any]:
    """Logits, and states."""
    outputs, updated = model.apply({"params": params, "carry": carry}, *inputs, mutable=["carry"], **options)
    return outputs, updated["carry"]


def bits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """What each character (B, T) takes under logits (B, T, V + 1); anything where `begin` is the target."""
    unknown = logits.shape[-1] - 1
    targets = targets.astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.minimum(targets, unknown)[..., None], axis=-1)
    return jnp.where(targets == unknown, _UNKNOWN_BITS, 0.0) - chosen[..., 0] / math.log(2)


def _bits_of(config: Characters, params: Any, vocabulary: np.ndarray, files: Sequence[Text]) -> list[np.ndarray]:
    """The bits of each character of each file, every file begun anew."""
    codes, begin = texts.encode(vocabulary, files), texts.begin(vocabulary)
    sizes = [len(each) for each in codes]
    rows, places = _packed(sizes, min(_SCORED_ROWS, -(-sum(sizes) // max(sizes))))
    length = max(sum(sizes[i] for i in row) for row in rows)
    inputs = np.full((len(rows), -(-length // _SCORED_WINDOW) * _SCORED_WINDOW), begin, codes[0].dtype)
    targets = inputs.copy()
    for (row, start), each in zip(places, codes, strict=True):
        targets[row, start : start + len(each)] = each
        inputs[row, start + 1 : start + len(each)] = each[:-1]
    model = Model(config, begin)
    carry, found = _carry(model, len(rows)), []
    for start in range(0, inputs.shape[1], _SCORED_WINDOW):
        now = slice(start, start + _SCORED_WINDOW)
        taken, carry = _scored(model, params, carry, inputs[:, now], targets[:, now])
        found.append(np.asarray(taken))
    joined = np.concatenate(found, axis=1)
    return [joined[row, start : start + size] for (row, start), size in zip(places, sizes, strict=True)]


def _packed(sizes: Sequence[int], number: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Files in rows of about the same length, longest first: the files of each row, and row and start of each file."""
    rows: list[list[int]] = [[] for _ in range(number)]
    lengths, places = [0] * number, [(0, 0)] * len(sizes)
    for file in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = lengths.index(min(lengths))
        places[file] = row, lengths[row]
        rows[row].append(file)
        lengths[row] += sizes[file]
    return rows, places


@functools.partial(jax.jit, static_argnums=0)
def _scored(model: Model, params: Any, carry: Any, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    logits, carry = _apply(model, params, carry, inputs, inputs == model.begin)
    return bits(logits, targets), carry


# --- the result --------------------------------------------------------------------------------------------------------


def _report(config: Characters, params: Any, vocabulary: np.ndarray, corpus: Corpus, parts: Parts) -> Report:
    found = _bits_of(config, params, vocabulary, parts.test)
    sizes = np.array([len(each) for each in found])
    sums = np.array([each.sum(dtype=np.float64) for each in found])
    alone = [texts.compressed([each]) for each in parts.test]
    joined = texts.compressed([Text("", "".join(each.characters for each in parts.test))])
    others = {name: np.array([8.0 * each[name] for each in alone]) for name in joined}
    total = sizes.sum()
    scores: dict[str, Any] = {
        "bits_per_character": float(sums.sum() / total),
        **{name: float(each.sum() / total) for name, each in others.items()},
        "all files joined": {name: 8.0 * size / float(total) for name, size in joined.items()},
        "files": {name: len(each) for name, each in parts._asdict().items()} | {"not UTF-8": corpus.not_utf8},
        "characters": {name: sum(len(x.characters) for x in each) for name, each in parts._asdict().items()},
        "vocabulary": len(vocabulary),
        "unknown characters in test": int(
            sum((x == len(vocabulary)).sum() for x in texts.encode(vocabulary, parts.test))
        ),
    }
    rows: list[tuple[Any, ...]] = [
        ("this model", f"{scores['bits_per_character']:.3f}", ""),
        *((f"{name} -9", f"{scores[name]:.3f}", f"{scores['all files joined'][name]:.3f}") for name in others),
    ]
    where = (
        "of the end of the file"
        if corpus.single
        else f"of the files held out, {len(parts.test)} of {len(corpus.texts)}"
    )
    table = Table(f"Bits per character {where}", ("", "each file alone", "all files joined"), rows)
    per_file = {"this model": sums / sizes, **{f"{name} -9": each / sizes for name, each in others.items()}}
    means = [scores["bits_per_character"], *(scores[name] for name in others)]
    return Report(scores, table, {"bits.png": functools.partial(_draw, sizes, per_file, means)})


def _draw(sizes: np.ndarray, per_file: Mapping[str, np.ndarray], means: Sequence[float], path: Path) -> None:
    """Bits per character of each file by its size, and of all."""
    from matplotlib.figure import Figure

    from flax_srnn.training.plots import BLUE, ORANGE, plain

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = plain(figure.subplots())
    styles = ((BLUE, "o", "-"), (ORANGE, "x", "--"), ("black", "+", ":"))
    for (name, each), mean, (color, marker, line) in zip(per_file.items(), means, styles, strict=True):
        axes.plot(sizes, each, marker, color=color, markersize=5, label=f"{name}: {mean:.3f} in all")
        axes.axhline(mean, color=color, linestyle=line, linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.25 * np.percentile(np.concatenate(list(per_file.values())), 90))
    axes.set(xlabel="characters of the file", ylabel="bits per character")
    axes.set_title("Bits per character of each file held out", loc="left", fontweight="bold")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")


def _predict(config: Characters, params: Any, constants: Mapping[str, np.ndarray], path: Path | None) -> Table:
    """How well the model knows each file of a folder, or those held out."""
    files = _read(config)[1].test if path is None else texts.read(str(path)).texts
    found = _bits_of(config, params, constants["vocabulary"], files)
    sizes = [texts.compressed([each])["gzip"] for each in files]
    rows = [
        (each.name, len(taken), f"{taken.mean():.3f}", f"{8 * size / len(taken):.3f}")
        for each, taken, size in zip(files, found, sizes, strict=True)
    ]
    return Table("Bits per character, each file alone", ("file", "characters", "bits per character", "gzip -9"), rows)


def _sample(
    config: Characters,
    params: Any,
    constants: Mapping[str, np.ndarray],
    prompt: str,
    length: int,
    temperature: float,
    seed: int,
) -> str:
    """What follows a file's first characters, `prompt`; the likeliest characters at temperature 0."""
    for name, value, least, most in (("length", length, 1, 10**7), ("seed", seed, 0, 2**32 - 1)):
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"`{name}` must be a whole number of at least {least} and at most {most}, got {value!r}.")
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be a finite number of at least 0, got {temperature!r}.")
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` must be text, got {prompt!r}.")
    vocabulary = constants["vocabulary"]
    (given,) = texts.encode(vocabulary, [Text("prompt", prompt)])
    if (unknown := np.flatnonzero(given == len(vocabulary))).size:
        raise ValueError(f"`prompt`: the model does not know the character {prompt[unknown[0]]!r}.")
    begin = texts.begin(vocabulary)
    inputs = np.concatenate([[begin], given]).astype(np.int32)
    written = _written(Model(config, begin), params, inputs, length, np.float32(temperature), jax.random.key(seed))
    return "".join(map(chr, vocabulary[np.asarray(written)].tolist()))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _written(
    model: Model, params: Any, inputs: jax.Array, length: int, temperature: jax.Array, key: jax.Array
) -> jax.Array:
    def one(now: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        logits, carry = now
        logits = logits[:-1]  # unknown is no character
        drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1))
        chosen = jnp.where(temperature > 0, drawn, logits.argmax())
        outputs, carry = _apply(model, params, carry, chosen[None, None], None)
        return (outputs[0, 0], carry), chosen

    outputs, carry = _apply(model, params, jax.tree.map(jnp.asarray, _carry(model, 1)), inputs[None], None)
    return jax.lax.scan(one, (outputs[0, -1], carry), jax.random.split(key, length))[1]


TASK = Task(Characters, _load, _init, _predict, _sample, data="a text file or a folder of them")
