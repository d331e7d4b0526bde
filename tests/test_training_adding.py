"""The adding problem: what its data are, who sees which of them, and that the scores are those of the answers."""

import re

import jax
import numpy as np
import pytest

from flax_srnn.training import metrics, program
from flax_srnn.training.tasks import adding
from flax_srnn.training.tasks.adding import Adding

TINY = Adding(length=6, units=8, examples=30, batch_size=8, steps=60, warm_up_steps=0, learning_rate=0.02, log_every=10,
              kernel_stddev=0.1, evaluate_every=20, patience=5)  # fmt: skip
EXPERIMENT = adding.TASK.load(TINY)


@pytest.mark.parametrize("length", [2, 7, 50])
def test_two_numbers_are_marked_one_in_each_half(length):
    inputs, sums = adding._examples((0, 1), 400, length)
    assert inputs.shape == (400, length, 2)
    assert inputs.dtype == sums.dtype == np.float32
    numbers, marks = inputs[..., 0], inputs[..., 1]
    assert 0 <= numbers.min() < numbers.max() <= 1
    assert set(np.unique(marks)) <= {0, 1}
    for half in (marks[:, : length // 2], marks[:, length // 2 :]):
        np.testing.assert_array_equal(half.sum(axis=1), 1)
        assert (half.sum(axis=0) > 0).all(), "every place is marked at some time"
    np.testing.assert_allclose(sums, (numbers * marks).sum(axis=1), rtol=1e-6)
    assert ((sums - 1) ** 2).mean() == pytest.approx(1 / 6, rel=0.15)


def test_a_batch_depends_on_seed_step_and_rows_alone():
    whole = EXPERIMENT.batch(5, range(8))
    again = adding.TASK.load(TINY)
    again.batch(2, range(8))
    parts = [again.batch(5, rows) for rows in (range(3), range(3, 8))]
    for name, x in whole.items():
        np.testing.assert_array_equal(x, np.concatenate([part[name] for part in parts]))
    other_seed = adding.TASK.load(Adding(**{**vars(TINY), "seed": 1})).batch(5, range(8))
    for other in (EXPERIMENT.batch(6, range(8)), other_seed):
        assert not np.array_equal(other["inputs"], whole["inputs"])


def test_no_part_is_seen_in_training():
    """A seed (0, 1) is that of step 1 of seed 0, as (0, 1, 0) would be."""
    parts = [adding._examples(seed, 8, 6)[0] for seed in adding._PARTS.values()]
    batches = [EXPERIMENT.batch(step, range(8))["inputs"] for step in range(20)]
    firsts = {x[0, :, 0].tobytes() for x in (*parts, *batches)}
    assert len(firsts) == 22
    np.testing.assert_array_equal(adding._examples((0, 1), 8, 6)[0], batches[1])


def test_a_state_stays_at_first():
    params = adding.TASK.init(TINY, {}, jax.random.key(0))
    np.testing.assert_array_equal(params["rnn"]["recurrent_kernel"], np.eye(8))
    wide = adding.TASK.init(Adding(units=400, kernel_stddev=0.01), {}, jax.random.key(0))
    assert np.std(wide["rnn"]["kernel"]) == pytest.approx(0.01, rel=0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return program.train(TINY, workdir=tmp_path_factory.mktemp("adding") / "run")


def test_it_learns(trained):
    losses = [line["loss"] for line in metrics.read(trained.folder) if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert trained.scores["test"] < 0.9 * trained.scores["always_1"]


def test_scores_are_those_of_the_answers(trained, tmp_path):
    for part, seed in adding._PARTS.items():
        inputs, sums = adding._examples(seed, 30, 6)
        np.savez(tmp_path / "inputs.npz", x=inputs)
        table = program.predict(trained.folder, tmp_path / "inputs.npz")
        assert table.headings == ("row", "answer")
        answers = np.array([row[1] for row in table.rows], float)
        assert trained.scores[part] == pytest.approx(np.mean((answers - sums) ** 2), rel=1e-3)
    assert trained.scores["always_1"] == pytest.approx(np.mean((sums - 1) ** 2), rel=1e-5)
    assert EXPERIMENT.score(trained.params) == pytest.approx(trained.scores["validation"])
    shown = program.predict(trained.folder)
    np.testing.assert_allclose([float(row[1]) for row in shown.rows], answers[:20], atol=1e-4)
    np.testing.assert_allclose([float(row[2]) for row in shown.rows], sums[:20], atol=1e-4)
    assert (trained.folder / "adding.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_may_have_other_lengths_and_must_have_numbers_and_marks(trained, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.ones((1, 3, 2), np.int8))
    assert len(program.predict(trained.folder, path).rows) == 1
    for arrays, words in (
        ({"x": np.ones((2, 3))}, "array x: its shape must be (N, T, 2), a number and a marker a step, got (2, 3)."),
        ({"x": np.ones((2, 3, 3))}, "got (2, 3, 3)."),
        ({"x": np.ones((0, 3, 2))}, "got (0, 3, 2)."),
        ({"x": np.full((2, 3, 2), np.nan)}, "array x: it must be finite in float32, got nan in row 0, step 0."),
        ({"inputs": np.ones((2, 3, 2))}, "array inputs: it is unknown."),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match="^" + re.escape(f"data {path}, ")) as caught:
            program.predict(trained.folder, path)
        assert words in str(caught.value)


@pytest.mark.slow
def test_it_is_solved_at_length_150(tmp_path):
    assert program.train("adding", workdir=tmp_path / "run").scores["test"] < 0.01
