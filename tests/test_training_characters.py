"""The character model: its streams, that bits are those of a loop by hand, what is held out, and what it writes."""

import dataclasses
import gzip
import hashlib
import itertools
import lzma
import math
import sys

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from flax_srnn import cell_step
from flax_srnn.training import text
from flax_srnn.training.tasks.characters import TASK, Characters, bits

WORDS = "the rain in spain stays mainly in the plain, or not\n"
NAMES = [f"{folder}/{number}.txt" for folder in ("a", "b/c") for number in range(6)] + ["readme.md"]


def contents(number):
    """Of different lengths; a snowman and an ellipsis are too rare for the vocabulary."""
    return WORDS[number % 5 :] * (number % 3 + 1) + "☃" * (number % 4 == 3) + "…" * (number == 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents(number), encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("hidden")
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return Characters(
        data=str(folder),
        layers=2,
        units=5,
        embedding=3,
        batch_size=4,
        window=7,
        least=8,
        test_share=0.2,
        validation_share=0.1,
    )


@pytest.fixture(scope="module")
def experiment(config):
    return TASK.load(config)


@pytest.fixture(scope="module")
def params(config, experiment):
    """Large ones, so that nothing is nearly uniform."""
    params = jax.jit(lambda key: TASK.init(config, experiment.constants, key))(jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.fixture(scope="module")
def parts(config):
    return text.split(text.read(config.data), config.validation_share, config.test_share)


def epoch_of(config, experiment, parts, epoch):
    """All batches of an epoch, one behind the other: (B, characters)."""
    characters = sum(len(each.characters) for each in parts.training)
    steps = math.ceil(characters / (config.batch_size * config.window))
    batches = [experiment.batch(epoch * steps + i, range(config.batch_size)) for i in range(steps)]
    return {name: np.concatenate([each[name] for each in batches], axis=1) for name in batches[0]}


def logits_by_hand(params, read):
    """After each of the numbers read (T,), one cell after the other."""
    rnns = [params[f"rnn_{i}"] for i in range(2)]
    first, second = np.zeros((2, 5), np.float32)
    made = []
    step = jax.jit(cell_step)
    for number in read:
        first, _ = step(rnns[0], first, params["embedding"]["embedding"][number])
        second, _ = step(rnns[1], second, first)
        made.append((first + second) @ params["head"]["kernel"] + params["head"]["bias"])
    return np.array(made, np.float64)


def bits_by_hand(params, vocabulary, characters):
    known = vocabulary.tolist()
    numbers = [known.index(ord(each)) if ord(each) in known else len(known) for each in characters]
    logits = logits_by_hand(params, [len(known) + 1, *numbers[:-1]])
    likely = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    taken = -np.log2(likely[np.arange(len(numbers)), numbers])
    return taken + np.log2(0x110000) * (np.array(numbers) == len(known))


# What is read


def test_the_text_files_of_a_folder(folder):
    corpus = text.read(str(folder))
    assert [each.name for each in corpus.texts] == sorted(NAMES)
    assert [each.characters for each in corpus.texts] == [contents(NAMES.index(each)) for each in sorted(NAMES)]
    assert (corpus.not_utf8, corpus.single) == (1, False)


def test_files_are_held_out_by_the_hashes_of_their_names(parts, folder):
    ranked = sorted(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    names = {kind: [each.name for each in files] for kind, files in parts._asdict().items()}
    assert names == {"test": sorted(ranked[:3]), "validation": sorted(ranked[3:5]), "training": sorted(ranked[5:])}


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    (tmp_path / "one.log").write_text("abcdefghij" * 10)
    parts = text.split(text.read(str(tmp_path / "one.log")), 0.1, 0.2)
    lengths = [len(each.characters) for (each,) in parts]
    assert lengths == [70, 10, 20]
    assert "".join(each.characters for (each,) in parts) == "abcdefghij" * 10


def test_characters_are_kept_as_they_are(tmp_path):
    (tmp_path / "one.txt").write_bytes("\ufeffa\r\n\u2028𝄞".encode())
    assert text.read(str(tmp_path / "one.txt")).texts[0].characters == "\ufeffa\r\n\u2028𝄞"


def test_the_vocabulary_is_of_the_training_part(config, experiment, parts):
    joined = "".join(each.characters for each in parts.training)
    frequent = sorted(each for each in set(joined) if joined.count(each) >= config.least)
    vocabulary = experiment.constants["vocabulary"]
    assert "".join(map(chr, vocabulary)) == "".join(frequent)
    (numbers,) = text.encode(vocabulary, [text.Text("", "a☃𝄞t")])
    assert numbers.tolist() == [frequent.index("a"), len(frequent), len(frequent), frequent.index("t")]
    assert text.encode(np.arange(300, dtype=np.uint32), [text.Text("", "ĉ☃")])[0].tolist() == [265, 300]


def test_pythons_own_source_is_there():
    corpus = text.read("python_source")
    names = {each.name for each in corpus.texts}
    assert {"dataclasses.py", "json/decoder.py"} <= names
    assert not any(name.split("/")[0] in ("test", "site-packages", "encodings") for name in names)
    assert "pydoc_data/topics.py" not in names
    assert "idlelib/idle_test/htest.py" not in names


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: None, FileNotFoundError, "there is no such file or folder in /"),
        (lambda path: path.write_text(""), ValueError, "it is empty"),
        (lambda path: path.write_text("ab"), ValueError, "too short: 2 characters"),
        (lambda path: path.write_text("abc" * 5), ValueError, "too short: no character is 20 times in it"),
        (lambda path: path.write_bytes(b"a\nb\n\xff"), ValueError, "line 3: .*UTF-8"),
        (lambda path: path.mkdir(), FileNotFoundError, "no text files"),
        (lambda path: (path.mkdir(), (path / "a.txt").write_bytes(b"\xff")), FileNotFoundError, "1 that are not UTF-8"),
        (lambda path: (path.mkdir(), (path / "a.txt").touch()), ValueError, "it is empty"),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("abc" * 99)), ValueError, "too short: 1 files"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, monkeypatch, make, error, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "it")
    with pytest.raises(error, match=f"^data it(:|,).*{words}") as caught:
        TASK.load(Characters(data="it"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(OSError, match=r"^data .*a\.txt cannot be read: Permission denied\.$"):
        TASK.load(Characters(data=str(tmp_path)))


def test_data_must_be_given():
    with pytest.raises(ValueError, match=r"^`data`: .*--data"):
        TASK.load(Characters())


# The streams


def test_rows_of_parts_are_the_rows_of_the_whole(config, experiment):
    again, other = TASK.load(config), TASK.load(dataclasses.replace(config, seed=1))
    whole = {step: experiment.batch(step, range(4)) for step in (0, 1, 60, 400)}
    for step in (400, 0, 60, 1):
        pieces = [again.batch(step, range(*rows)) for rows in ((1, 4), (0, 1))]
        for name, expected in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([pieces[1][name], pieces[0][name]]), expected)
    assert not np.array_equal(other.batch(0, range(4))["targets"], whole[0]["targets"])


def test_an_epoch_is_every_file_once(config, experiment, parts):
    vocabulary = experiment.constants["vocabulary"]
    begin = len(vocabulary) + 1
    orders = []
    for epoch in (0, 1, 5):
        read = epoch_of(config, experiment, parts, epoch)
        targets, inputs, resets = (read[name].ravel() for name in ("targets", "inputs", "resets"))
        end = sum(len(each.characters) for each in parts.training)
        assert (targets[end:] == begin).all()
        first = inputs[:end] == begin
        np.testing.assert_array_equal(inputs[:end], np.where(first, begin, np.roll(targets, 1)[:end]))
        files = [each.tolist() for each in np.split(targets[:end], np.flatnonzero(first)[1:])]
        assert sorted(files) == sorted(each.tolist() for each in text.encode(vocabulary, parts.training))
        begins = np.zeros_like(read["resets"])
        begins[:, 0] = True
        np.testing.assert_array_equal(resets[:end], (first | begins.ravel()[:end]))
        orders.append(files)
    assert not any(one == other for one, other in itertools.combinations(orders, 2))


def test_the_loss_of_an_epoch_in_one_stream_is_the_bits_of_its_files(config, experiment, parts, params):
    """States go on from step to step, to the first character of a file and no further."""
    alone = TASK.load(dataclasses.replace(config, batch_size=1, window=16))
    vocabulary, carry, losses, counts = experiment.constants["vocabulary"], alone.carry, [], []
    loss = jax.jit(alone.loss)
    for step in range(math.ceil(sum(len(each.characters) for each in parts.training) / 16)):
        batch = alone.batch(step, range(1))
        value, carry = loss(params, carry, batch, jax.random.key(0))
        losses.append(float(value))
        counts.append((batch["targets"] != len(vocabulary) + 1).sum())
    expected = np.concatenate([bits_by_hand(params, vocabulary, each.characters) for each in parts.training])
    np.testing.assert_allclose(np.average(losses, weights=counts), expected.mean(), rtol=1e-5)


def test_dropout_is_for_training_only(config, experiment, params):
    dropped = TASK.load(dataclasses.replace(config, dropout=0.5))
    batch = experiment.batch(0, range(4))
    plain, *random = (
        float(jax.jit(each.loss)(params, each.carry, batch, jax.random.key(seed))[0])
        for each, seed in ((experiment, 0), (dropped, 0), (dropped, 1))
    )
    assert len({plain, *random}) == 3
    assert dropped.score(params) == experiment.score(params)


# The scores


def test_a_score_is_the_bits_of_whole_files(config, experiment, parts, params):
    vocabulary = experiment.constants["vocabulary"]
    by_hand = [bits_by_hand(params, vocabulary, each.characters) for each in parts.validation]
    np.testing.assert_allclose(experiment.score(params), np.concatenate(by_hand).mean(), rtol=1e-5)


def test_files_longer_than_a_window_are_scored_whole(config, experiment, params, tmp_path):
    files = {"long.txt": WORDS * 12, "short.txt": "☃" + WORDS, "shorter.txt": WORDS[1:], "shortest.txt": WORDS[2:]}
    for name, characters in files.items():  # the short ones share a row
        (tmp_path / name).write_text(characters)
    table = TASK.predict(config, params, experiment.constants, tmp_path)
    vocabulary = experiment.constants["vocabulary"]
    for row, characters in zip(table.rows, files.values(), strict=True):
        size = 8 * len(gzip.compress(characters.encode(), 9)) / len(characters)
        assert row[1:] == (
            len(characters), f"{bits_by_hand(params, vocabulary, characters).mean():.3f}", f"{size:.3f}"
        )  # fmt: skip
    assert [row[0] for row in table.rows] == list(files)


def test_unknown_characters_are_paid_for():
    found = bits(np.zeros((1, 2, 8), np.float32), np.array([[3, 7]], np.uint8))
    np.testing.assert_allclose(found, [[3, 3 + math.log2(1114112)]], rtol=1e-6)


def test_the_report_is_of_the_files_held_out(config, experiment, parts, params, tmp_path, monkeypatch):
    report = experiment.report(params)
    vocabulary = experiment.constants["vocabulary"]
    joined = "".join(each.characters for each in parts.test)
    by_hand = [bits_by_hand(params, vocabulary, each.characters) for each in parts.test]
    sizes = {
        "gzip": [len(gzip.compress(each.characters.encode(), 9)) for each in parts.test],
        "xz": [len(lzma.compress(each.characters.encode(), preset=9)) for each in parts.test],
    }
    np.testing.assert_allclose(report.scores["bits_per_character"], np.concatenate(by_hand).mean(), rtol=1e-5)
    for name, each in sizes.items():
        np.testing.assert_allclose(report.scores[name], 8 * sum(each) / len(joined), rtol=1e-12)
    np.testing.assert_allclose(
        report.scores["all files joined"]["gzip"], 8 * len(gzip.compress(joined.encode(), 9)) / len(joined), rtol=1e-12
    )
    assert report.scores["files"] == {"training": 8, "validation": 2, "test": 3, "not UTF-8": 1}
    assert report.scores["characters"]["test"] == len(joined)
    assert report.scores["unknown characters in test"] == sum(ord(each) not in vocabulary for each in joined)
    assert report.table.rows[1][1] == f"{report.scores['gzip']:.3f}"
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: (drawn.append(figure), save(figure, *to, **how)))
    report.pictures["bits.png"](tmp_path / "bits")
    assert drawn[0].axes[0].get_ylabel() == "bits per character"
    assert (tmp_path / "bits").read_bytes().startswith(b"\x89PNG")
    held_out = TASK.predict(config, params, experiment.constants, None)
    assert [row[0] for row in held_out.rows] == [each.name for each in parts.test]


# What it writes


def test_the_likeliest_characters(config, experiment, params):
    vocabulary = experiment.constants["vocabulary"]
    written = TASK.sample(config, params, experiment.constants, "the ", 8, 0.0, 0)
    read = [len(vocabulary) + 1, *text.encode(vocabulary, [text.Text("", "the " + written)])[0]]
    likeliest = logits_by_hand(params, read)[4:-1, :-1].argmax(axis=-1)
    assert written == "".join(map(chr, vocabulary[likeliest]))
    assert TASK.sample(config, params, experiment.constants, "the ", 8, 0, 7) == written


def test_samples_are_random_by_seed(config, experiment, params):
    first, again, other = (TASK.sample(config, params, experiment.constants, "", 40, 1.0, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert len(first) == 40
    assert set(map(ord, first)) <= set(experiment.constants["vocabulary"].tolist())


def test_samples_are_as_likely_as_the_model_says(config, experiment, params):
    """Of many texts of one character."""
    vocabulary = experiment.constants["vocabulary"]
    logits = logits_by_hand(params, [len(vocabulary) + 1])[0, :-1] / 2
    likely = np.exp(logits) / np.exp(logits).sum()
    drawn = [TASK.sample(config, params, experiment.constants, "", 1, 2.0, seed) for seed in range(300)]
    found = np.array([drawn.count(chr(each)) for each in vocabulary]) / 300
    assert np.abs(found - likely).max() < 4 * math.sqrt(0.25 / 300)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 0}, "`length`.*0"),
        ({"length": 2.5}, "`length`.*2.5"),
        ({"temperature": -1.0}, "`temperature`.*-1"),
        ({"temperature": math.nan}, "`temperature`.*nan"),
        ({"temperature": math.inf}, "`temperature`.*inf"),
        ({"temperature": "hot"}, "`temperature`.*hot"),
        ({"seed": -1}, "`seed`.*-1"),
        ({"prompt": "the ☃"}, "`prompt`.*☃"),
        ({"prompt": None}, "`prompt`.*None"),
    ],
)
def test_samples_that_cannot_be_made(config, experiment, params, change, words):
    given = {"prompt": "the", "length": 3, "temperature": 1.0, "seed": 0} | change
    with pytest.raises(ValueError, match=words):
        TASK.sample(config, params, experiment.constants, *given.values())


# The whole


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run(config, tmp_path, dtype):
    from flax_srnn.training import program

    done = program.train(
        config, workdir=tmp_path / "run", steps=60, learning_rate=0.01, evaluate_every=30, units=24, dtype=dtype
    )
    assert done.scores["bits_per_character"] < 4.5
    assert (tmp_path / "run" / "bits.png").exists()
    assert len(program.sample(tmp_path / "run", "the ", 20)) == 20
    assert len(program.predict(tmp_path / "run").rows) == 3


@pytest.mark.slow
def test_both_layers_are_timed(config):
    from flax_srnn.training import speed

    found = speed.microseconds(config, rounds=2)
    assert len(found) == 3
    assert all(each > 0 for each in found.values())
