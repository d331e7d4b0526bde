"""Functional models in Keras's files against Keras itself."""

import functools

import cases
import jax
import keras
import numpy as np
import pytest
from keras import layers
from keras_graphs import MODELS
from keras_models import (  # noqa: F401 - a fixture
    MARKS,
    B,
    F,
    T,
    lenient,
    randomised,
    strictly,
)
from random_graphs import RandomModel

from flax_srnn.interop.keras import build, convert, load_model, save_weights, structure

# Keys and names of inputs may differ, and each then has a say in the file.
pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict:UserWarning")]


def drawn(tensor, rng):
    """What fits an input: words, flags, or numbers with steps of zeros."""
    shape = tuple(n or free for n, free in zip(tensor.shape, (B, T, *tensor.shape[2:]), strict=False))
    if tensor.dtype == "bool":
        return rng.random(shape) < 0.6
    if tensor.dtype == "int32":
        return rng.integers(0, 7, shape).astype(np.int32) * (rng.random(shape) < 0.7)
    x = rng.normal(size=shape).astype(np.float32)
    return x * (rng.random(shape[:2]) < 0.7)[..., None] if x.ndim == 3 else x


def inputs_of(model, seed=0):
    rng = np.random.default_rng(seed)
    return [drawn(tensor, rng) for tensor in model.inputs]


def worst_error(outputs, expected):
    """The largest difference, of outputs nested alike."""
    outputs = list(outputs) if isinstance(outputs, tuple) else outputs
    expected = list(expected) if isinstance(expected, tuple) else expected
    assert jax.tree.structure(outputs) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True))
    assert [y.shape for y, _ in pairs] == [e.shape for _, e in pairs]
    return max(np.abs(np.asarray(y) - e).max() for y, e in pairs)


def predicted(model, arrays):
    """Keras's prediction for arrays in the order of `model.inputs`."""
    return model(jax.tree.unflatten(jax.tree.structure(model._inputs_struct), arrays))


def applied(module, variables, arrays):
    return strictly(module, variables, *arrays, mutable=["carry"])[0]


def has_two_biases(model):
    """Whether a GRU has a bias for each of its two products, of which two sums are one here."""
    return any(w.path.endswith("bias") and w.ndim == 2 for w in model.weights)


@pytest.mark.parametrize("name", cases.thinned(MODELS, 1))
def test_predictions_equal_those_of_keras(name, tmp_path, worst):
    model = randomised(MODELS[name]())
    arrays = inputs_of(model)
    expected = predicted(model, arrays)
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    worst[name] = worst_error(applied(module, variables, arrays), expected)
    assert worst[name] <= 1e-5

    # The legacy format says the same.
    model.save(tmp_path / "model.h5")
    same, again = load_model(tmp_path / "model.h5")
    assert same == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)

    # And back: other weights, into Keras's model.
    stored = {name: tree for name, tree in variables.items() if name != "carry"}
    other = variables | jax.tree.map(lambda leaf: leaf * 1.5, stored)
    save_weights(tmp_path / "back.weights.h5", module, other)
    before = model.get_weights()
    model.load_weights(tmp_path / "back.weights.h5")
    if has_two_biases(model):
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
        assert worst_error(predicted(model, arrays), applied(module, other, arrays)) <= 1e-5
    else:
        for weight, old in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, np.float32(1.5) * old)


@pytest.mark.parametrize("seed", cases.thinned(range(40), 0))
def test_random_graphs(seed, tmp_path, worst):
    """Relative to 1 + |value|: sums and squares of a random graph may grow."""
    model = randomised(RandomModel(seed).model, seed)
    arrays = inputs_of(model, seed)
    expected = predicted(model, arrays)
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    outputs = applied(module, variables, arrays)
    scale = 1 + max(np.abs(y).max() for y in jax.tree.leaves(expected))
    error = worst_error(outputs, expected) / scale
    worst["random graphs"] = max(error, worst.get("random graphs", 0))
    assert error <= 1e-5

    model.save(tmp_path / "model.h5")
    same, again = load_model(tmp_path / "model.h5")
    assert same == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested mappings", "encoder, decoder: LSTM", "mask computed"])
def test_convert_there_and_back(name, tmp_path):
    model = randomised(MODELS[name]())
    arrays = inputs_of(model)
    expected = predicted(model, arrays)
    model.save(tmp_path / "model.keras")
    convert(tmp_path / "model.keras", tmp_path / "folder")
    module, variables = load_model(tmp_path / "folder")
    assert worst_error(applied(module, variables, arrays), expected) <= 1e-5
    convert(tmp_path / "folder", tmp_path / "back.weights.h5")
    weights = model.get_weights()
    randomised(model, seed=5).load_weights(tmp_path / "back.weights.h5")
    if has_two_biases(model):
        assert worst_error(predicted(model, arrays), expected) <= 1e-5
    else:
        for weight, old in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
def test_the_call_of_the_model_says_whether_it_is_training(tmp_path):
    """Keras 3 notes `training` of calls inside the graph, also unasked, and overrules it."""
    model = randomised(MODELS["never in training"]())
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    arrays = inputs_of(model)
    rngs = [{"dropout": jax.random.key(seed)} for seed in range(2)]
    ours = [strictly(module, variables, *arrays, training=True, rngs=key, mutable=["batch_stats"])[0] for key in rngs]
    theirs = [np.asarray(model(*arrays, training=True)) for _ in range(2)]
    for one, two in (ours, theirs):
        assert np.abs(np.asarray(one) - two).max() > 1e-3


@pytest.mark.parametrize("trains", [False, True])
def test_a_call_of_keras_2_says_itself_whether_it_is_training(trains):
    nodes = {"x": [], "y": [[["x", 0, 0, {"training": trains}]]]}
    kinds = {"x": ("InputLayer", {"batch_input_shape": [None, 3]}), "y": ("Dropout", {"rate": 0.5, "trainable": True})}
    entries = [
        {"class_name": kind, "name": name, "config": {"name": name, **given}, "inbound_nodes": nodes[name]}
        for name, (kind, given) in kinds.items()
    ]
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["y", 0, 0]]}
    module = build.model({"class_name": "Model", "config": {"name": "m", "layers": entries, **ends}}, "2.4.0")
    x, rngs = np.ones((50, 3), np.float32), {"dropout": jax.random.key(0)}
    for training in (False, True):
        y = module.apply({}, x, training=training, rngs=rngs)
        assert np.array_equal(y, x) != trains


# --- inputs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_inputs(tmp_path):
    """A model of inputs "a" (B, T, F) and "b" (B, F), and what fits them."""
    a, b = keras.Input((T, F), name="a"), keras.Input((F,), name="b")
    model = randomised(keras.Model([a, b], layers.SimpleRNN(F)(a, initial_state=b)))
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    x, h = (np.random.default_rng(2).normal(size=shape).astype(np.float32) for shape in ((B, T, F), (B, F)))
    return functools.partial(strictly, module, variables), x, h, model([x, h])


def test_inputs_by_position_in_a_list_in_a_mapping_and_by_name(two_inputs):
    run, x, h, expected = two_inputs
    for arguments, options in [
        ((x, h), {}),
        (([x, h],), {}),
        (((x, h),), {}),
        (({"b": h, "a": x},), {}),
        ((), {"b": h, "a": x}),
    ]:
        np.testing.assert_allclose(run(*arguments, **options), expected, atol=1e-6)


def test_a_mask_needs_time(tmp_path):
    keras.Sequential([keras.Input(()), layers.Embedding(5, 3)]).save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="`mask` is for inputs over time"):
        module.apply(variables, np.ones(3), mask=np.ones((3, 1), bool))


def test_inputs_that_do_not_fit_are_refused(two_inputs):
    run, x, h, _ = two_inputs
    for arguments in ((), (x,), ([x],), (x, h, h), ([x, h, h],)):
        with pytest.raises(ValueError, match=r"`inputs` must be 2, one for each of 'a', 'b', got \d"):
            run(*arguments)
    for given in ({"a": x}, {"a": x, "c": h}, {"a": x, "b": h, "c": h}):
        for arguments, options in (((given,), {}), ((), given)):
            with pytest.raises(ValueError, match=r"`inputs` must be 'a' and 'b', got 'a'"):
                run(*arguments, **options)
    with pytest.raises(TypeError, match=r"`inputs` must be given by position or by name, got 1 and \['b'\]"):
        run(x, b=h)
    for wrong in ((h, x), (x, h[:, :3]), (x[:, :4], h), (x[0], h)):
        with pytest.raises(ValueError, match=r"`inputs` must have the shape \(None, .*\) for '[ab]', got"):
            run(*wrong)
    for wrong in ((x, None), ("words", h), ({"a": x, "b": None},)):
        with pytest.raises((TypeError, ValueError), match="`inputs`"):
            run(*wrong)
    with pytest.raises(ValueError, match="`mask` must be 2, one for each of 'a', 'b', got 1"):
        run(x, h, mask=np.ones((B, T), bool))


@pytest.mark.slow
def test_keys_and_names_of_inputs(tmp_path):
    """An input has two names if the model lists it under a key."""
    model = randomised(MODELS["named inputs"]())
    numbers, tokens = sorted(inputs_of(model), key=lambda array: -array.ndim)
    expected = model({"words": tokens, "a": numbers})
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    for given in ({"words": tokens, "a": numbers}, {"w": tokens, "numbers": numbers}):
        np.testing.assert_allclose(module.apply(variables, given), expected, atol=1e-6)
        np.testing.assert_allclose(module.apply(variables, **given), expected, atol=1e-6)


@pytest.mark.slow
def test_a_mask_of_the_inputs(tmp_path):
    x = keras.Input((T, F))
    model = randomised(keras.Model(x, layers.LSTM(3, return_sequences=True)(layers.Dense(4)(x))))
    model.save(tmp_path / "model.keras")
    module, variables = load_model(tmp_path / "model.keras")
    (array,) = inputs_of(model)
    mask = np.arange(T) < np.array([[2], [5], [3]])
    np.testing.assert_allclose(module.apply(variables, array, mask=mask), model(array, mask=mask), atol=1e-6)
    with pytest.raises(ValueError, match="`mask`"):
        module.apply(variables, array, mask=mask[:, :2])


@pytest.mark.parametrize(("module", "expected"), [("keras.src.ops.numpy", True), ("mine.ops.layers", False)])
def test_a_users_module_called_ops_has_layers(module, expected):
    assert structure.is_operation({"module": module, "class_name": "Add", "config": {"name": "a"}}) == expected
