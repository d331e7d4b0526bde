"""The training program around its tasks: configs, the order of data, optimizers, the loop."""

import dataclasses
import functools
import json
import operator
import re
import signal
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_srnn.exits import Interrupted
from flax_srnn.training import config as configs
from flax_srnn.training import data, loop, mesh, metrics, optimizers, program, tasks
from flax_srnn.training.config import Training
from flax_srnn.training.tasks import Experiment, Report, Table
from flax_srnn.training.tasks.forecast import Forecast


def line_through(noise=0.0, **fields):
    """A model w·x fitted to 3·x: a loss that is known at every step."""

    def batch(step, rows):
        x = np.random.default_rng(step).normal(size=8).astype(np.float32)[rows.start : rows.stop]
        return {"x": x, "y": 3 * x}

    def loss(params, carry, batch, key):
        noisy = noise * jax.random.normal(key)
        return jnp.mean((params["w"] * batch["x"] - batch["y"]) ** 2) + noisy * params["w"], carry + batch["x"]

    experiment = Experiment(batch, loss, lambda params: Report({}, Table("", (), [])), carry=np.zeros(8, np.float32))
    return experiment._replace(**fields)


def fit(experiment, config, folder, init=lambda key: {"w": jax.random.normal(key)}):
    return loop.fit(init, experiment, config, folder, loop.Stop())[0]


def lines(folder):
    return [json.loads(line) for line in (folder / metrics.METRICS).read_text().splitlines()]


# --- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"steps": 0}, ValueError, "`steps` must be a whole number of at least 1 and at most 1000000000, got 0"),
        ({"steps": 2.5}, TypeError, "`steps` must be a whole number .* got 2.5"),
        ({"steps": True}, TypeError, "`steps`.*got True"),
        ({"learning_rate": "0.1"}, TypeError, "`learning_rate` must be a number .* got '0.1'"),
        ({"learning_rate": float("nan")}, ValueError, "`learning_rate`.*got nan"),
        ({"clip": float("inf")}, ValueError, "`clip`.*got inf"),
        ({"optimizer": "adma"}, ValueError, "`optimizer` must be one of 'adam'.*got 'adma'. Did you mean 'adam'"),
        ({"data": np.ones(90)}, TypeError, r"^`data` must be text, the path of a file, got an array of shape \(90,\) and dtype float64\.$"),
        ({"column": 3}, TypeError, r"^`column` must be text, got 3 \(int\)\.$"),
        ({"tests": ("1921", "1955")}, TypeError, r"`tests` must be a tuple of the form tuple\[str, str\], got '1921'"),
        ({"tests": [("1921", "1955")]}, TypeError, "`tests` must be a tuple"),
        ({"variance": 0.0}, ValueError, "`variance`.*got 0.0"),
        ({"patience": 3, "evaluate_every": 0}, ValueError, "`patience`.*needs `evaluate_every`"),
        ({"folds": 1}, ValueError, "`folds` must be 0, or 2"),
        ({"folds": 3}, ValueError, "`folds` needs base='persistence' and patience=0"),
        ({"unit": 3}, TypeError, "`unit` is no field of Forecast. Did you mean 'units'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_field_is_named(fields, error, message):
    with pytest.raises(error, match=message):
        configs.replaced(Forecast(), fields)


def test_numbers_of_numpy_and_paths_are_taken():
    config = Forecast(units=np.int64(3), l2=np.float32(0.5), learning_rate=1, data=Path("a.csv"))
    assert config == Forecast(units=3, l2=0.5, learning_rate=1, data="a.csv")
    assert [type(x) for x in (config.units, config.l2, config.data)] == [int, float, str]


def test_a_config_survives_json():
    config = program.find("sunspots")[1]
    again = configs.from_mapping(Forecast, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert again.tests == (("1921", "1955"), ("1956", "1979"))


@pytest.mark.parametrize("name", configs.bundled())
def test_every_bundled_config_is_of_a_task(name):
    task, config = program.find(name)
    assert type(config) is tasks.get(task).config
    assert tasks.name_of(config) == task


@pytest.mark.parametrize("name", tasks.names())
def test_every_field_is_documented(name):
    config_class = tasks.get(name).config
    documented = (config_class.__doc__ or "") + (Training.__doc__ or "")
    fields = [field.name for field in dataclasses.fields(config_class)]
    assert [name for name in fields if not re.search(rf"\n +{name}: ", documented)] == []


# --- data and optimizers -----------------------------------------------------------------------------------------------


def test_processes_read_parts_of_one_batch():
    def batch(step, rows):
        return np.arange(10 * step, 10 * step + 6)[rows.start : rows.stop]

    whole, *parts = (list(data.batches(batch, 5, rows, 0)) for rows in (range(6), range(2), range(2, 6)))
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(list(data.batches(batch, 5, range(6), 3)), whole[3:])
    assert len(whole) == 5


def test_every_epoch_has_every_example_once():
    order = data.shuffled(7, (3,), 0, 28).reshape(4, 7)
    assert (np.sort(order) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in order}) == 4
    np.testing.assert_array_equal(data.shuffled(7, (3,), 10, 9), order.ravel()[10:19])
    assert not np.array_equal(data.shuffled(7, (4,), 0, 28), order.ravel())


def test_schedules():
    def rates(**options):
        schedule = optimizers.schedule(Training(learning_rate=0.5, steps=100, **options))
        return [round(float(schedule(step)), 4) for step in (0, 5, 10, 55, 100)]

    assert rates() == [0.5] * 5
    assert rates(warm_up_steps=10) == [0, 0.25, 0.5, 0.5, 0.5]
    assert rates(warm_up_steps=10, schedule="linear") == [0, 0.25, 0.5, 0.2525, 0.005]
    assert rates(warm_up_steps=10, schedule="cosine") == [0, 0.25, 0.5, 0.2525, 0.005]
    assert rates(schedule="cosine")[2] > rates(schedule="linear")[2]


@pytest.mark.parametrize("optimizer", cases.thinned(["adam", "sgd", "adamw", "rmsprop"], 2))
def test_optimizers_are_those_of_optax(optimizer):
    config = Training(optimizer=optimizer, learning_rate=0.1, momentum=0.5, weight_decay=0.2, clip=1.0)
    theirs = {
        "adam": optax.adam(0.1),
        "adamw": optax.adamw(0.1, weight_decay=0.2),
        "sgd": optax.sgd(0.1, momentum=0.5),
        "rmsprop": optax.rmsprop(0.1, momentum=0.5),
    }[optimizer]
    params = {"a": jnp.array([3.0, -4.0])}
    grads = ({"a": jnp.array([6.0, 8.0])}, {"a": jnp.array([0.3, 0.4])})  # of norm 10 and 0.5
    ours, clipped = optimizers.build(config, None, None), (jax.tree.map(lambda g: g / 10, grads[0]), grads[1])
    state, wanted = ours.init(params), theirs.init(params)
    for grad, expected in zip(grads, clipped, strict=True):
        update, state = ours.update(grad, state, params)
        reference, wanted = theirs.update(expected, wanted, params)
        np.testing.assert_allclose(update["a"], reference["a"], rtol=1e-6)


def test_members_of_an_ensemble_are_clipped_and_constrained_alone():
    from flax_srnn import SimpleRNN, collect_constraints

    tree = collect_constraints(SimpleRNN(2, kernel_constraint="unit_norm"), jax.random.key(0), jnp.ones((1, 2, 3)))
    config = Training(optimizer="sgd", momentum=0.0, learning_rate=1.0, clip=1.0)
    params = jax.vmap(lambda key: SimpleRNN(2).init(key, jnp.ones((1, 2, 3)))["params"])(
        jax.random.split(jax.random.key(0))
    )
    grads = jax.tree.map(lambda x: x * jnp.array([100.0, 0.01]).reshape(2, *[1] * (x.ndim - 1)), params)
    together, alone = optimizers.build(config, tree, 2), optimizers.build(config, tree, None)
    update, _ = together.update(grads, together.init(params), params)
    for member in range(2):
        one = functools.partial(jax.tree.map, operator.itemgetter(member))
        expected, _ = alone.update(one(grads), alone.init(one(params)), one(params))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), one(update), expected)


# --- the loop ----------------------------------------------------------------------------------------------------------


def test_a_line_of_metrics_is_the_mean_of_its_steps(tmp_path):
    experiment, config = line_through(), Training(batch_size=8, steps=7, log_every=3, optimizer="sgd", momentum=0.0)
    params = fit(experiment, config, tmp_path)
    w, losses = float(jax.random.normal(jax.random.key(0))), []
    for step in range(7):
        x = np.random.default_rng(step).normal(size=8).astype(np.float32)
        losses.append(np.mean((w * x - 3 * x) ** 2))
        w -= 1e-3 * np.mean(2 * (w * x - 3 * x) * x)
    np.testing.assert_allclose(float(params["w"]), w, rtol=1e-5)
    assert [line["step"] for line in lines(tmp_path)] == [3, 6, 7]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    np.testing.assert_allclose([line["loss"] for line in lines(tmp_path)], expected, rtol=1e-5)


def fit_until(stopped, experiment, config, folder, monkeypatch):
    """SIGTERM comes right after the checkpoint of the step `stopped`."""
    stop, save = loop.Stop(), loop.Checkpoints.save

    def interrupted(self, step, *rest):
        save(self, step, *rest)
        if step == stopped:
            stop._handle(signal.SIGTERM, None)

    every = dataclasses.replace(config, checkpoint_seconds=0.0)
    init = lambda key: {"w": jax.random.normal(key)}  # noqa: E731  # as in `fit`
    with monkeypatch.context() as patched:
        patched.setattr(loop.Checkpoints, "save", interrupted)
        with pytest.raises(Interrupted, match="SIGTERM"):
            loop.fit(init, experiment, every, folder, stop)


@pytest.mark.parametrize("stopped", cases.thinned([4, 1, 6], 1))
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, stopped, monkeypatch):
    experiment, config = line_through(noise=0.1), Training(batch_size=8, steps=7, log_every=3, clip=1.0)
    whole = fit(experiment, config, tmp_path / "whole")
    fit_until(stopped, experiment, config, tmp_path / "parts", monkeypatch)
    params = fit(experiment, config, tmp_path / "parts")
    np.testing.assert_array_equal(params["w"], whole["w"])
    assert (tmp_path / "parts" / metrics.METRICS).read_bytes() == (tmp_path / "whole" / metrics.METRICS).read_bytes()


def test_every_step_has_a_key_of_its_own(tmp_path):
    def loss(params, carry, batch, key):
        return params["w"] ** 2, jnp.roll(carry, 1).at[0].set(jax.random.normal(key))

    experiment = line_through(loss=loss)
    config = Training(batch_size=8, steps=8, checkpoint_seconds=0.0)
    fit(experiment, config, tmp_path)
    checkpoints = loop.Checkpoints(tmp_path / loop.CHECKPOINTS, 3)
    state = loop._start(
        lambda key: {"w": jax.random.normal(key)}, experiment.carry, optimizers.build(config, None, None), 0, False
    )
    drawn = np.asarray(checkpoints.restore(8, state).carry)
    assert len(set(drawn.tolist())) == 8


def test_lines_behind_the_checkpoint_are_written_anew(tmp_path, monkeypatch):
    experiment, config = line_through(), Training(batch_size=8, steps=6, log_every=1)
    fit_until(4, experiment, config, tmp_path, monkeypatch)
    whole = (tmp_path / metrics.METRICS).read_text()
    with (tmp_path / metrics.METRICS).open("a") as file:
        file.write('{"step": 5, "lo')
    fit(experiment, config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / metrics.METRICS).read_text().startswith(whole)


def test_the_newest_checkpoints_are_kept(tmp_path):
    config = Training(batch_size=8, steps=5, keep_checkpoints=2, checkpoint_seconds=0.0)
    fit(line_through(), config, tmp_path)
    assert sorted(path.name for path in (tmp_path / loop.CHECKPOINTS).iterdir()) == ["4", "5"]


def test_training_stops_early_and_keeps_the_best(tmp_path):
    seen = []

    def score(params):
        seen.append(float(params["w"]))
        return abs(seen[-1] - 1.0)  # best on the way to 3

    config = Training(batch_size=8, steps=500, learning_rate=0.1, evaluate_every=2, patience=3)
    params = fit(line_through(score=score), config, tmp_path, lambda key: {"w": jnp.array(-1.0)})
    best = int(np.argmin(np.abs(np.array(seen) - 1)))
    assert 0 < best == len(seen) - 4
    assert float(params["w"]) == seen[best]
    assert lines(tmp_path)[-1]["step"] == 2 * (len(seen) - 1) < 500


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    def loss(params, carry, batch, key):
        bad = jnp.where(batch["x"][0] > 0, 0.0, jnp.nan)  # of which no gradient, and so no parameter, tells
        return jax.lax.stop_gradient(bad) + params["w"], carry

    def batch(step, rows):
        return {"x": np.full(8, 1.0 if step < 4 else -1.0, np.float32)}

    config = Training(batch_size=8, steps=20, log_every=10, checkpoint_seconds=0.0)
    with pytest.raises(
        loop.RunFailed, match=r"the loss of step 5 is not finite; the checkpoint of step 4 is kept. Try"
    ):
        fit(line_through(loss=loss, batch=batch), config, tmp_path)
    assert "4" in {path.name for path in (tmp_path / loop.CHECKPOINTS).iterdir()}


def test_parameters_and_rows_lie_on_all_devices(tmp_path, monkeypatch):
    """The same numbers as on one device, whatever shares what."""
    assert jax.device_count() == 8, "tests/conftest.py asks for eight devices before JAX starts"

    def loss(params, carry, batch, key):
        return jnp.mean((batch["x"][:, None] * params["w"] - 1) ** 2), carry + batch["x"]

    def init(key):
        return {"w": jax.random.normal(key, (1, 8))}

    whole, fitted, placed = mesh.whole, {}, []
    monkeypatch.setattr(mesh, "whole", lambda mesh, arrays: placed.append(arrays["w"]) or whole(mesh, arrays))
    for shards in (1, 2, 8):
        config = Training(batch_size=8, steps=3, model_shards=shards)
        fitted[shards] = fit(line_through(loss=loss), config, tmp_path / str(shards), init)["w"]
        assert len(placed[-1].sharding.device_set) == 8
        assert placed[-1].addressable_shards[0].data.shape == (1, 8 // shards)
        np.testing.assert_allclose(fitted[shards], fitted[1], rtol=1e-6)
