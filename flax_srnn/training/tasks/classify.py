"""Classes of whole sequences, which may differ in length: stacks of SimpleRNNs, and ensembles of them in stratified folds.

With z_t = (x_t - mean) / scale, by the training part, and layers l = 1 ... L, each forwards and, in a layer of its own, backwards:

    h^l_t = act(h^(l-1)_t W + h^l_(t-1) U + b)         h^0 = z; at a step that the mask leaves out, the state stays what it was
    p = softmax(h^L V + c)                             of the last state of each direction, side by side
    loss = mean -log p_y + l2 (|W|^2 + |U|^2)

W and U are those of every layer. Dropout works on what goes from a layer to the next and to V, recurrent dropout on h^l_(t-1);
noise is added to z.

Each example is either learned from, or in the validation part, by which training is stopped and settings are chosen, or in the
test part. With `folds` all examples are in the test part of one fold: the networks of all folds are fitted at the same time, by
one `jax.vmap`, each to its own examples in an order of its own. The networks of a fold answer by the mean of their p.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_srnn import Bidirectional, SimpleRNN, collect_constraints, regularization_loss
from flax_srnn.regularizers import L2
from flax_srnn.training import sequences
from flax_srnn.training.config import Training, Within
from flax_srnn.training.data import shuffled
from flax_srnn.training.sequences import Part, Sequences
from flax_srnn.training.tasks import Experiment, Report, Table, Task

__all__ = ["TASK", "Classify"]

_AT_ONCE = 1000  # examples
_MOST_FOR_BASELINES = 3e10  # examples squared, times the numbers in each: an SVC's minute
_MOST_COLUMNS, _MOST_CLASSES_DRAWN, _MOST_CLASSES_COUNTED = 12, 30, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(Training):
    """How sequences are classified.

    Args:
      data: an npz file (x, y and perhaps lengths or mask), or digits, those of scikit-learn.
      pixels: digits are read pixel by pixel, not row by row.
      units: of each SimpleRNN.
      layers: on top of each other.
      bidirectional: whether each layer also has one that reads backwards.
      activation: of the SimpleRNNs.
      recurrent_initializer: of the SimpleRNNs; identity suits relu and many steps.
      dropout: share of what goes from a layer to the next, and to the answer, that is dropped in training.
      recurrent_dropout: share of the states that is dropped in training.
      noise: standard deviation of what is added to z in training.
      recurrent_constraint: of the recurrent weights that come into one unit.
      l2: weight of the squared weights of the SimpleRNNs in the loss.
      networks: whose probabilities are averaged; they differ in their initial weights and the order of the examples.
      folds: parts of all examples, each classified by networks that learned from the others; 0: a single test part.
      test_share: of all examples, without folds.
      validation_share: of those not in the test part; there is a validation part if `evaluate_every` is not 0.
      scored: the part that the report is about; validation: what settings are chosen by, nothing is computed of the test part.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range, or fields do not fit together.
    """

    data: str | None = None
    pixels: bool = False
    units: Annotated[int, Within(1, 4096)] = 64
    layers: Annotated[int, Within(1, 100)] = 1
    bidirectional: bool = True
    activation: Literal["tanh", "relu", "silu", "gelu", "elu", "softsign"] = "tanh"
    recurrent_initializer: Literal["orthogonal", "identity", "glorot_uniform"] = "orthogonal"
    dropout: Annotated[float, Within(0, 0.95)] = 0.1
    recurrent_dropout: Annotated[float, Within(0, 0.95)] = 0.0
    noise: Annotated[float, Within(0, 100)] = 0.0
    recurrent_constraint: Literal["none", "unit_norm", "max_norm"] = "none"
    l2: Annotated[float, Within(0, 1000)] = 0.0
    networks: Annotated[int, Within(1, 1000)] = 1
    folds: Annotated[int, Within(0, 1000)] = 0
    test_share: Annotated[float, Within(0.01, 0.9)] = 0.2
    validation_share: Annotated[float, Within(0.01, 0.9)] = 0.2
    scored: Literal["test", "validation"] = "test"
    steps: Annotated[int, Within(1, 10**9)] = 5000
    clip: Annotated[float, Within(0, 1e9)] = 1.0
    evaluate_every: Annotated[int, Within(0, 10**9)] = 50
    patience: Annotated[int, Within(0, 10**6)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ValueError(
                "`folds` must be 0, or 2 at least: one is classified by what learned from the others, got 1."
            )
        if self.pixels and self.data != "digits":
            raise ValueError(f"`pixels` is about data='digits' only, got data={self.data!r}.")
        if self.scored == "validation" and not self.evaluate_every:
            raise ValueError("`scored` is 'validation', and there is no such part: it needs `evaluate_every`, got 0.")


def _load(config: Classify) -> Experiment:
    data, y = _read(config)
    parts = _parts(config, data.source, y)
    constants = _constants(config, data, y, parts)
    mean, scale = constants["mean"], constants["scale"]
    learned = [part.learned for part in parts for _ in range(config.networks)]
    size, ragged, model = config.batch_size, not data.mask.all(), _model(config, constants)
    sample = np.zeros((1, 1, data.x.shape[2]), np.float32)

    def batch(step: int, rows: range) -> dict[str, np.ndarray]:
        """Of each member (B, M, ...): its own examples in its own order."""
        orders = [shuffled(len(of), (config.seed, member), step * size, size) for member, of in enumerate(learned)]
        chosen = np.stack([of[order] for of, order in zip(learned, orders, strict=True)], -1)[rows.start : rows.stop]
        mask = data.mask[chosen]
        arrays = {"x": _scaled(data.x[chosen], mask, mean[:, None], scale[:, None]), "y": y[chosen].astype(np.int32)}
        return arrays | ({"mask": mask} if ragged else {})

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        def of_one(params: Any, batch: Any, key: jax.Array) -> jax.Array:
            key, noise = jax.random.split(key)
            x = batch["x"]
            logits, sown = model.apply(
                {"params": params},
                x + config.noise * jax.random.normal(noise, x.shape) if config.noise else x,
                batch.get("mask"),
                training=True,
                rngs={"dropout": key},
                mutable=["losses"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return losses.mean() + regularization_loss(sown)

        return jax.vmap(of_one, (0, 1, 0))(params, batch, jax.random.split(key, len(learned))), carry

    def score(params: Any) -> float:
        """Cross entropy of the validation part, mean over folds."""
        losses = []
        for fold, part in enumerate(parts):
            p = _fold(config, constants, params, fold, data, part.validation).mean(axis=0)
            losses.append(-np.log(np.maximum(p[np.arange(len(p)), y[part.validation]], 1e-30)).mean())
        return float(np.mean(losses))

    constraints = collect_constraints(model, jax.random.key(0), sample)
    return Experiment(
        batch,
        loss,
        lambda params: _report(config, constants, data, y, parts, params),
        score if len(parts[0].validation) else None,
        members=len(learned),
        constraints=constraints or None,
        constants=constants,
        measure="cross entropy",
    )


# --- the network -------------------------------------------------------------------------------------------------------


class _Classifier(nn.Module):
    """Inputs (*batch, T, F), and which steps are used (*batch, T) -> logits (*batch, C)."""

    config: Classify
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, training: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        penalty = L2(config.l2) if config.l2 else None
        for index in range(config.layers):
            name = f"rnn_{index}"
            layer = SimpleRNN(
                config.units,
                activation=config.activation,
                recurrent_initializer=config.recurrent_initializer,
                kernel_regularizer=penalty,
                recurrent_regularizer=penalty,
                recurrent_constraint=None if config.recurrent_constraint == "none" else config.recurrent_constraint,
                dropout=config.dropout if index else 0.0,
                recurrent_dropout=config.recurrent_dropout,
                return_sequences=index < config.layers - 1,
                dtype=dtype,
                name=None if config.bidirectional else name,
            )
            whole = Bidirectional(layer, name=name) if config.bidirectional else layer
            x = whole(x, mask=mask, training=training)
        x = nn.Dropout(config.dropout, deterministic=not training)(x)
        return nn.Dense(self.classes, dtype=dtype, name="head")(x).astype(jnp.float32)


def _model(config: Classify, constants: Mapping[str, np.ndarray]) -> _Classifier:
    return _Classifier(config, int(constants["classes"]))


def _init(config: Classify, constants: Mapping[str, np.ndarray], key: jax.Array) -> Any:
    members, features = constants["mean"].shape
    sample, model = jnp.zeros((1, 1, features)), _model(config, constants)
    return jax.vmap(lambda key: model.init(key, sample)["params"])(jax.random.split(key, members))


def _fold(
    config: Classify, constants: Mapping[str, np.ndarray], params: Any, fold: int, data: Sequences, rows: np.ndarray
) -> np.ndarray:
    """What the networks of a fold say of these rows: probabilities (networks, rows, C)."""
    members = slice(fold * config.networks, (fold + 1) * config.networks)
    params = jax.tree.map(lambda x: x[members], params)
    mean, scale = constants["mean"][members, None, None], constants["scale"][members, None, None]
    model, found = _model(config, constants), []
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        mask = data.mask[some]
        found.append(
            _probabilities(model, params, _scaled(data.x[some], mask, mean, scale), None if mask.all() else mask)
        )
    return np.concatenate(found, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: _Classifier, params: Any, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    def of_one(params: Any, x: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, x, mask)
        return jax.nn.softmax(logits)

    return jax.vmap(of_one)(params, x)


# --- the data ----------------------------------------------------------------------------------------------------------


def _read(config: Classify) -> tuple[Sequences, np.ndarray]:
    """The sequences of the config, and their classes."""
    if config.data is None:
        raise ValueError("`data`: classify needs sequences: --data FILE.npz; the config digits shows some.")
    if config.data == "digits":
        data = sequences.digits(by_pixel=config.pixels)
    else:
        data = sequences.read(Path(config.data), labelled=True)
    return data, np.asarray(data.y)


def _parts(config: Classify, source: str, y: np.ndarray) -> list[Part]:
    """The same for every seed."""
    validation_share = config.validation_share if config.evaluate_every else 0.0
    return sequences.parts(source, y, config.folds, config.test_share, validation_share)


def _constants(config: Classify, data: Sequences, y: np.ndarray, parts: list[Part]) -> dict[str, np.ndarray]:
    """mean and scale (M, F): by what each member learns from, or of digits 0 and 16, their range; what tells the data."""
    statistics = []
    for part in parts:
        steps = data.x[part.learned][data.mask[part.learned]]
        statistics.append((steps.mean(axis=0), steps.std(axis=0)))
    mean, scale = (np.repeat(np.stack(each), config.networks, axis=0) for each in zip(*statistics, strict=True))
    if config.data == "digits":
        mean, scale = np.zeros_like(mean), np.full_like(scale, 16.0)
    scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)  # a constant's may be rounding
    return {"mean": mean, "scale": scale, "classes": np.array(y.max() + 1), "checksum": np.array(_checksum(data, y))}


def _checksum(data: Sequences, y: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(data.x), zlib.crc32(y))


def _scaled(x: np.ndarray, mask: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardised (..., T, F), and 0 where the mask is."""
    return np.where(mask[..., None], (x - mean) / scale, 0).astype(np.float32)


# --- the result --------------------------------------------------------------------------------------------------------


def _report(
    config: Classify,
    constants: Mapping[str, np.ndarray],
    data: Sequences,
    y: np.ndarray,
    parts: list[Part],
    params: Any,
) -> Report:
    scored = [getattr(part, config.scored) for part in parts]
    answers = [_fold(config, constants, params, fold, data, rows) for fold, rows in enumerate(scored)]
    confusion = np.zeros((constants["classes"],) * 2, int)
    ours, single = [], []
    for p, rows in zip(answers, scored, strict=True):
        answer = p.mean(axis=0).argmax(axis=-1)
        np.add.at(confusion, (y[rows], answer), 1)
        ours.append(float((answer == y[rows]).mean()))
        single.append(float((p.argmax(axis=-1) == y[rows]).mean()))
    right = {"network": ours}
    if config.networks > 1:
        right = {"single networks": single, f"their ensemble of {config.networks}": ours}
    small = len(y) * data.x.size <= _MOST_FOR_BASELINES
    right = (_baselines(constants, data, y, parts, scored) if small else {}) | right
    scores = {
        "accuracy": float(np.mean(ours)),
        "part": config.scored,
        "accuracies": {name: float(np.mean(each)) for name, each in right.items()},
        "accuracies_by_fold": right,
        "confusion": confusion.tolist() if len(confusion) <= _MOST_CLASSES_COUNTED else None,
        "examples": [{name: len(rows) for name, rows in part._asdict().items()} for part in parts],
    }
    shown: list[tuple[Any, ...]] = [
        (name, f"{np.mean(each):.4f}", " ".join(f"{x:.3f}" for x in each)) for name, each in right.items()
    ]
    if not small:
        shown.insert(0, ("baselines", "", "left out: too many data"))
    of = f"each of {config.folds} folds" if config.folds else f"{len(scored[0]):,} of {len(y):,} sequences"
    table = Table(f"Accuracy on the {config.scored} part, {of}", ("", "accuracy", "by fold"), shown)
    draw = functools.partial(_draw, confusion, f"{confusion.sum():,} sequences that were not learned from")
    return Report(scores, table, {"confusion.png": draw})


def _baselines(
    constants: Mapping[str, np.ndarray],
    data: Sequences,
    y: np.ndarray,
    parts: list[Part],
    scored: list[np.ndarray],
) -> dict[str, list[float]]:
    """Accuracies of what knows no sequences, from all steps side by side: the same folds, scaling, and 0 for padding."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    found: dict[str, list[float]] = {"SVC, RBF kernel": [], "logistic regression": []}
    means, scales = (constants[name][:: len(constants["mean"]) // len(parts)] for name in ("mean", "scale"))
    for part, rows, mean, scale in zip(parts, scored, means, scales, strict=True):
        x = _scaled(data.x, data.mask, mean, scale).reshape(len(y), -1)
        for name, model in zip(found, (SVC(gamma="scale"), LogisticRegression(max_iter=1000)), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # it is good enough
                model.fit(x[part.learned], y[part.learned])
            found[name].append(float(model.score(x[rows], y[rows])))
    return found


def _draw(confusion: np.ndarray, words: str, path: Path) -> None:
    """How often each class was taken for which; shades are shares of a row."""
    from matplotlib.figure import Figure

    classes = range(len(confusion))
    figure = Figure(figsize=(6.5, 6.2), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(confusion) <= _MOST_CLASSES_DRAWN:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=color, fontsize=9)
        axes.set(xticks=classes, yticks=classes)
    axes.set(xlabel="answer", ylabel="class")
    axes.set_title(words, loc="left", fontweight="bold")
    figure.savefig(path, dpi=150, format="png")


def _predict(config: Classify, params: Any, constants: Mapping[str, np.ndarray], path: Path | None) -> Table:
    """The class of every sequence of a file, by all networks, or of the run's own ones, by those that did not learn from it."""
    folds = max(1, config.folds)
    if path is None:
        data, y = _read(config)
        if _checksum(data, y) != constants["checksum"]:
            raise ValueError(f"data {data.source}: they have changed since the run: what it learned from is not known.")
        parts = [part.test for part in _parts(config, data.source, y)]
        rows = np.concatenate(parts)
        p = np.concatenate(
            [_fold(config, constants, params, fold, data, each).mean(axis=0) for fold, each in enumerate(parts)]
        )
        p, rows = p[np.argsort(rows)], np.sort(rows)
        title = f"{data.source}: sequences that their networks did not learn from"
    else:
        data = sequences.read(path, labelled=False)
        if data.x.shape[2] != constants["mean"].shape[1]:
            raise ValueError(
                f"data {path}, array x: it must have {constants['mean'].shape[1]} features a step as in training, "
                f"got {data.x.shape[2]}."
            )
        rows = np.arange(len(data.x))
        p = np.mean([_fold(config, constants, params, fold, data, rows).mean(axis=0) for fold in range(folds)], axis=0)
        title = f"{path}: answers of {len(constants['mean'])} networks"
    labels = {"row": rows, "class": p.argmax(axis=1)} | ({} if data.y is None else {"label": data.y[rows]})
    shown = {"probability": p.max(axis=1)}
    if p.shape[1] <= _MOST_COLUMNS:
        shown = {f"p({label})": of_class for label, of_class in enumerate(p.T)}
    columns = (
        [[int(x) for x in each] for each in labels.values()],
        [[f"{x:.4f}" for x in each] for each in shown.values()],
    )
    return Table(title, (*labels, *shown), list(zip(*columns[0], *columns[1], strict=True)))


TASK = Task(Classify, _load, _init, _predict, data="an npz file of x, y and perhaps lengths or mask, or digits")
