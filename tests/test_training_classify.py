"""Labelled sequences: what a file may hold, who learns from which examples, and that the scores are those of the answers."""

import re
from pathlib import Path

import cases
import jax
import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from flax_srnn.training import metrics, program, sequences
from flax_srnn.training.tasks import classify
from flax_srnn.training.tasks.classify import Classify

COUNT, STEPS, CLASSES = 48, 5, 3
TINY = {"units": 3, "bidirectional": False, "batch_size": 4, "steps": 60, "learning_rate": 0.02, "log_every": 10}
TINY |= {"evaluate_every": 0, "patience": 0}


def arrays(seed=0, **changes):
    """Classes that differ in their mean; NaN behind the lengths; changes replace arrays or, with None, take them away."""
    rng = np.random.default_rng(seed)
    y, lengths = np.arange(COUNT) % CLASSES, rng.integers(2, STEPS + 1, COUNT)
    x = rng.normal(size=(COUNT, STEPS, 2)) + 2 * y[:, None, None]
    x[np.arange(STEPS) >= lengths[:, None]] = np.nan
    made = {"x": x, "y": y, "lengths": lengths} | changes
    return {name: array for name, array in made.items() if array is not None}


def saved(path, seed=0, **changes):
    np.savez(path, **arrays(seed, **changes))
    return path


def loaded(path, **options):
    config = Classify(data=str(path), **{**TINY, **options})
    return config, classify.TASK.load(config)


def altered(array, place, value):
    array = array.copy()
    array[place] = value
    return array


GIVEN = arrays()
X, Y, LENGTHS = GIVEN["x"], GIVEN["y"], GIVEN["lengths"]
BAD = [
    ({"x": None}, "array x: it is missing. Found: y, lengths."),
    ({"y": None}, "array y: it is missing."),
    ({"mesk": Y}, "array mesk: it is unknown. Did you mean 'mask'?"),
    ({"x": X[..., None]}, "array x: its shape must be (N, T, F) or (N, T), none of them 0, got (48, 5, 2, 1)."),
    ({"x": X[:, :0], "lengths": None}, "array x: its shape must be"),
    ({"x": X.astype(str)}, "array x: it must hold real numbers"),
    ({"x": X.astype(complex)}, "array x: it must hold real numbers, got complex128."),
    ({"x": altered(X, (7, 1), np.nan)}, "array x: it must be finite in float32, got nan in row 7, step 1."),
    ({"x": altered(X, (7, 0), 1e39)}, "got 1e+39 in row 7, step 0."),
    ({"lengths": None}, "array x: it must be finite"),
    ({"y": Y[:-1]}, "array y: it must be integers of shape (48,), a class a row, got int64 (47,)."),
    ({"y": Y[:, None]}, "array y: it must be integers of shape (48,)"),
    ({"y": np.eye(3)[Y]}, "got float64 (48, 3). y.argmax(1) gives the classes of one-hot rows."),
    ({"y": Y * 1.0}, "array y: it must be integers"),
    (
        {"y": np.array(["a", "b", "c"])[Y]},
        "got <U1 (48,). numpy.unique(y, return_inverse=True)[1] numbers any classes so.",
    ),
    (
        {"y": np.array(["a", "b", "c"], object)[Y]},
        "it must be integers. numpy.unique(y, return_inverse=True)[1] numbers",
    ),
    ({"y": Y + 1}, "every class from 0 to 3 must occur, 0 does not. numpy.unique(y, return_inverse=True)[1] numbers"),
    ({"y": altered(Y, 5, -1)}, "array y: classes are 0, 1, 2, ..., got -1 in row 5."),
    ({"y": np.where(Y == 1, 3, Y)}, "array y: every class from 0 to 3 must occur, 1 does not."),
    ({"y": altered(Y, 5, 2**60)}, f"array y: every class from 0 to {2**60} must occur, 3 does not."),
    ({"y": Y * 0}, "array y: there must be two classes at least, got 0 alone."),
    ({"lengths": LENGTHS[:-1]}, "array lengths: it must be integers of shape (48,)"),
    ({"lengths": LENGTHS * 1.0}, "array lengths: it must be integers"),
    ({"lengths": altered(LENGTHS, 3, 0)}, "array lengths: it must be from 1 to 5, the steps of x, got 0 in row 3."),
    ({"lengths": altered(LENGTHS, 3, 6)}, "got 6 in row 3."),
    ({"mask": np.ones((COUNT, STEPS), bool)}, "array mask: it is not needed beside lengths"),
    ({"lengths": None, "mask": np.ones((COUNT, STEPS), int)}, "array mask: it must be bool of shape (48, 5)"),
    ({"lengths": None, "mask": np.ones((COUNT, 4), bool)}, "array mask: it must be bool of shape (48, 5)"),
    ({"lengths": None, "mask": np.arange(COUNT)[:, None] != np.full(STEPS, 9)}, "array mask: row 9 has no step"),
    ({"x": X[:9], "y": Y[:9], "lengths": LENGTHS[:9]}, "every class needs at least 4, class 0 has 3."),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_bad_data_are_named_in_one_line(tmp_path, changes, words):
    path = saved(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        loaded(path)
    assert str(caught.value).startswith(f"data {path}, array ")
    assert "\n" not in str(caught.value)


def test_folds_need_an_example_of_every_class_each(tmp_path):
    with pytest.raises(ValueError, match="every class needs at least 17, class 0 has 16"):
        loaded(saved(tmp_path / "few.npz"), folds=17)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_objects_are_refused_and_nothing_is_executed(tmp_path):
    objects = altered(np.empty(COUNT, object), 0, Trap(tmp_path / "sprung"))
    path = saved(tmp_path / "trap.npz", y=objects)
    with pytest.raises(ValueError, match=re.escape(f"data {path}, array y: it cannot be read: Object arrays")):
        loaded(path)
    np.save(tmp_path / "pickled.npy", objects, allow_pickle=True)
    (tmp_path / "pickled.npy").rename(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match="it is no npz file"):
        loaded(tmp_path / "pickled.npz")
    assert not (tmp_path / "sprung").exists()


def test_the_classes_that_messages_propose_are_taken(tmp_path):
    for y in (np.unique(np.array(["a", "b", "c"])[Y], return_inverse=True)[1], np.eye(3)[Y].argmax(1)):
        np.testing.assert_array_equal(sequences.read(saved(tmp_path / "y.npz", y=y), labelled=True).y, Y)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"data {tmp_path}/none.npz: there is no such file.")):
        loaded(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        loaded(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"data none.npz: there is no such file in {Path.cwd()}.")):
        loaded("none.npz")
    whole = saved(tmp_path / "whole.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    for content in (b"", b"x,y\n1,2\n", whole[:-100], whole[:100] + b"\0" * 500 + whole[600:]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="^" + re.escape(f"data {damaged}")) as caught:
            loaded(damaged)
        assert "\n" not in str(caught.value)


def test_padding_is_read_as_0_and_lengths_are_a_mask(tmp_path):
    by_lengths = sequences.read(saved(tmp_path / "lengths.npz"), labelled=True)
    mask = np.arange(STEPS) < LENGTHS[:, None]
    by_mask = sequences.read(saved(tmp_path / "mask.npz", lengths=None, mask=mask), labelled=True)
    for data in (by_lengths, by_mask):
        np.testing.assert_array_equal(data.x, np.where(mask[..., None], X, 0))
        np.testing.assert_array_equal(data.mask, mask)
    flat = sequences.read(saved(tmp_path / "flat.npz", x=X[..., 0]), labelled=True)
    np.testing.assert_array_equal(flat.x, by_mask.x[..., :1])
    whole = np.arange(COUNT * STEPS, dtype=np.uint8).reshape(COUNT, STEPS)
    assert sequences.read(saved(tmp_path / "whole.npz", x=whole, lengths=None), labelled=True).mask.all()


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("validation_share", [0.0, 0.25])
def test_parts_are_disjoint_and_stratified(folds, validation_share):
    y = np.repeat([0, 1, 2], [40, 80, 20])
    parts = sequences.parts("file", y, folds, 0.2, validation_share)
    assert len(parts) == max(1, folds)
    for part in parts:
        np.testing.assert_array_equal(np.sort(np.concatenate(part)), np.arange(len(y)))
        for rows in part:
            of_classes = np.bincount(y[rows], minlength=3)
            assert not len(rows) or np.abs(of_classes - len(rows) * np.array([2, 4, 1]) / 7).max() <= 1
        assert len(part.validation) == pytest.approx(
            validation_share * len(np.setdiff1d(np.arange(len(y)), part.test)), abs=2
        )
    if folds:
        expected = [test for _, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(y, y)]
        for part, test in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(part.test, test)


def test_every_part_has_every_class():
    for part in sequences.parts("file", np.repeat([0, 1], [4, 100]), 2, 0.2, 0.01):
        assert all(set(range(2)) == set(np.repeat([0, 1], [4, 100])[rows]) for rows in part)


def test_a_batch_depends_on_its_step_and_its_rows_alone(tmp_path):
    path = saved(tmp_path / "data.npz")
    _, experiment = loaded(path, folds=2, networks=2)
    whole = experiment.batch(7, range(4))
    assert {name: x.shape for name, x in whole.items()} == {"x": (4, 4, 5, 2), "y": (4, 4), "mask": (4, 4, 5)}
    again = loaded(path, folds=2, networks=2)[1]
    again.batch(3, range(4))
    halves = [again.batch(7, rows) for rows in (range(1), range(1, 4))]
    for name, x in whole.items():
        np.testing.assert_array_equal(x, np.concatenate([half[name] for half in halves]))
    other = loaded(path, folds=2, networks=2, seed=1)[1].batch(7, range(4))
    assert not np.array_equal(whole["x"], other["x"])
    assert not np.array_equal(whole["x"][:, 0], whole["x"][:, 1]), "networks of a fold have orders of their own"


def test_each_network_learns_from_every_example_of_its_own_part_and_no_other(tmp_path):
    x = np.repeat(np.arange(COUNT)[:, None], STEPS, axis=1).astype(float)  # each example says which it is
    path = saved(tmp_path / "data.npz", x=x, lengths=None)
    config, experiment = loaded(path, folds=3, networks=2, evaluate_every=10, batch_size=3)
    parts = sequences.parts(str(path), Y, 3, 0.2, config.validation_share)
    for member in range(6):
        part = parts[member // 2]
        batches = [experiment.batch(step, range(3)) for step in range(len(part.learned))]
        z = np.concatenate([batch["x"][:, member, 0, 0] for batch in batches])
        seen = z * experiment.constants["scale"][member] + experiment.constants["mean"][member]
        np.testing.assert_allclose(np.sort(seen), np.repeat(part.learned, 3), atol=1e-4)
        np.testing.assert_array_equal(np.concatenate([b["y"][:, member] for b in batches]), Y[seen.round().astype(int)])
        assert experiment.constants["mean"][member] == pytest.approx(part.learned.mean())
        assert experiment.constants["scale"][member] == pytest.approx(part.learned.std())


def losses(path, **options):
    """Of a first batch: a function of it and of a key; the batch; the parameters."""
    config, experiment = loaded(path, folds=2, **options)
    params = classify.TASK.init(config, experiment.constants, jax.random.key(0))
    jitted = jax.jit(lambda batch, number: experiment.loss(params, (), batch, jax.random.key(number))[0])
    return jitted, experiment.batch(0, range(4)), params


OPTIONS = [
    {"bidirectional": True, "dropout": 0.5, "recurrent_dropout": 0.5},
    {"activation": "relu", "recurrent_initializer": "identity", "dtype": "bfloat16"},
    {"layers": 2, "bidirectional": True, "recurrent_constraint": "max_norm"},
]


@pytest.mark.parametrize("options", cases.thinned(OPTIONS, 1), ids=str)
def test_what_lies_behind_the_mask_has_no_influence(tmp_path, options):
    whole = saved(tmp_path / "nan.npz")
    of, batch, params = losses(whole, **options)
    for number, padding in enumerate((0.0, -1e300, np.inf)):
        path = saved(tmp_path / f"{number}.npz", x=np.where(np.isnan(X), padding, X))
        for name, x in loaded(path, folds=2, **options)[1].batch(0, range(4)).items():
            np.testing.assert_array_equal(x, batch[name])
    expected = of(batch, 0)
    assert expected.shape == (2,)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(of({**batch, "x": np.where(batch["mask"][..., None], batch["x"], 1e6)}, 0), expected)
    # Nor have steps that are cut off.
    config, experiment = loaded(whole, folds=2, **options)
    few = LENGTHS <= 3
    short = saved(tmp_path / "short.npz", x=X[few, :3], y=Y[few], lengths=LENGTHS[few])
    answers, all_answers = (
        np.array([row[3:] for row in classify.TASK.predict(config, params, experiment.constants, path).rows], float)
        for path in (short, whole)
    )
    np.testing.assert_allclose(answers, all_answers[few], atol=2e-4)


def test_dropout_and_noise_take_the_key_and_the_penalty_is_in_the_loss(tmp_path):
    path = saved(tmp_path / "data.npz")
    of, batch, params = losses(path, layers=2, dropout=0.0)
    plain = of(batch, 0)
    np.testing.assert_array_equal(plain, of(batch, 1))
    for options in ({"dropout": 0.5}, {"dropout": 0.0, "recurrent_dropout": 0.5}, {"dropout": 0.0, "noise": 0.5}):
        dropped, _, _ = losses(path, **options)
        assert not np.array_equal(dropped(batch, 0), dropped(batch, 1))
    kernels = [params[layer][name] for layer in ("rnn_0", "rnn_1") for name in ("kernel", "recurrent_kernel")]
    squares = sum((np.asarray(x) ** 2).sum(axis=(1, 2)) for x in kernels)
    punished, _, _ = losses(path, layers=2, dropout=0.0, l2=0.1)
    np.testing.assert_allclose(punished(batch, 0), plain + 0.1 * squares, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run over two folds of two networks."""
    folder = tmp_path_factory.mktemp("classify")
    options = {"folds": 2, "networks": 2, "bidirectional": True, "recurrent_constraint": "unit_norm", "l2": 1e-3}
    return program.train(Classify(data=str(saved(folder / "data.npz")), **TINY | options), workdir=folder / "run")


def test_it_learns(trained):
    losses = [line["loss"] for line in metrics.read(trained.folder)]
    assert losses[-1] < 0.6 * losses[0]
    assert trained.scores["accuracy"] > 0.6


def test_the_accuracy_is_that_of_the_answers_out_of_fold(trained):
    table = program.predict(trained.folder)
    assert table.headings == ("row", "class", "label", "p(0)", "p(1)", "p(2)")
    rows, answers, labels = np.array([row[:3] for row in table.rows]).T
    p = np.array([row[3:] for row in table.rows], float)
    np.testing.assert_array_equal(rows, np.arange(COUNT))
    np.testing.assert_array_equal(labels, Y)
    np.testing.assert_array_equal(answers, p.argmax(axis=1))
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-3)
    by_fold = [(answers == Y)[part.test].mean() for part in sequences.parts("", Y, 2, 0.2, 0)]
    assert trained.scores["accuracies_by_fold"]["their ensemble of 2"] == pytest.approx(by_fold)
    assert trained.scores["accuracy"] == pytest.approx(np.mean(by_fold))
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (Y, answers), 1)
    assert trained.scores["confusion"] == confusion.tolist()
    assert (trained.folder / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert set(trained.scores["accuracies"]) > {"SVC, RBF kernel", "logistic regression", "single networks"}


def test_the_constraint_holds_for_every_network(trained):
    kernels = trained.params["rnn_0"]["backward_layer"]["recurrent_kernel"]
    assert kernels.shape == (4, 3, 3)
    np.testing.assert_allclose(np.linalg.norm(kernels, axis=1), 1, atol=1e-5)


def test_answers_for_a_file(trained, tmp_path):
    """By all networks; labels are not needed, other lengths and a single row allowed."""
    table = program.predict(trained.folder, saved(tmp_path / "one.npz", x=X[:1, :2], y=None, lengths=None))
    assert table.headings == ("row", "class", "p(0)", "p(1)", "p(2)")
    p, z = [], (X[:1, :2] - trained.constants["mean"][:, None, None]) / trained.constants["scale"][:, None, None]
    model = classify._Classifier(trained.config, CLASSES)
    for member in range(4):
        params = jax.tree.map(lambda x, member=member: x[member], trained.params)
        p.append(jax.nn.softmax(model.apply({"params": params}, z[member].astype(np.float32))[0]))
    np.testing.assert_allclose(np.array(table.rows[0][2:], float), np.mean(p, axis=0), atol=1e-4)
    with pytest.raises(ValueError, match="array x: it must have 2 features a step as in training, got 3"):
        program.predict(trained.folder, saved(tmp_path / "wide.npz", x=np.ones((COUNT, STEPS, 3)), lengths=None))


@pytest.mark.slow
def test_one_split_with_early_stopping(tmp_path):
    """The validation part ends training; what is scored is the test part, or with `scored` the validation part."""
    path = saved(tmp_path / "data.npz")
    options = {"evaluate_every": 5, "patience": 2, "steps": 40, "learning_rate": 5.0}
    config, experiment = loaded(path, **options)
    run = program.train(config, workdir=tmp_path / "run")
    (part,) = sequences.parts("", Y, 0, 0.2, 0.2)
    rows, answers, labels = np.array([row[:3] for row in program.predict(run.folder).rows]).T
    np.testing.assert_array_equal(rows, part.test)
    assert run.scores["accuracy"] == pytest.approx((answers == labels).mean())
    assert run.scores["examples"] == [{name: len(of) for name, of in part._asdict().items()}]
    # The loss of the validation part, by hand.
    known = program.predict(run.folder, saved(tmp_path / "all.npz"))
    p = np.array([row[3:] for row in known.rows], float)[part.validation, Y[part.validation]]
    assert experiment.score(run.params) == pytest.approx(-np.log(p).mean(), abs=2e-3)
    chosen = classify.TASK.load(Classify(**{**vars(config), "scored": "validation"})).report(run.params)
    assert chosen.scores["accuracy"] == pytest.approx(
        np.mean([row[1] == row[2] for row in np.array(known.rows, object)[part.validation]])
    )
    assert "validation part" in chosen.table.title


def test_a_run_does_not_know_other_data_under_its_name(tmp_path):
    path = saved(tmp_path / "data.npz")
    config, experiment = loaded(path)
    params = classify.TASK.init(config, experiment.constants, jax.random.key(0))
    saved(path, seed=1)
    with pytest.raises(ValueError, match=re.escape(f"data {path}: they have changed since the run")):
        classify.TASK.predict(config, params, experiment.constants, None)


def test_large_data_have_no_baselines(trained, monkeypatch):
    monkeypatch.setattr(classify, "_MOST_FOR_BASELINES", 10)
    report = classify.TASK.load(trained.config).report(trained.params)
    assert report.table.rows[0] == ("baselines", "", "left out: too many data")
    assert list(report.scores["accuracies"]) == ["single networks", "their ensemble of 2"]


def test_fields_that_do_not_fit_together(tmp_path):
    for options, words in (
        ({"folds": 1}, "`folds` must be 0, or 2 at least"),
        ({"pixels": True}, "`pixels` is about data='digits' only"),
        ({"scored": "validation", "evaluate_every": 0, "patience": 0}, "it needs `evaluate_every`"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            Classify(data="file.npz", **options)
    with pytest.raises(ValueError, match=r"--data FILE\.npz"):
        classify.TASK.load(Classify())


def test_digits_by_row_and_by_pixel():
    rows, pixels = sequences.digits(by_pixel=False), sequences.digits(by_pixel=True)
    assert rows.x.shape == (1797, 8, 8)
    assert pixels.x.shape == (1797, 64, 1)
    np.testing.assert_array_equal(rows.x.ravel(), pixels.x.ravel())
    experiment = classify.TASK.load(Classify(data="digits"))
    batch = experiment.batch(0, range(32))
    assert sorted(batch) == ["x", "y"]
    assert set(np.unique(batch["x"] * 16)) <= set(range(17))
