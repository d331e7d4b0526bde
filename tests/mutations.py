"""Small faults to put into the library, each with the tests that must notice it; `mutate.py` runs them.

`test_mutations.py` checks that each still fits the library.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault.

    Attributes:
      name: what is wrong.
      file: in flax_srnn/.
      old, new: `old`, which stands in the file once, becomes `new`.
      tests: in tests/, files or single tests, the smallest set that should notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """The tests as pytest takes them."""
        return [f"tests/{test}" for test in self.tests]

    @property
    def digest(self) -> int:
        """Another number for another fault of the same name."""
        return zlib.crc32(repr(self).encode())

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}, not once.")
        return text.replace(self.old, self.new)


# --- which tests should notice -----------------------------------------------------------------------------------------

ORACLE = ("test_simple_rnn.py::test_every_option_equals_the_oracle",)
STEP = ("test_simple_rnn.py::test_cell_step_driven_by_hand",)
GOLDEN = ("test_simple_rnn.py::test_golden_masks",)
BLOCKS = ("test_simple_rnn.py::test_several_blocks_equal_the_oracle",)
MASKED_RESETS = ("test_simple_rnn.py::test_a_reset_at_a_masked_step_is_a_reset_all_the_same",)
IN_PIECES = ("test_simple_rnn.py::test_pieces_equal_the_whole",)
GRADIENTS_OF_BLOCKS = ("test_gradients.py::test_several_blocks",)
RECOMPUTED = ("test_gradients.py::test_recomputed_states",)
SECOND = ("test_gradients.py::test_second_derivatives",)
FORWARD_MODE = ("test_gradients.py::test_forward_mode_is_refused_by_name",)
NAN_IN_MASKED = ("test_gradients.py::test_masked_steps_reach_nothing",)
NAN_IN_LAYERS = ("test_gradients.py::test_masked_steps_reach_nothing_in_layers",)
HELD_BY_HAND = ("test_closed_over.py::test_values_and_gradients_are_those_of_the_loop_by_hand",)
POISON = ("test_gradients.py::test_what_a_masked_step_computes_reaches_nothing",)
POISON_IN_CELLS = ("test_gradients.py::test_what_a_masked_step_of_another_cell_computes_reaches_nothing",)
RULES = ("test_identifiers.py::test_rule_from_output_is_the_gradient",)
RELU = ("test_keras_activations.py::test_value_and_derivative_are_those_of_keras",)
CHUNKED = ("test_chunked.py::test_values_and_gradients",)
GIVING_UP = ("test_chunked.py::test_giving_up_is_seen_in_everything",)
SWEEPS = ("test_chunked.py::test_the_number_of_sweeps",)
DRAWN_MASKS = ("test_transforms.py::test_dropout_masks_are_inverted_bernoulli",)
PLACES = ("test_transforms.py::test_masks_are_independent_between_cells_and_directions",)
ROUNDED = ("test_dtypes.py::test_rounded_once",)
ANY_CELL = ("test_any_cell.py::test_any_cell_equals_the_loop",)
USERS_CELL = ("test_any_cell.py::test_a_users_cell",)
MERGED = ("test_layers.py::test_merge_modes_are_the_two_layers_merged",)
LEARNED = ("test_layers.py::test_learned_initial_state_and_its_gradient",)
SEED = ("test_layers.py::test_seed_stands_in_for_a_missing_key",)
BOTH_STATES = ("test_states.py::test_both_directions_keep_their_states",)
RESET_TO = ("test_states.py::test_resets_go_back_to_the_initial_state_not_to_the_recorded_one",)
PIECES_OF_LAYERS = ("test_states.py::test_sequence_in_pieces_equals_the_whole",)
PENALTIES = ("test_penalties_and_constraints.py::test_weight_penalties_equal_keras",)
ACTIVITY = ("test_penalties_and_constraints.py::test_activity_penalty_equals_keras",)
TWICE = ("test_penalties_and_constraints.py::test_layer_called_twice_and_variables_passed_on",)
STACKED = "test_stacked_constraints.py::"
STEPS_OF_KERAS = ("test_penalties_and_constraints.py::test_constraints_equal_keras_after_several_steps",)
REGULARIZERS = ("test_identifiers.py::test_regularizer_equals_keras",)
CONSTRAINTS = ("test_identifiers.py::test_constraint_equals_keras",)
INITIALIZERS = ("test_initializers.py::test_random_initializer_gives_keras_values_for_a_seed",)
PROPOSALS = ("test_proposals.py",)
SHARED_CELLS = ("test_keras_shared_cells.py",)
BAD_NAMES = ("test_identifiers.py::test_bad_identifiers",)
BAD_INPUT = ("test_bad_input.py::test_wrong_argument",)
TRUNCATED = ("test_truncated.py::test_values_and_gradients_of_the_loop",)
NNX_LAYERS = ("test_nnx.py::test_layers_of_cells_equal_linen",)
NNX_DROPOUT = ("test_nnx_models.py::test_dropout_draws_from_the_stream_and_follows_train_and_eval",)
NNX_STATES = ("test_nnx_models.py::test_stateful_layers_carry_states_as_linen_does",)
NNX_RESET = ("test_nnx_models.py::test_reset_states",)
NNX_PENALTIES = ("test_nnx_models.py::test_penalties_equal_linen",)
TORCH = ("test_interop_torch.py::test_reads_numpy_arrays_under_torch_names",)
TORCH_GATES = ("test_interop_gates.py::test_numpy_arrays_under_torch_names",)
HAIKU = ("test_interop_flax.py::test_haiku_vanilla_rnn",)
GRAPHS = "test_keras_graphs.py::test_predictions_equal_those_of_keras"
GATED = "test_gated.py::"
KERAS = ("test_interop_keras.py::test_predictions_equal_those_of_keras",)
KERAS_FILES = ("test_keras_weights.py::test_load_weights_of_every_format",)
SHARED = ("test_lifted.py::test_a_shared_cell_has_one_set_of_parameters",)
FORMS = ("test_tuning.py::test_no_form_shows_in_a_result",)
BORDERS = ("test_tuning.py::test_how_the_products_of_a_step_are_written",)
GATHERS = ("test_tuning.py::test_when_the_backward_pass_gathers_by_step",)
COPIES = ("test_tuning.py::test_copies_under_vmap",)
TPU = ("test_tpu.py::test_loops_over_steps",)
LIBRARY = ("test_performance.py::test_loops_and_products",)
HOISTS = ("test_performance.py::test_the_projection_is_outside_the_loop_where_the_rule_says_so",)
KERAS_LIVE = ("test_keras_configs.py::test_live_layers",)

# --- the faults, from the ground up ------------------------------------------------------------------------------------

CELL, LOOP, BLOCK = "core/cell.py", "core/recurrence.py", "core/blocks.py"
PRODUCTS, TUNING = "core/products.py", "core/tuning.py"
SOLVER, SEQUENCE, DRAW = "core/parallel_in_time.py", "core/sequence.py", "core/parameters.py"
DRIVE, OPTIONS, STATES, PROJECTION = (
    "layers/driving.py",
    "layers/options.py",
    "layers/states.py",
    "layers/projection.py",
)
KERAS_TRAINING, KERAS_VERSIONS = (
    "test_keras_training.py::",
    "test_keras_versions.py::test_predictions_of_other_versions",
)
STRUCTURE, KERAS_MODEL = "interop/keras/structure.py", "interop/keras/model.py"
POINTWISE, NORMALIZING, WEIGHTS = (
    "interop/keras/pointwise.py",
    "interop/keras/normalizing.py",
    "interop/keras/weights.py",
)
KERAS_CONFIG, KERAS_OBJECTS = "interop/keras/config.py", "interop/keras/live.py"

OF_ONE_STEP = [
    Mutation(
        "kernel-transposed",
        CELL,
        "cell.product(x, cell.kernel, ",
        "cell.product(x, cell.kernel.T.reshape(-1, cell.kernel.shape[1]), ",
        STEP,
    ),
    Mutation(
        "recurrent-kernel-transposed",
        CELL,
        "cell.product(recurrent, cell.recurrent_kernel,",
        "cell.product(recurrent, cell.recurrent_kernel.T,",
        STEP,
    ),
    Mutation(
        "bias-missing", CELL, "a = z if cell.bias is None else z + jnp.broadcast_to(cell.bias, z.shape)", "a = z", STEP
    ),
    Mutation(
        "bias-twice",
        CELL,
        "z + jnp.broadcast_to(cell.bias, z.shape)",
        "z + jnp.broadcast_to(2 * cell.bias, z.shape)",
        STEP,
    ),
    Mutation("input-dropout-missing", CELL, "x = x * cell.input_dropout_mask", "x = x * 1", STEP),
    Mutation(
        "recurrent-dropout-missing",
        CELL,
        "s if cell.recurrent_dropout_mask is None else s * cell.recurrent_dropout_mask",
        "s",
        STEP,
    ),
    Mutation("mask-ignored-forward", CELL, "(new if used is None else select(used, new, start))", "new", ORACLE),
    Mutation(
        "reset-lost-at-a-masked-step", CELL, "select(used, new, start)", "select(used, new, state)", MASKED_RESETS
    ),
    Mutation(
        "reset-after-the-step",
        CELL,
        "    start = state if reset is None else select(reset, reset_state, state)\n    new, output = step(start)\n",
        "    start = state\n    new, output = step(start)\n"
        "    new = new if reset is None else select(reset, reset_state, new)\n",
        ORACLE,
    ),
]

HELD = "core/closed_over.py"
OF_WHAT_ACTIVATIONS_HOLD = [
    Mutation(
        "what-make_jaxpr-remembers-is-stale",
        HELD,
        "jax.make_jaxpr(lambda a: activation(a), return",
        "jax.make_jaxpr(activation, return",
        ("test_closed_over.py::test_a_changed_attribute_is_seen",),
    ),
    Mutation(
        "custom-rules-are-not-told-apart",
        HELD,
        'if "custom_" not in text:',
        "if text:",
        ("test_closed_over.py::test_a_changed_attribute_is_seen",),
    ),
    Mutation(
        "hidden-constants-are-not-told-apart",
        HELD,
        "kept = tuple(_hidden(closed.jaxpr))",
        "kept = ()",
        ("test_closed_over.py::test_two_compiled_functions_of_the_same_text_are_two",),
    ),
    Mutation(
        "held-arrays-get-gradients-of-masked-steps",
        LOOP,
        "blanked(wholes, used))",
        "wholes)",
        HELD_BY_HAND,
    ),
    Mutation(
        "held-arrays-get-infinite-derivatives-of-masked-steps",
        LOOP,
        "_held_cotangents(here, blanked(kept, used, HARMLESS)",
        "_held_cotangents(here, kept",
        ("test_closed_over.py::test_a_masked_step_gives_nothing",),
    ),
    Mutation("held-arrays-of-one-block-only", LOOP, "held=jax.tree.map(jnp.add, sums.held, d)", "held=d", HELD_BY_HAND),
    Mutation(
        "rows-of-pieces-mixed-up",
        HELD,
        "a.reshape(self.rows, a.shape[0] // self.rows, a.shape[1])\n        return jax.vmap(lambda group: self(group, *held), 1, 1)",
        "a.reshape(a.shape[0] // self.rows, self.rows, a.shape[1])\n        return jax.vmap(lambda group: self(group, *held), 0, 0)",
        ("test_closed_over.py::test_a_rows_own_in_pieces",),
    ),
    Mutation(
        "linen-module-taken-for-a-function",
        "activations.py",
        "if isinstance(identifier, nn.Module):",
        "if False:",
        ("test_closed_over.py::test_a_linen_module_is_refused_and_its_function_trained",),
    ),
]

AXES = "core/mesh_axes.py"
OF_EXPLICIT_AXES = [
    Mutation(
        "results-of-explicit-axes-are-replicated",
        SEQUENCE,
        "final, outputs = [*rows, units], [*rows, units]",
        "final, outputs = [None for _ in rows] + [None], [None for _ in rows] + [None]",
        ("test_explicit_axes.py::test_every_implementation",),
    ),
    Mutation(
        "an-axis-for-rows-and-units",
        SEQUENCE,
        "    if not taken.isdisjoint(units if isinstance(units, tuple) else (units,)):",
        "    if False:",
        ("test_explicit_axes.py::test_other_dimensions_are_sharded",),
    ),
    Mutation(
        "states-of-other-cells-are-not-sharded",
        SEQUENCE,
        "mesh_axes.sharded_by(mesh_axes.vary(arrays, axes), rows)",
        "mesh_axes.vary(arrays, axes)",
        ("test_explicit_axes.py::test_linen_layers_under_set_mesh",),
    ),
    Mutation(
        "recorded-states-are-not-sharded",
        "layers/driving.py",
        "return final, final, outputs",
        "return PartitionSpec(), final, outputs",
        ("test_explicit_axes.py::test_recorded_states_go_through_a_loop",),
    ),
]

OF_THE_LOOP = [
    Mutation("plain-scan-always-forwards", LOOP, "reverse=p.reverse, unroll=p.unroll)", "unroll=p.unroll)", GOLDEN),
    Mutation(
        "nan-of-a-masked-step-reaches-the-plain-gradient",
        LOOP,
        "project(p.cell, blanked(x, used))",
        "project(p.cell, x)",
        NAN_IN_MASKED,
    ),
    Mutation(
        "nan-of-a-masked-step-reaches-the-weights",
        LOOP,
        "x = blanked(x, flags_over_time(mask, axis))",
        "x = x * 1",
        NAN_IN_MASKED,
    ),
    Mutation(
        "mask-ignored-in-the-gradient",
        LOOP,
        "delta if m is None else select(m, delta, zero)",
        "delta",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "masked-step-stops-the-gradient",
        LOOP,
        "back = back + select(m, zero, e)",
        "back = back * 1",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "reset-not-undone-in-the-gradient", LOOP, "back = select(r, zero, back)", "back = back * 1", GRADIENTS_OF_BLOCKS
    ),
    Mutation(
        "reset-state-gradient-dropped",
        LOOP,
        "reset_cotangent = reset_cotangent + select(r, back, zero)",
        "reset_cotangent = reset_cotangent + zero",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "reset-missing-in-the-weight-gradient",
        LOOP,
        "s = select(flags_over_time(resets, axis), jnp.expand_dims(p.reset_state, axis), s)",
        "s = s * 1",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "recurrent-dropout-missing-in-the-state-gradient",
        LOOP,
        "back = back * d_h",
        "back = back * 1",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "recurrent-dropout-missing-in-the-weight-gradient",
        LOOP,
        "columns = [_times(s, d_h, axis),",
        "columns = [s,",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation("input-dropout-missing-in-the-weight-gradient", LOOP, "_times(x, d_x, axis)]", "x]", GRADIENTS_OF_BLOCKS),
    Mutation(
        "input-dropout-missing-in-the-input-gradient",
        LOOP,
        "_times(projected_back, d_x, axis), start",
        "projected_back, start",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "input-dropout-mask-gradient-without-the-input",
        LOOP,
        "(projected_back * x).sum(axis)",
        "projected_back.sum(axis)",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "recurrent-dropout-mask-gradient-without-the-state",
        LOOP,
        "(dot(deltas, recurrent_kernel_t, cell.precision) * s).sum(axis)",
        "dot(deltas, recurrent_kernel_t, cell.precision).sum(axis)",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "recurrent-kernel-not-transposed-in-the-gradient",
        LOOP,
        "dot(_carried(delta), recurrent_kernel_t, cell",
        "dot(_carried(delta), cell.recurrent_kernel, cell",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "weight-gradient-of-one-block",
        LOOP,
        "weights = weights + contracted(",
        "weights = contracted(",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "dropout-mask-gradient-of-one-block",
        LOOP,
        "input_dropout_mask=sums.input_dropout_mask + d)",
        "input_dropout_mask=d)",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "bias-gradient-dropped",
        LOOP,
        "bias=None if cell.bias is None else bias[0]",
        "bias=None if cell.bias is None else 0 * bias[0]",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation("h0-gradient-dropped", LOOP, "initial_state=c,", "initial_state=0 * c,", GRADIENTS_OF_BLOCKS),
    Mutation(
        "final-state-gradient-dropped",
        LOOP,
        "            final_cotangent,\n            jax.tree.map(",
        "            0 * final_cotangent,\n            jax.tree.map(",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "states-shifted-the-wrong-way",
        LOOP,
        "    if reverse:\n        return jnp.concatenate([lax.slice",
        "    if not reverse:\n        return jnp.concatenate([lax.slice",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "wrong-block-border", LOOP, "else (start - 1, start == 0)", "else (start, start == 0)", GRADIENTS_OF_BLOCKS
    ),
    Mutation(
        "wrong-block-border-backwards",
        LOOP,
        "(start + count, start + count == steps) if",
        "(start + count - 1, start + count == steps) if",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "checkpoints-of-nothing",
        LOOP,
        'kept = h if record == "checkpoints" else None',
        'kept = 0 * h if record == "checkpoints" else None',
        RECOMPUTED,
    ),
    Mutation(
        "remat-ignored",
        LOOP,
        "recompute = how.remat",
        "recompute = None",
        ("test_gradients.py::test_large_states_are_recomputed",),
    ),
    Mutation(
        "pre-activations-of-the-wrong-steps",
        LOOP,
        "kept, place = dot(joined, stacked, cell.precision), 0",
        "kept, place = dot(joined, stacked, cell.precision), start",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "hoisted-projection-without-dropout",
        LOOP,
        "project(_for_block(p.cell, axis), blanked(x, flags_over_time(mask, axis)))",
        "jnp.dot(blanked(x, flags_over_time(mask, axis)), p.cell.kernel, precision=p.cell.precision)",
        GRADIENTS_OF_BLOCKS,
    ),
    Mutation(
        "second-derivatives-without-the-flags",
        LOOP,
        "jax.vjp(lambda arrays: plain(p.completed(arrays)), arrays)",
        "jax.vjp(plain, arrays)",
        SECOND,
    ),
    Mutation(
        "second-derivatives-of-half-the-arguments",
        LOOP,
        "return problem_cotangent, None, *others",
        "return problem_cotangent, None, *jax.tree.map(jnp.zeros_like, others)",
        SECOND,
    ),
    Mutation(
        "forward-mode-not-refused-by-name",
        LOOP,
        "jax.tree.map(reverse_only.marked, _alike(p))",
        "_alike(p)",
        FORWARD_MODE,
    ),
    Mutation(
        "replicated-arrays-stay-replicated",
        LOOP,
        "jax.tree.map(reverse_only.marked, _alike(p))",
        "jax.tree.map(reverse_only.marked, p)",
        ("test_sharding.py::test_shard_map",),
    ),
    Mutation(
        "blocks-in-the-wrong-order",
        BLOCK,
        "(whole - 1 - i if descending else i)",
        "(i if descending else whole - 1 - i)",
        BLOCKS,
    ),
    Mutation(
        "block-rest-lost", BLOCK, "if not isinstance(rest, int) or rest:", "if not isinstance(rest, int):", BLOCKS
    ),
    Mutation(
        "steps-of-a-block-in-the-wrong-order",
        BLOCK,
        "step(count - 1 - i if descending else i, carry)",
        "step(i, carry)",
        BLOCKS,
    ),
]

OF_ACCELERATORS = [
    Mutation(
        "any-layout-on-a-tpu",
        "core/row_major.py",
        "if context.module_context.lowering_parameters.for_export:",
        "if True:",
        TPU,
    ),
    Mutation(
        "layouts-in-exported-programs",
        "core/row_major.py",
        "if context.module_context.lowering_parameters.for_export:",
        "if False:",
        ("test_export.py::test_forward_and_gradients_for_every_platform",),
    ),
    Mutation("projected-in-every-step-on-a-tpu", TUNING, "    hoisted_features=1,", "    hoisted_features=10**6,", TPU),
    Mutation("whole-arrays-in-the-loops-of-a-tpu", TUNING, "    copies_blocks=True,", "    copies_blocks=False,", TPU),
    Mutation(
        "checkpoints-of-other-blocks-elsewhere",
        TUNING,
        "if self.accelerators is None or not same_blocks:",
        "if True:",
        ("test_tuning.py::test_checkpoints_are_of_the_same_blocks_everywhere",),
    ),
    Mutation(
        "half-precision-converted-whole",
        "core/parts.py",
        "if whole is None or self.dtype == self.wide else lax.bitcast_convert_type(whole, jnp.uint16)",
        "",
        ("test_performance.py::test_no_loop_converts_a_whole_array_of_half_precision",),
    ),
    Mutation(
        "half-precision-in-place",
        TUNING,
        "self.copies_blocks or p.inputs.dtype != p.initial_state.dtype",
        "self.copies_blocks",
        ROUNDED,
    ),
    Mutation(
        "half-precision-never-converted-whole",
        TUNING,
        "size > self.widened_elements",
        "size >= 0",
        ("test_tuning.py::test_when_half_precision_is_converted_as_a_whole",),
    ),
    Mutation(
        "half-precision-always-converted-whole",
        TUNING,
        "size > self.widened_elements",
        "False",
        ("test_tuning.py::test_when_half_precision_is_converted_as_a_whole",),
    ),
    Mutation(
        "copies-of-the-first-block",
        "core/parts.py",
        "blocks.window(whole, start, count, axis)",
        "blocks.window(whole, 0 * start, count, axis)",
        FORMS,
    ),
]

OF_PRODUCTS = [
    Mutation(
        "sum-of-products-without-one",
        PRODUCTS,
        "range(x.ndim - 1))).sum(-2)",
        "range(x.ndim - 1)))[..., 1:, :].sum(-2)",
        FORMS,
    ),
    Mutation("products-of-the-rows-in-the-wrong-order", PRODUCTS, "for row in x]", "for row in x[::-1]]", FORMS),
    Mutation(
        "rows-of-copies-one-by-one",
        TUNING,
        "row_products=0, gathered_products=0)",
        "gathered_products=0)",
        COPIES,
    ),
    Mutation(
        "copies-gathered-by-step",
        TUNING,
        "row_products=0, gathered_products=0)",
        "row_products=0)",
        COPIES,
    ),
    Mutation("copies-of-shared-weights-as-sums", TUNING, "// max(copies, 1) if shared else", "if shared else", COPIES),
    Mutation(
        "copies-never-of-shared-weights",
        LOOP,
        "shared=not batched[0].cell.recurrent_kernel",
        "shared=False",
        COPIES,
    ),
    Mutation("gathered-products-averaged", PRODUCTS, "None, :]).sum(0)", "None, :]).mean(0)", FORMS),
    Mutation(
        "gathered-by-step-from-checkpoints",
        LOOP,
        'by_step = record == "states" and how.tuning.gathers_by_step(p)',
        "by_step = how.tuning.gathers_by_step(p)",
        (
            "test_gradients.py::test_second_derivatives",
            "test_tuning.py::test_recomputed_states_are_not_gathered_by_step",
        ),
    ),
    Mutation(
        "gathered-products-call-a-library",
        LOOP,
        "dot = products.summed if by_step else products.library",
        "dot = products.library",
        LIBRARY,
    ),
    Mutation("no-sums", TUNING, "size < self.summed_products", "size < 0", LIBRARY),
    Mutation(
        "gathered-at-the-border", TUNING, "units < self.gathered_products", "units <= self.gathered_products", GATHERS
    ),
    Mutation("as-many-sums-for-any-number-of-units", TUNING, "math.gcd(units, 8)", "8", BORDERS),
    Mutation("no-rows", TUNING, "if batch in (2, 4, 8) and", "if batch in () and", BORDERS),
    Mutation("rows-of-odd-widths", TUNING, "units % 8 == 0 and", "", BORDERS),
    Mutation(
        "blocks-where-all-fits",
        TUNING,
        "elements * steps <= self.whole_elements",
        "elements * steps <= 0",
        ("test_tuning.py::test_blocks",),
    ),
    Mutation("a-single-row-is-hoisted", TUNING, "batch >= self.hoisted_rows", "True", HOISTS),
    Mutation("few-features-are-hoisted", TUNING, ">= self.hoisted_features", ">= 1", HOISTS),
]

OF_ACTIVATIONS = [
    Mutation("rule-of-tanh", "activations.py", "return (g + g * y) * (1 - y)", "return g * (1 - y)", RULES),
    Mutation("relu-from-threshold-forgotten", "activations.py", "relu(self.threshold - x)", "relu(-x)", RELU),
    Mutation("relu6-derivative-of-clip", "activations.py", "self.max_value == 6 and", "self.max_value == -6 and", RELU),
    Mutation(
        "keras-2-slope-ignored",
        "activations.py",
        'config["negative_slope"] = config.pop("alpha")',
        'config.pop("alpha")',
        ("test_keras_activations.py::test_configurations_of_other_versions",),
    ),
    Mutation("rule-of-sigmoid", "activations.py", "return g * y * (1 - y)", "return g * (1 - y)", RULES),
    Mutation(
        "rule-of-softmax-over-the-wrong-axis",
        "activations.py",
        "y * (g - jnp.sum(y * g, axis=-1, keepdims=True))",
        "y * (g - jnp.sum(y * g, axis=0, keepdims=True))",
        RULES,
    ),
    Mutation("rule-of-hard-sigmoid-of-keras-2", "activations.py", "(y < 1), g / 6, 0)", "(y < 1), g / 5, 0)", RULES),
    Mutation(
        "gelu-approximated",
        "activations.py",
        "approximate=False",
        "approximate=True",
        ("test_identifiers.py::test_activation_equals_keras_in_value_and_gradient",),
    ),
]

OF_THE_SOLVER = [
    Mutation(
        "tolerance-ignored",
        SOLVER,
        "change <= sweeps.tol * jnp.maximum(size, least)",
        "change <= jnp.maximum(size, least)",
        ("test_chunked.py::test_the_error_follows_the_tolerance",),
    ),
    Mutation(
        "warm-up-from-the-wrong-end", SOLVER, "x[:, :count] if reverse else", "x[:, :count] if not reverse else", SWEEPS
    ),
    Mutation(
        "pieces-handed-on-in-the-wrong-order",
        SOLVER,
        "jnp.concatenate([first[:, None], ends[:, :-1]], 1)",
        "jnp.concatenate([first[:, None], ends[:, 1:]], 1)",
        CHUNKED,
    ),
    Mutation(
        "pieces-handed-on-in-the-wrong-order-backwards",
        SOLVER,
        "jnp.concatenate([ends[:, 1:], first[:, None]], 1)",
        "jnp.concatenate([ends[:, :-1], first[:, None]], 1)",
        CHUNKED,
    ),
    Mutation(
        "max-sweeps-ignored",
        SOLVER,
        "limit = count if self.max_sweeps is None else min(int(self.max_sweeps), count)",
        "limit = count",
        GIVING_UP,
    ),
    Mutation("giving-up-unseen", SOLVER, "jnp.where(agree, x, jnp.nan)", "x", GIVING_UP),
    Mutation(
        "giving-up-unseen-in-the-gradient",
        SOLVER,
        "jnp.where(agree & forward_agrees, x, jnp.nan)",
        "jnp.where(forward_agrees, x, jnp.nan)",
        ("test_chunked.py::test_a_backward_pass_alone_that_gives_up_is_seen_in_the_gradients",),
    ),
    Mutation(
        "filling-of-the-last-piece-not-masked",
        SOLVER,
        "if mask is None and steps % sweeps.pieces:",
        "if mask is None and steps < 0:",
        CHUNKED,
    ),
    Mutation("dropout-mask-gradient-of-one-piece", SOLVER, "x.shape[-1]).sum(1)", "x.shape[-1])[:, 0]", CHUNKED),
    Mutation(
        "h0-gradient-of-the-wrong-piece", SOLVER, "at_starts[:, -1 if p.reverse else 0]", "at_starts[:, 0]", CHUNKED
    ),
    Mutation("final-state-of-the-wrong-piece", SOLVER, "ends[:, 0 if p.reverse else -1]", "ends[:, -1]", CHUNKED),
    Mutation(
        "second-derivatives-of-the-solver-without-the-flags",
        SOLVER,
        "p.completed(floating), _unfold(states, p)",
        "floating, _unfold(states, p)",
        ("test_chunked.py::test_gradients_of_gradients",),
    ),
]

OF_DROPOUT = [
    Mutation("unscaled-dropout", DRAW, "0.0 if rate == 1 else 1.0 / (1.0 - rate)", "1.0", DRAWN_MASKS),
    Mutation(
        "rate-is-what-is-kept",
        DRAW,
        "jax.random.bernoulli(key, 1.0 - rate,",
        "jax.random.bernoulli(key, rate,",
        DRAWN_MASKS,
    ),
    Mutation(
        "one-key-for-both-dropout-masks",
        DRAW,
        "map(mask, jax.random.split(key), rates, widths)",
        "map(mask, (key, key), rates, widths)",
        ("test_transforms.py::test_dropout_is_constant_over_time",),
    ),
    Mutation(
        "one-key-for-all-parameters",
        DRAW,
        "zip(jax.random.split(key, len(table)),",
        "zip([key] * len(table),",
        ("test_dtypes.py::test_init_params_draws_from_keys_of_their_own",),
    ),
]

OF_SEQUENCES = [
    Mutation("lengths-off-by-one", SEQUENCE, "< lengths[..., None]", "<= lengths[..., None]", ORACLE),
    Mutation(
        "lengths-or-mask",
        SEQUENCE,
        "used & within",
        "used | within",
        ("test_layers.py::test_mask_and_lengths_both_apply",),
    ),
    Mutation(
        "keep-order-ignored",
        SEQUENCE,
        "jnp.flip(outputs, axis) if options.go_backwards and not options.keep_order",
        "jnp.flip(outputs, axis) if options.go_backwards",
        GOLDEN,
    ),
    Mutation(
        "zero-output-of-the-wrong-step",
        SEQUENCE,
        "steps.mask[..., 0 if steps.options.go_backwards else -1]",
        "steps.mask[..., -1]",
        GOLDEN,
    ),
    Mutation(
        "held-outputs-zeroed",
        SEQUENCE,
        "if steps.options.zero_output_for_mask and problem.mask is not None",
        "if problem.mask is not None",
        GOLDEN,
    ),
    Mutation(
        "outputs-zeroed-in-the-wrong-order",
        SEQUENCE,
        "problem.mask.T if steps.options.time_major else problem.mask",
        "problem.mask.T if steps.options.time_major else problem.mask[:, ::-1]",
        GOLDEN,
    ),
    Mutation(
        "last-output-not-zeroed",
        SEQUENCE,
        "if not steps.options.return_sequences:\n        return final, _last_shown(final, steps)",
        "if not steps.options.return_sequences:\n        return final, final",
        GOLDEN,
    ),
    Mutation(
        "initial-state-not-promoted",
        SEQUENCE,
        "cell.bias, steps.inputs, initial_state)\n",
        "cell.bias, steps.inputs)\n",
        ("test_dtypes.py::test_the_common_dtype",),
    ),
    Mutation(
        "half-precision-not-in-float32", SEQUENCE, "loop_dtype = at_least_float32(dtype)", "loop_dtype = dtype", ROUNDED
    ),
    Mutation("reset-state-ignored", SEQUENCE, "initial if reset_state is None else reset_state", "initial", IN_PIECES),
    Mutation(
        "learned-initial-state-ignored",
        SEQUENCE,
        "jnp.broadcast_to(w.initial_state,",
        "jnp.broadcast_to(0 * w.initial_state,",
        ORACLE,
    ),
    Mutation(
        "implementation-ignored",
        SEQUENCE,
        "steps.options.implementation or implementations.DEFAULT",
        "implementations.DEFAULT",
        ("test_performance.py::test_the_implementation_that_was_named_runs",),
    ),
    Mutation(
        "optional-package-unknown",
        "core/implementations.py",
        "choice not in installed and choice in OPTIONAL",
        "choice in installed and choice in OPTIONAL",
        ("test_implementations.py::test_the_name_of_an_optional_package_says_how_to_install_it",),
    ),
    Mutation(
        "mask-of-the-outputs-always-reversed",
        SEQUENCE,
        "jnp.flip(flags, -1) if go_backwards and not keep_order",
        "jnp.flip(flags, -1) if go_backwards",
        ("test_simple_rnn.py::test_mask_of_the_returned_sequence",),
    ),
    Mutation(
        "segments-end-where-they-begin",
        SEQUENCE,
        "if starts is None or starts.shape[-1] == 0:",
        "if starts is None or starts.shape[-1] >= 0:",
        ("test_layers.py::test_packed_segments_never_see_each_other",),
    ),
    Mutation(
        "other-cells-do-not-hold-their-output",
        SEQUENCE,
        "held = output if used is None else select(used, output, held)",
        "held = output",
        ANY_CELL,
    ),
    Mutation(
        "other-cells-vary-as-their-state-only",
        SEQUENCE,
        "mesh_axes.of((state, reset_state, steps, variables))",
        "mesh_axes.of((state, reset_state, steps))",
        ("test_sharding.py::test_shard_map_of_any_cell",),
    ),
    Mutation(
        "other-cells-hold-zeros-that-vary-over-nothing",
        SEQUENCE,
        "carried((state, jnp.zeros(output.shape, output.dtype)))",
        "(state, jnp.zeros(output.shape, output.dtype))",
        ("test_sharding.py::test_shard_map_of_any_cell",),
    ),
    Mutation(
        "other-cells-always-forwards",
        SEQUENCE,
        "        reverse=bool(options.go_backwards),\n        unroll=max",
        "        unroll=max",
        ANY_CELL,
    ),
    Mutation(
        "nan-of-a-masked-step-reaches-other-cells",
        SEQUENCE,
        "x = blanked(x, used, HARMLESS)\n",
        "x = x * 1\n",
        NAN_IN_LAYERS,
    ),
    Mutation(
        "other-cells-compute-with-the-state-of-a-masked-step",
        SEQUENCE,
        "step(blanked(state, used, HARMLESS), x)",
        "step(state, x)",
        POISON_IN_CELLS,
    ),
    Mutation(
        "what-a-masked-step-computes-reaches-the-plain-gradient",
        LOOP,
        "advance(sheltered(p.cell, used), h,",
        "advance(p.cell, h,",
        POISON,
    ),
    Mutation("a-masked-step-computes-with-zeros", CELL, "HARMLESS = 0.5", "HARMLESS = 0.0", POISON + POISON_IN_CELLS),
]

OF_TRUNCATION = [
    Mutation(
        "truncated-stop-gradient-missing",
        "truncated.py",
        "state = jnp.where(start == 0, state, jax.lax.stop_gradient(state))",
        "state = state * 1",
        TRUNCATED,
    ),
    Mutation(
        "truncated-h0-gradient-dropped",
        "truncated.py",
        "jnp.where(start == 0, state, jax.lax.stop_gradient(state))",
        "jax.lax.stop_gradient(state)",
        TRUNCATED,
    ),
    Mutation(
        "truncated-reset-state-missing",
        "truncated.py",
        "sequence.run(cell, steps.window(start, count), state, initial)",
        "sequence.run(cell, steps.window(start, count), state)",
        TRUNCATED,
    ),
    Mutation(
        "truncated-rest-from-the-wrong-step",
        "truncated.py",
        "piece(state, whole * size, rest)",
        "piece(state, whole * size - 1, rest)",
        TRUNCATED,
    ),
]

OF_BOTH_FAMILIES = [
    Mutation(
        "segment-ends-missing-in-bidirectional",
        DRIVE,
        "sequence.segment_ends(steps.resets) if one.go_backwards else steps.resets",
        "steps.resets",
        ("test_layers.py::test_packed_segments_never_see_each_other",),
    ),
    Mutation(
        "states-of-the-wrong-direction",
        DRIVE,
        "tuple(both[: counts[0]]), tuple(both[counts[0] :])",
        "tuple(both[counts[0] :]), tuple(both[: counts[0]])",
        ("test_keras_parity.py::test_bidirectional_decides_about_masked_outputs",),
    ),
    Mutation(
        "final-states-of-the-directions-swapped",
        DRIVE,
        "returned = (*merged, *finals)",
        "returned = (*merged, *finals[::-1])",
        BOTH_STATES,
    ),
    Mutation(
        "final-states-of-the-cells-swapped",
        DRIVE,
        "returned = (x, *finals)",
        "returned = (x, *finals[::-1])",
        ("test_any_cell.py::test_cell_by_cell_equals_step_by_step",),
    ),
    Mutation(
        "bidirectional-holds-masked-outputs",
        DRIVE,
        "zero = bool(one.return_sequences) and not o.holds_masked",
        "zero = False",
        MERGED,
    ),
    Mutation(
        "bidirectional-always-in-the-order-of-inputs",
        DRIVE,
        "jnp.flip(output, steps.time_axis) for output",
        "output for output",
        MERGED,
    ),
    Mutation(
        "stack-turns-round-between-its-cells",
        DRIVE,
        "replace(wanted, keep_order=True,",
        "replace(wanted, keep_order=False,",
        ("test_any_cell.py::test_a_stack_backwards_is_its_cells_backwards",),
    ),
    Mutation(
        "initial-state-of-the-second-cell-lost",
        DRIVE,
        "[Start(state, recorded=False) for state in given]",
        "[Start(state if i == 0 else None, recorded=False) for i, state in enumerate(given)]",
        ("test_keras_parity.py::test_a_stack_as_one_cell",),
    ),
    Mutation(
        "recorded-state-wins-over-a-given-one",
        DRIVE,
        "    if initial_state is not None:\n        given = (",
        "    if initial_state is not None and recorded is None:\n        given = (",
        NNX_RESET,
    ),
    Mutation(
        "resets-go-back-to-the-recorded-state",
        DRIVE,
        "state, initial if start.recorded else None",
        "state, None",
        RESET_TO,
    ),
    Mutation(
        "resets-of-other-cells-go-back-to-the-recorded-state",
        DRIVE,
        "initial if start.recorded else state, output",
        "state, output",
        RESET_TO,
    ),
    Mutation(
        "layers-ignore-their-learned-initial-state",
        DRIVE,
        "jnp.zeros((), w.kernel.dtype) if w.initial_state is None else w.initial_state",
        "jnp.zeros((), w.kernel.dtype)",
        LEARNED,
    ),
    Mutation(
        "training-not-passed-to-a-users-cell",
        DRIVE,
        'return {} if training is None or not accepts else {"training": training}',
        "return {}",
        USERS_CELL,
    ),
    Mutation(
        "dtype-ignored",
        DRIVE,
        "tree if o.dtype is None else jax.tree.map",
        "tree if o.dtype is not None else jax.tree.map",
        ("test_dtypes.py::test_mixed_precision",),
    ),
    Mutation("merge-ave-without-the-half", OPTIONS, "(forward + backward) / 2", "forward + backward", MERGED),
    Mutation(
        "merge-concat-the-other-way-round",
        OPTIONS,
        "jnp.concatenate([forward, backward], -1)",
        "jnp.concatenate([backward, forward], -1)",
        MERGED,
    ),
    Mutation(
        "dropout-in-inference",
        OPTIONS,
        "return training is not False and (o.dropout > 0 or o.recurrent_dropout > 0)",
        "return o.dropout > 0 or o.recurrent_dropout > 0",
        ("test_transforms.py::test_inference_reads_no_key",),
    ),
    Mutation(
        "recurrent-dropout-alone-ignored",
        OPTIONS,
        "(o.dropout > 0 or o.recurrent_dropout > 0)",
        "(o.dropout > 0)",
        ("test_bad_input.py::test_training_without_a_key_is_flax_own_error",),
    ),
    Mutation("seed-ignored", OPTIONS, "jax.random.key(o.seed)", "jax.random.key(0)", SEED),
    Mutation(
        "seed-draws-alike-at-every-place",
        OPTIONS,
        '"/".join(path).encode()',
        'b""',
        ("test_layers.py::test_one_seed_draws_other_masks_at_every_place",),
    ),
    Mutation(
        "activity-not-divided-by-the-batch",
        OPTIONS,
        "max(math.prod(batch), 1)",
        "1",
        ACTIVITY,
    ),
    Mutation(
        "activity-of-the-output-only",
        OPTIONS,
        "for x in jax.tree.leaves(returned))",
        "for x in jax.tree.leaves(returned)[:1])",
        ACTIVITY,
    ),
    Mutation(
        "regularizer-on-the-wrong-parameter",
        OPTIONS,
        '"recurrent": "recurrent_kernel", "bias": "bias"}',
        '"recurrent": "kernel", "bias": "bias"}',
        PENALTIES,
    ),
    Mutation(
        "constraints-of-the-kernels-swapped",
        OPTIONS,
        '{"kernel": o.kernel_constraint, "recurrent_kernel": o.recurrent_constraint}',
        '{"kernel": o.recurrent_constraint, "recurrent_kernel": o.kernel_constraint}',
        STEPS_OF_KERAS,
    ),
    Mutation(
        "opposite-directions-unchecked",
        OPTIONS,
        "if forward.go_backwards == backward.go_backwards:",
        "if forward.go_backwards is backward:",
        BAD_INPUT,
    ),
    Mutation(
        "constraint-before-the-update",
        PROJECTION,
        "apply_constraints(optax.apply_updates(params, updates), tree)",
        "optax.apply_updates(apply_constraints(params, tree), updates)",
        STEPS_OF_KERAS,
    ),
    Mutation(
        "constraint-across-the-stack",
        PROJECTION,
        "return over_stack(constraint, *found)",
        "return constraint",
        (f"{STACKED}test_members_of_a_stack_with_the_tree_of_one",),
    ),
    Mutation(
        "axes-of-stacks-from-the-front-only",
        PROJECTION,
        "range(-1 - rank, 1 + rank)",
        "range(1 + rank)",
        (f"{STACKED}test_members_of_a_stack_with_the_tree_of_one",),
    ),
    Mutation(
        "any-reading-of-a-stack-will-do",
        PROJECTION,
        "if len(found) != 1:",
        "while len(found) > 1:\n        found.pop()\n    if not found:",
        (f"{STACKED}test_what_cannot_be_told_apart_raises",),
    ),
    Mutation(
        "stacks-first-checked-by-the-update",
        PROJECTION,
        "_fitted(tree, params)\n        return",
        "return",
        (f"{STACKED}test_what_cannot_be_told_apart_raises",),
    ),
    Mutation(
        "reset-states-forgets-the-learned-state",
        STATES,
        'if NAME in recorded and "initial_state" in inner:',
        'if NAME in inner and "initial_state" in inner:',
        ("test_states.py::test_reset_states_of_a_model",),
    ),
    Mutation(
        "given-states-not-cast",
        STATES,
        "return jnp.asarray(given, recorded.dtype)",
        "return jnp.asarray(given)",
        ("test_states.py::test_real_and_integer_states_are_cast",),
    ),
]

OF_LINEN = [
    Mutation(
        "linen-recorded-during-init",
        "linen/layers.py",
        "done.initial_states if self.is_initializing() else done.final_states",
        "done.final_states",
        ("test_states.py::test_init_makes_the_initial_state_and_does_not_advance_it",),
    ),
    Mutation(
        "linen-state-not-recorded",
        "linen/layers.py",
        "done.initial_states if self.is_initializing() else done.final_states",
        "done.initial_states",
        PIECES_OF_LAYERS,
    ),
    Mutation(
        "linen-state-that-never-advances",
        "linen/layers.py",
        "initial_state, recorded, self._unrecorded())",
        "initial_state, recorded)",
        ("test_states.py::test_a_state_that_would_never_advance_is_refused",),
    ),
    Mutation(
        "linen-training-not-passed-to-cells",
        "linen/layers.py",
        "functools.partial(cell.fetch, training)",
        "functools.partial(cell.fetch, False)",
        PLACES,
    ),
    Mutation(
        "linen-training-not-passed-to-directions",
        "linen/layers.py",
        "functools.partial(layer, training=training) for layer",
        "functools.partial(layer, training=False) for layer",
        PLACES,
    ),
    Mutation(
        "linen-given-states-of-the-directions-swapped",
        "linen/layers.py",
        "zip(DIRECTIONS, halves, strict=True)",
        "zip(DIRECTIONS, halves[::-1], strict=True)",
        ("test_states.py::test_reset_states_of_both_directions",),
    ),
    Mutation(
        "linen-penalties-summed-twice",
        "linen/sown.py",
        '_sum if name == "activity_regularizer" else _latest',
        "_sum",
        TWICE,
    ),
    Mutation(
        "linen-activity-of-the-last-call-only",
        "linen/sown.py",
        '_sum if name == "activity_regularizer" else _latest',
        "_latest",
        TWICE,
    ),
    Mutation("linen-penalties-of-an-earlier-pass", "linen/cells.py", "sown.forget(self)", "pass", TWICE),
    Mutation(
        "linen-penalties-forgotten-within-a-pass",
        "linen/sown.py",
        "_at(scope, place) is first.get(place) for",
        "True for",
        ("test_lifted.py::test_penalties_add_up_over_the_calls_of_a_pass",),
    ),
    Mutation(
        "linen-penalties-of-a-lifted-pass-not-forgotten",
        "linen/sown.py",
        "all(\n            _at(scope, place) is first.get(place) for scope, first in scopes\n        )",
        "not any(scope.path for scope, _ in scopes) and all(\n            _at(scope, place) is first.get(place) for scope, first in scopes\n        )",
        ("test_lifted.py::test_penalties_add_up_over_the_calls_of_a_pass",),
    ),
    Mutation(
        "linen-shared-cell-copied",
        "linen/cells.py",
        "if _is_of_owner(owner, module) or _is_made_on_the_spot(module):",
        "if True:",
        SHARED,
    ),
    Mutation(
        "linen-cell-made-on-the-spot-stays-with-the-model",
        "linen/cells.py",
        "_is_of_owner(owner, module) or _is_made_on_the_spot(module)",
        "_is_of_owner(owner, module)",
        ("test_layers.py::test_layers_made_inside_compact",),
    ),
    Mutation(
        "linen-used-cell-moved",
        "linen/cells.py",
        "and module._state.setup_called is SetupState.NEW",
        "",
        SHARED,
    ),
    Mutation(
        "linen-cell-listed-twice-copied",
        "linen/cells.py",
        "if id(each) not in bound:",
        "if True:",
        ("test_lifted.py::test_a_cell_that_is_listed_twice_has_one_place",),
    ),
    Mutation(
        "linen-backward-copy-shares-the-cells",
        "linen/layers.py",
        '"_deep_clone": True, ',
        "",
        ("test_lifted.py::test_the_default_backward_layer_has_cells_of_its_own",),
    ),
    Mutation(
        "linen-keywords-dropped-by-vmap",
        "linen/cells.py",
        'if hasattr(call, "__wrapped__"):',
        "if False:",
        ("test_lifted.py::test_vmap_hands_on_what_is_given_by_name",),
    ),
    Mutation(
        "traced-training-drops-always",
        "layers/driving.py",
        "if dropout.training is not True:",
        "if False:",
        ("test_lifted.py::test_training_may_be_traced",),
    ),
    Mutation(
        "linen-restored-form-not-kept",
        "linen/layers.py",
        "if recorded is not None:",
        "if False:",
        ("test_states.py::test_states_restored_without_a_target",),
    ),
    Mutation(
        "states-restored-in-the-order-of-text",
        "layers/states.py",
        "numbers.get(str(i)) for i in range(len(node))",
        "numbers.get(str(i)) for i in sorted(range(len(node)), key=str)",
        ("test_states.py::test_states_restored_without_a_target",),
    ),
    Mutation(
        "integers-wrap-round-in-a-step",
        "core/cell.py",
        "return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)",
        "return x",
        ("test_simple_rnn.py::test_steps_of_narrow_integers",),
    ),
    Mutation(
        "lengths-in-their-own-dtype",
        "validation.py",
        "return result.astype(jnp.int32)",
        "return result",
        ("test_simple_rnn.py::test_lengths_of_any_integer_dtype",),
    ),
    Mutation(
        "nnx-public-helpers",
        "nnx/cells.py",
        "inspect.unwrap(type(cell).initialize_carry)",
        "type(cell).initialize_carry",
        ("test_nnx_programs.py::test_tables",),
    ),
    Mutation(
        "nnx-first-call-inside-a-scan",
        "nnx/layers.py",
        "if self.states is None and (transform := _fixed_structure(new)):",
        "if transform := '':",
        ("test_nnx_programs.py::test_a_fresh_layer_is_scanned",),
    ),
    Mutation(
        "nnx-states-not-restored",
        "nnx/layers.py",
        'if name == "states" and isinstance(value, Mapping):',
        "if False:",
        ("test_nnx_programs.py::test_a_fresh_layer_is_restored",),
    ),
    Mutation(
        "penalties-in-half-precision",
        "layers/options.py",
        "penalty.astype(at_least_float32(penalty.dtype)) for penalty in penalties",
        "penalty for penalty in penalties",
        ("test_penalties_and_constraints.py::test_penalties_of_half_precision_are_added_up_in_float32",),
    ),
    Mutation(
        "linen-seed-wins-over-the-stream",
        "linen/cells.py",
        'None if self.has_rng("dropout") else options.seed_key(self, self.path)',
        "options.seed_key(self, self.path)",
        SEED,
    ),
    Mutation(
        "linen-other-cells-draw-at-every-step", "linen/cells.py", '"dropout": False}', '"dropout": True}', USERS_CELL
    ),
    Mutation(
        "linen-axes-of-stacks-for-the-layers-own",
        "linen/penalties.py",
        "len(set(sizes)) == 1",
        "len(set(sizes)) == 2",
        (f"{STACKED}test_members_of_lifted_layers",),
    ),
    Mutation(
        "linen-constraints-under-jit-overlooked",
        "linen/penalties.py",
        "_tracing(next(_traces))",
        "_tracing(None)",
        (f"{STACKED}test_jitted_layers_are_found_and_left_clean",),
    ),
    Mutation(
        "linen-penalties-of-copies-averaged",
        "linen/penalties.py",
        ".sum() for penalty",
        ".mean() for penalty",
        ("test_penalties_and_constraints.py::test_penalties_of_all_copies_of_a_layer_are_summed",),
    ),
]

OF_NNX = [
    Mutation(
        "nnx-train-and-eval-win-over-the-argument",
        "nnx/cells.py",
        "not self.deterministic if training is None else training",
        "not self.deterministic",
        NNX_DROPOUT,
    ),
    Mutation(
        "nnx-seed-loses-to-the-default-stream",
        "nnx/cells.py",
        '("dropout" in rngs or self.seed is None)',
        "True",
        ("test_nnx_models.py::test_which_stream_dropout_uses",),
    ),
    Mutation(
        "nnx-keys-of-other-cells-not-used-up",
        "nnx/cells.py",
        "nnx.update(cell, used, new)",
        "nnx.update(cell, new)",
        ("test_nnx_models.py::test_other_variables_of_a_cell",),
    ),
    Mutation(
        "nnx-activity-of-the-last-call-only",
        "nnx/layers.py",
        "options.total([earlier, done.activity_penalty])",
        "done.activity_penalty",
        NNX_PENALTIES,
    ),
    Mutation(
        "nnx-activity-never-taken-away",
        "nnx/penalties.py",
        "= jnp.zeros_like(module.activity_loss[...])",
        "*= 1",
        NNX_PENALTIES,
    ),
    Mutation(
        "nnx-state-not-recorded",
        "nnx/layers.py",
        "self._record(done.final_states)",
        "self._record(done.initial_states)",
        NNX_STATES,
    ),
    Mutation(
        "nnx-reset-states-forgets-the-learned-state",
        "nnx/layers.py",
        'if hasattr(self, "initial_state") else {}',
        'if hasattr(self, "no_state") else {}',
        NNX_RESET,
    ),
    Mutation(
        "nnx-given-states-of-the-directions-swapped",
        "nnx/layers.py",
        "zip(layers, halves, strict=True)",
        "zip(layers, halves[::-1], strict=True)",
        ("test_nnx_models.py::test_reset_states_of_both_directions",),
    ),
    Mutation(
        "nnx-training-not-passed-to-directions",
        "nnx/layers.py",
        "functools.partial(layer._call, training=training,",
        "functools.partial(layer._call, training=None,",
        NNX_LAYERS,
    ),
    Mutation(
        "nnx-stacks-without-known-sizes",
        "nnx/penalties.py",
        'by_member(place, constraint, shapes, sizes, "model")',
        'by_member(place, constraint, shapes, {}, "model")',
        (f"{STACKED}test_nnx_layers_know_their_sizes",),
    ),
    Mutation("nnx-directions-draw-alike", "nnx/layers.py", "path=(name,))", "path=())", NNX_LAYERS),
    Mutation(
        "nnx-parameters-of-the-directions-swapped",
        "nnx/bridge.py",
        "zip((module.layer, module.backward_layer), DIRECTIONS,",
        "zip((module.backward_layer, module.layer), DIRECTIONS,",
        NNX_LAYERS,
    ),
]

OF_NAMES = [
    Mutation(
        "l2-without-its-factor",
        "regularizers.py",
        "return self.l2 * jnp.sum(jnp.square(w))",
        "return jnp.sum(jnp.square(w))",
        REGULARIZERS,
    ),
    Mutation(
        "l1l2-without-l1", "regularizers.py", "return self.l1 * jnp.sum(jnp.abs(w)) + self", "return self", REGULARIZERS
    ),
    Mutation(
        "orthogonal-penalty-counts-the-diagonal",
        "regularizers.py",
        " * (1 - jnp.eye(n, dtype=w.dtype))",
        "",
        REGULARIZERS,
    ),
    Mutation(
        "orthogonal-penalty-of-rows-for-columns",
        "regularizers.py",
        'rows = w if self.mode == "rows" else w.T',
        "rows = w",
        ("test_identifiers.py::test_orthogonal_regularizer_by_its_definition",),
    ),
    Mutation(
        "constraint-on-the-wrong-axis",
        "constraints.py",
        "several = (axes,) if isinstance(axes, int)",
        "several = (-1 - axes,) if isinstance(axes, int)",
        CONSTRAINTS,
    ),
    Mutation(
        "max-norm-lengthens", "constraints.py", "jnp.minimum(norm, self.max_value)", "self.max_value", CONSTRAINTS
    ),
    Mutation(
        "min-max-norm-at-once",
        "constraints.py",
        "self.rate * jnp.clip(norm, self.min_value, self.max_value) + (1 - self.rate) * norm",
        "jnp.clip(norm, self.min_value, self.max_value)",
        CONSTRAINTS,
    ),
    Mutation(
        "norms-in-half-precision",
        "constraints.py",
        "wide = w.astype(at_least_float32(w.dtype))",
        "wide = w",
        ("test_identifiers.py::test_constraint_on_a_bias_and_in_half_precision",),
    ),
    Mutation(
        "fans-swapped",
        "initializers.py",
        "return field * shape[-2], field * shape[-1]",
        "return field * shape[-1], field * shape[-2]",
        INITIALIZERS,
    ),
    Mutation(
        "truncated-normal-too-narrow",
        "initializers.py",
        "(math.sqrt(variance) / _TRUNCATED_STDDEV)",
        "math.sqrt(variance)",
        INITIALIZERS,
    ),
    Mutation(
        "initializer-seed-ignored",
        "initializers.py",
        "    if seed is None:\n        return key",
        "    if seed != -1:\n        return key",
        INITIALIZERS,
    ),
    Mutation(
        "orthogonal-gain-ignored",
        "initializers.py",
        "jax.nn.initializers.orthogonal(self.gain)",
        "jax.nn.initializers.orthogonal(1.0)",
        ("test_initializers.py::test_initializer_configuration_round_trip",),
    ),
    Mutation(
        "unknown-argument-accepted",
        "identifiers.py",
        "if key not in parameters and value is not None:",
        "if key not in parameters and value is ...:",
        BAD_NAMES,
    ),
    Mutation(
        "configurations-of-any-depth",
        "identifiers.py",
        "if depth > MAX_CONFIG_DEPTH:",
        "if depth > 10**9:",
        ("test_keras_configs.py::test_identifiers_nested_too_deeply",),
    ),
    Mutation(
        "endless-configurations",
        "identifiers.py",
        "if depth > len(known):",
        "if depth > 2 * len(known):\n            return\n        if known is None:",
        ("test_keras_configs.py::test_nesting_is_counted_by_the_longest_way",),
    ),
    Mutation("far-names-proposed", "identifiers.py", "min(len(a), len(b)) // 4", "min(len(a), len(b)) // 2", PROPOSALS),
    Mutation("swapped-letters-not-found", "identifiers.py", "1 if sorted(a) == sorted(b) else _", "_", PROPOSALS),
    Mutation(
        "capitals-proposed-first", "identifiers.py", "key=lambda each: each != each.lower()", "key=str", PROPOSALS
    ),
    Mutation("unknown-key-accepted", "identifiers.py", "    if unknown:\n", "    if unknown is None:\n", BAD_NAMES),
    Mutation("custom-object-accepted", "identifiers.py", "if foreign or of_main or", "if of_main or", BAD_NAMES),
]

OF_VALIDATION = [
    Mutation(
        "lengths-beyond-the-end-accepted",
        "validation.py",
        "values.min() < 0 or values.max() > steps",
        "values.min() < 0",
        BAD_INPUT,
    ),
    Mutation(
        "features-unchecked", "validation.py", "if inputs.shape[-1] != expected:", "if inputs.shape[-1] < 0:", BAD_INPUT
    ),
    Mutation(
        "arrays-broadcast",
        "validation.py",
        '    if result.shape != shape:\n        raise ValueError(f"`{name}` must have the shape {letters} =',
        "    if result.ndim == len(shape) and all(n in (1, m) for n, m in zip(result.shape, shape, strict=True)):\n"
        "        return jnp.broadcast_to(result, shape)\n"
        '    if result.shape != shape:\n        raise ValueError(f"`{name}` must have the shape {letters} =',
        BAD_INPUT,
    ),
    Mutation(
        "one-mask-for-all-rows-accepted",
        "validation.py",
        "    if flags.shape != shape:\n",
        "    if flags.shape == (1, steps):\n        flags = jnp.broadcast_to(flags, shape)\n"
        "    if flags.shape != shape:\n",
        BAD_INPUT,
    ),
    Mutation(
        "units-true-accepted",
        "validation.py",
        'but a bool), else None."""\n    if isinstance(value, (bool, np.bool_)):',
        'but a bool), else None."""\n    if isinstance(value, np.bool_):',
        BAD_INPUT,
    ),
    Mutation(
        "rate-above-one-accepted",
        "validation.py",
        "if not 0 <= value <= 1 or math.isnan(value):",
        "if not 0 <= value or math.isnan(value):",
        BAD_INPUT,
    ),
    Mutation(
        "too-many-states-accepted",
        "validation.py",
        "    if len(states) != count:",
        "    if len(states) < count:",
        BAD_INPUT,
    ),
    Mutation(
        "unknown-parameter-accepted",
        "validation.py",
        "unknown = [key for key in params if key not in Weights._fields]",
        "unknown: list[str] = []",
        BAD_INPUT,
    ),
    Mutation(
        "recorded-states-of-another-batch-accepted",
        "validation.py",
        "if leaf.shape[: len(batch)] != batch:",
        "if leaf.shape[: len(batch)] == ():",
        BAD_INPUT,
    ),
]

OF_INTEROP = [
    Mutation(
        "torch-second-bias-lost",
        "interop/torch.py",
        "bias = input_bias + recurrent_bias",
        "bias = input_bias",
        TORCH,
    ),
    Mutation(
        "torch-recurrent-kernel-not-transposed",
        "interop/torch.py",
        'arrays["weight_ih" + suffix].T, arrays["weight_hh" + suffix].T',
        'arrays["weight_ih" + suffix].T, arrays["weight_hh" + suffix]',
        TORCH,
    ),
    Mutation(
        "torch-directions-swapped",
        "interop/torch.py",
        '{"forward_layer": "", "backward_layer": "_reverse"}',
        '{"forward_layer": "_reverse", "backward_layer": ""}',
        TORCH,
    ),
    Mutation(
        "torch-prefix-ignored",
        "interop/torch.py",
        "_array(name, value(start + name))",
        "_array(name, value(name))",
        ("test_interop_torch.py::test_a_prefix_picks_one_of_a_model",),
    ),
    Mutation("torch-gru-gates-swapped", "interop/torch.py", '_GRU_ORDER = "rzn"', '_GRU_ORDER = "zrn"', TORCH_GATES),
    Mutation(
        "torch-kept-bias-lost",
        "interop/torch.py",
        "if arrays.pop(name).any():",
        "if arrays.pop(name) is None:",
        ("test_interop_torch.py::test_biases_are_left_out_only_if_they_are_zeros",),
    ),
    Mutation(
        "lstm-gates-swapped",
        "interop/gates.py",
        'bias: Any, order: str = "ifgo") -> GateParams',
        'bias: Any, order: str = "figo") -> GateParams',
        TORCH_GATES,
    ),
    Mutation(
        "gru-recurrent-bias-lost",
        "interop/gates.py",
        'params["hn"]["bias"] = added["n"]',
        'params["hn"]["bias"] = 0 * added["n"]',
        TORCH_GATES,
    ),
    Mutation(
        "gru-bias-halved",
        "interop/gates.py",
        '["bias"] = biases[gate] + added[gate]',
        '["bias"] = biases[gate]',
        ("test_interop_gates.py::test_a_gru_computes_what_its_fused_arrays_say",),
    ),
    Mutation(
        "gru-joined-bias-lost",
        "interop/gates.py",
        'arrays["hn"]["bias"] if gate == "n" else zeros',
        "zeros",
        ("test_interop_gates.py::test_a_gru_computes_what_its_fused_arrays_say",),
    ),
    Mutation("haiku-second-bias-lost", "interop/haiku.py", "functools.reduce(jnp.add, biases)", "biases[0]", HAIKU),
    Mutation(
        "haiku-bias-twice",
        "interop/haiku.py",
        '({"b": zeros} if double_bias',
        '({"b": inputs["b"]} if double_bias',
        HAIKU,
    ),
    Mutation(
        "flax-bias-lost",
        "interop/flax.py",
        'params["bias"] if weights.bias is not None else jnp',
        "jnp",
        ("test_interop_flax.py::test_nnx_simple_cell",),
    ),
    Mutation(
        "flax-residual-accepted",
        "interop/flax.py",
        'getattr(cell, "residual", False)',
        'getattr(cell, "residual", False) is None',
        ("test_interop_flax.py::test_refuses_what_the_other_library_cannot_hold",),
    ),
    Mutation(
        "keras-directions-swapped",
        STRUCTURE,
        "from_config(each, name, name, rules=rules) for each",
        'from_config(each, name, _DIRECTIONS[name == "forward_layer"], rules=rules) for each',
        KERAS_FILES,
    ),
    Mutation(
        "keras-cells-swapped",
        STRUCTURE,
        'f"cells_{number}" if count > 1',
        'f"cells_{count - 1 - number}" if count > 1',
        KERAS_FILES,
    ),
    Mutation(
        "keras-gamma-and-beta-swapped",
        STRUCTURE,
        'Array("gamma", "scale", switch="scale"), Array("beta", "bias", switch',
        'Array("gamma", "bias", switch="scale"), Array("beta", "scale", switch',
        KERAS_FILES,
    ),
    Mutation(
        "keras-layers-sorted-as-text",
        STRUCTURE,
        "key=lambda item: _stem(item[0]))",
        "key=lambda item: item[0])",
        ("test_keras_weights.py::test_a_rearranged_file_is_read_by_number",),
    ),
    Mutation(
        "keras-frozen-layers-not-last",
        STRUCTURE,
        "key=lambda slot: not slot.trainable)",
        "key=lambda slot: 0)",
        ("test_keras_versions.py",),
    ),
    Mutation(
        "keras-masks-not-given-to-layers",
        KERAS_MODEL,
        "initial_state=given, mask=used, training=training)",
        "initial_state=given, training=training)",
        KERAS,
    ),
    Mutation("keras-masks-not-passed-on", KERAS_MODEL, "if one.return_sequences else None", "if None else None", KERAS),
    Mutation(
        "graph-initial-states-not-turned",
        KERAS_MODEL,
        "[tuple(part[::-1]) if",
        "[tuple(part) if",
        (f"{GRAPHS}[states given]",),
    ),
    Mutation(
        "graph-final-states-not-turned",
        KERAS_MODEL,
        "(state[::-1] if isinstance",
        "(state if isinstance",
        (f"{GRAPHS}[encoder, decoder: LSTM]",),
    ),
    Mutation(
        "graph-given-mask-ignored",
        KERAS_MODEL,
        "used = implicit if mask is None else mask.x",
        "used = implicit",
        (f"{GRAPHS}[mask given]",),
    ),
    Mutation(
        "graph-mask-not-hidden-by-a-state",
        KERAS_MODEL,
        "implicit = tensor.mask if initial_state is None else None",
        "implicit = tensor.mask",
        (f"{GRAPHS}[encoder, decoder: LSTM]",),
    ),
    Mutation(
        "graph-nested-models-own-node-forgotten",
        "interop/keras/graph.py",
        "return {}, {name: 1 for",
        "return {}, {name: 0 for",
        (f"{GRAPHS}[only the second call is output]",),
    ),
    Mutation(
        "graph-states-of-a-stack-in-lists",
        KERAS_MODEL,
        "states = jax.tree.leaves(states if initial_state is None else initial_state)",
        "states = states if initial_state is None else _several(initial_state)",
        (f"{GRAPHS}[states of a stack]",),
    ),
    Mutation(
        "graph-one-output-in-a-list",
        KERAS_MODEL,
        "isinstance(returned, (list, tuple)) and len(returned) == 1",
        "isinstance(returned, tuple) and len(returned) == 1",
        (f"{GRAPHS}[a list of one output]",),
    ),
    Mutation(
        "graph-model-over-time-not-cloned",
        KERAS_MODEL,
        "_deep_clone=True",
        "_deep_clone=False",
        (f"{GRAPHS}[nested over time]",),
    ),
    Mutation(
        "graph-spatial-dropout-is-an-operation",
        STRUCTURE,
        'arguments.keys() <= {"name", "axis", "keepdims", "dtype"}',
        '"trainable" not in arguments',
        (f"{GRAPHS}[dropped]",),
    ),
    Mutation(
        "gated-cell-state-put-out",
        "interop/gated.py",
        "return carry[1]",
        "return carry[0]",
        (GATED + "test_at_masked_steps_the_output_is_the_state",),
    ),
    Mutation(
        "gated-masked-steps-are-zeros",
        "linen/cells.py",
        'getattr(cell, "output_of", None)',
        "None",
        (GATED + "test_at_masked_steps_the_output_is_the_state", f"{GRAPHS}[mask and states given]"),
    ),
    Mutation(
        "gated-one-mask-for-all-gates",
        "interop/gated.py",
        "gates if self.mask_per_gate else 1",
        "1",
        (GATED + "test_inputs_are_dropped_at_all_steps_alike", GATED + "test_states_are_dropped_at_all_steps_alike"),
    ),
    Mutation(
        "gated-reset-not-before", "interop/gated.py", "_sums(r * h,", "_sums(h,", (GATED + "test_keras_in_all_options",)
    ),
    Mutation(
        "keras-training-not-passed-on",
        KERAS_MODEL,
        "initial_state=given, mask=used, training=training)",
        "initial_state=given, mask=used)",
        ("test_interop_keras.py::test_training_a_loaded_model",),
    ),
    Mutation(
        "keras-masking-of-any-feature",
        POINTWISE,
        "jnp.any(x != self.mask_value, axis=-1)",
        "jnp.all(x != self.mask_value, axis=-1)",
        ("test_interop_keras.py::test_a_step_is_masked_where_every_feature_says_so",),
    ),
    Mutation("keras-mask-zero-ignored", POINTWISE, "x != 0 if self.mask_zero else None", "None", KERAS),
    Mutation(
        "keras-statistics-of-masked-steps",
        NORMALIZING,
        "(training and self.trainable), mask=used)",
        "(training and self.trainable))",
        ("test_interop_keras.py::test_training_a_loaded_model",),
    ),
    Mutation(
        "keras-mixed-policy-lost",
        KERAS_CONFIG,
        '"param_dtype": jnp.dtype(param_dtype)}',
        '"param_dtype": jnp.dtype(dtype)}',
        ("test_keras_configs.py::test_dtype_policies_of_configurations",),
    ),
    Mutation(
        "keras-hard-sigmoid-of-keras-3",
        KERAS_CONFIG,
        'hard_sigmoid_2 if keras_2 and written == "hard_sigmoid" else written',
        "written",
        ("test_keras_versions.py",),
    ),
    Mutation(
        "keras-bidirectional-inside-another",
        STRUCTURE,
        '"Bidirectional": ("SimpleRNN", "LSTM", "GRU", "RNN")',
        '"Bidirectional": ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")',
        ("test_hostile_files.py::test_hostile_models",),
    ),
    Mutation(
        "keras-shared-cells-read-apart",
        STRUCTURE,
        "first.setdefault(each, i) if isinstance",
        "i if isinstance",
        SHARED_CELLS,
    ),
    Mutation(
        "keras-shared-cells-counted-once",
        STRUCTURE,
        "places = counters if",
        "places = range(len(several)) if",
        SHARED_CELLS,
    ),
    Mutation(
        "keras-shared-cells-not-noted", KERAS_CONFIG, "if places.count(place) > 1", "if places is None", SHARED_CELLS
    ),
    Mutation("keras-live-shared-cells-apart", KERAS_OBJECTS, "id(live)}", "id(each)}", SHARED_CELLS),
    Mutation(
        "keras-activation-without-its-dtype",
        KERAS_CONFIG,
        'config["activation"]["config"] |= policy',
        'config["activation"]["config"] |= {}',
        ("test_keras_activations.py::test_half_precision_reaches_the_activation",),
    ),
    Mutation(
        "keras-activation-of-another-dtype",
        KERAS_CONFIG,
        "if own != outer:",
        "if own is outer is None:",
        ("test_keras_activations.py::test_files_that_are_refused",),
    ),
    Mutation(
        "keras-frozen-layers-are-trained",
        "interop/keras/training.py",
        '"trained" if slot.trainable else "frozen")',
        '"trained")',
        (KERAS_TRAINING + "test_what_is_frozen_in_keras_is_labelled_so",),
    ),
    Mutation(
        "keras-biases-that-are-not-there-are-trained",
        "interop/keras/training.py",
        'dict.fromkeys(flat, "frozen")',
        'dict.fromkeys(flat, "trained")',
        (KERAS_TRAINING + "test_what_is_frozen_in_keras_is_labelled_so",),
    ),
    Mutation(
        "keras-penalties-counted-twice",
        KERAS_MODEL,
        'if slot.array.regularizer is not None and slot.kind != "SimpleRNNCell"',
        "if slot.array.regularizer is not None",
        (KERAS_TRAINING + "test_penalties_are_those_of_keras",),
    ),
    Mutation(
        "keras-activities-not-penalised",
        "interop/keras/build.py",
        'given.get("activity_regularizer") if kind in LAYERS else None',
        "None",
        (KERAS_TRAINING + "test_penalties_are_those_of_keras",),
    ),
    Mutation(
        "keras-constraints-lost",
        KERAS_MODEL,
        "{leaf: (constraint, params[leaf].shape) for leaf in weights.leaves(slot, params)}",
        "{}",
        (KERAS_TRAINING + "test_constraints_are_those_of_keras",),
    ),
    Mutation(
        "keras-frozen-statistics-move",
        NORMALIZING,
        "not (training and self.trainable)",
        "not training",
        (KERAS_TRAINING + "test_trained_on_and_given_back",),
    ),
    Mutation(
        "keras-2-names-of-nested-models-lost",
        "interop/keras/model_files.py",
        "itertools.chain(names, (",
        "itertools.chain((), (",
        (KERAS_VERSIONS + "[2.0.9-nested]",),
    ),
    Mutation(
        "keras-2-12-counts-once",
        STRUCTURE,
        "((True, False) if any(slots(child)) else (True,))",
        "(True,)",
        (KERAS_VERSIONS + "[2.12.0-nested_graph]",),
    ),
    Mutation(
        "keras-2-bidirectional-with-zeros",
        KERAS_MODEL,
        "    holds_masked = True\n",
        "    holds_masked = False\n",
        (KERAS_VERSIONS + "[2.0.9-gated]",),
    ),
    Mutation(
        "keras-2-nested-models-counted-from-0",
        "interop/keras/graph.py",
        "int(number > 0 and number == len",
        "0 * int(number > 0 and number == len",
        (KERAS_VERSIONS + "[2.12.0-nested_graph]",),
    ),
    Mutation(
        "keras-2-2-has-no-shapes",
        "interop/keras/build.py",
        "if len(declared) > 1 or features is None:",
        "if True:",
        (KERAS_VERSIONS + "[2.2.5-plain]",),
    ),
    Mutation(
        "keras-unknown-arrays-lost",
        WEIGHTS,
        "        if each.raw and (inside",
        "        if not each and (inside",
        ("test_keras_weights.py::test_arrays_of_unknown_layers",),
    ),
    Mutation(
        "keras-recorded-states-lost",
        KERAS_OBJECTS,
        "if carry := _recorded(layer):",
        "if (carry := _recorded(layer)) is None:",
        KERAS_LIVE,
    ),
    Mutation(
        "keras-dropout-seed-lost",
        KERAS_OBJECTS,
        'if "units" in config and seed is not None',
        'if "units" in config and seed is ...',
        KERAS_LIVE,
    ),
]

GRAPHS, ODD_LAYERS = "test_hostile_graphs.py::test_hostile_graphs", "test_hostile_layers.py::"
OF_STRANGERS = [
    Mutation("keras-arguments-without-end", "interop/keras/graph.py", "return 1 + len(leaves) // ARGUMENTS", "return 1", (GRAPHS + "[graph, arguments in the old form]",)),
    Mutation("keras-nested-calls-not-counted", "interop/keras/build.py", "each[node.layer] + graph.cost(node.leaves) - 1", "graph.cost(node.leaves)", (GRAPHS + "[graph, many calls at every level]", "test_hostile_graphs.py::test_the_graphs_here_are_read")),
    Mutation("keras-cycles-go-on", "interop/keras/graph.py", "        if not ready:\n", "        if False:\n", (GRAPHS + "[graph, cycle]",)),
    Mutation("keras-operations-make-examples", "interop/keras/operations.py", "if y.ndim and y.shape[0] > max(batches, default=0):", "if False:", (GRAPHS + "[option, batch without end]",)),
    Mutation("keras-states-without-end", "interop/keras/build.py", "> MAX_STATE_ELEMENTS:", "> 10 * MAX_STATE_ELEMENTS:", (ODD_LAYERS + "test_states_are_limited",)),
    Mutation("keras-files-steer-terminals", "interop/keras/description.py", 'text = text.encode("unicode_escape").decode()', "text = str(text)", (ODD_LAYERS + "test_no_class_of_a_file_steers_a_terminal",)),
    Mutation("messages-steer-terminals", "__main__.py", "c if c.isprintable() else c.encode", "c if True else c.encode", (ODD_LAYERS + "test_no_class_of_a_file_steers_a_terminal",)),
]  # fmt: skip

TRAINING = "test_training.py::"
FORECAST = "test_training_forecast.py::"
GOES_ON = (TRAINING + "test_a_run_goes_on_as_if_it_had_not_stopped",)
SURVIVAL = "test_survival.py::"
PROCESSES = "test_processes.py::"
TWO = (PROCESSES + "test_processes_train_the_model_of_one[2]",)
DAMAGED = (SURVIVAL + "test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one",)
KILLED = (PROCESSES + "test_one_that_is_killed_ends_the_others[1]",)
OF_TRAINING = [
    Mutation("damaged-checkpoints-are-used", "training/checkpoint.py", "differing = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))", "differing = []", DAMAGED),
    Mutation("damaged-checkpoints-are-deleted", "training/checkpoint.py", "atomic.move_folder(self._folder / str(each), places)", "shutil.rmtree(self._folder / str(each))", DAMAGED),
    Mutation("damage-starts-a-run-anew", "training/checkpoint.py", "                if damaged:\n", "                if False:\n", (SURVIVAL + "test_a_run_without_a_whole_checkpoint_is_left_as_it_is",)),
    Mutation("unfinished-checkpoints-count", "training/checkpoint.py", "sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())", "sorted(int(path.name.split('-')[-1]) for path in self._folder.iterdir() if path.is_dir())", (SURVIVAL + "test_what_a_killed_process_left_of_a_checkpoint_is_not_used",)),
    Mutation("another-config-goes-on", "training/loop.py", 'if differing := unlike(config, rest["config"]):', 'if differing := "":', (SURVIVAL + "test_a_config_that_does_not_fit_its_checkpoints_is_named",)),
    Mutation("a-full-disk-is-bad-input", "training/program.py", "    except OSError as error:\n        where", "    except ZeroDivisionError as error:\n        where", (SURVIVAL + "test_a_disk_that_fills_up_ends_a_run_that_can_go_on",)),
    Mutation("what-orbax-says-of-the-disk-is-lost", "training/checkpoint.py", "if not (found := _OS_ERROR.search(str(error))):", "if (found := _OS_ERROR.search(str(error))) or True:", (SURVIVAL + "test_a_failure_of_orbax_that_is_the_disks_is_an_oserror",)),
    Mutation("all-processes-read-all-rows", "training/mesh.py", "return range(min(first for first, _, _ in parts), max(last for _, last, _ in parts))", "return range(batch_size)", (PROCESSES + "test_each_process_reads_its_own_rows",)),
    Mutation("all-processes-write", "training/processes.py", "return jax.process_index() == 0", "return True", TWO),
    Mutation("processes-told-otherwise", "training/program.py", "if differing := configs.unlike(config, json.loads(json.dumps(first_config))):", 'if differing := "":', (PROCESSES + "test_what_one_process_cannot_use_all_hear_of",)),
    Mutation("silence-is-borne-for-ever", "training/processes.py", "heartbeat_timeout_seconds=cluster.heartbeat", "heartbeat_timeout_seconds=3600", KILLED),
    Mutation("workers-outlive-their-watcher", "worker.py", "        pipe.recv(1)  # it says nothing: this returns when it is gone\n    os._exit(1)", "        pipe.recv(1)  # it says nothing: this returns when it is gone", KILLED),
    Mutation("a-signal-ends-one-of-several", "training/loop.py", "wanted = agree(stop.came or int(due))", "wanted = stop.came or int(due)", (PROCESSES + "test_a_run_of_four_that_is_told_to_end_goes_on_with_two",)),
    Mutation("what-jax-says-is-not-read", "worker.py", "if found := re.search(pattern, said):", "if found := None:", (PROCESSES + "test_who_was_lost",)),
    Mutation("steps-share-a-key", "training/loop.py", "jax.random.wrap_key_data(state.key), number)", "jax.random.wrap_key_data(state.key), 0)", (TRAINING + "test_every_step_has_a_key_of_its_own",)),
    Mutation("loss-lost-in-a-checkpoint", "training/loop.py", "loss=state.loss + mean.astype(jnp.float32),", "loss=mean.astype(jnp.float32),", (*GOES_ON, TRAINING + "test_a_line_of_metrics_is_the_mean_of_its_steps")),
    Mutation("data-from-the-first-step-again", "training/data.py", "[first:].to_iter_dataset", "[: steps - first].to_iter_dataset", GOES_ON),
    Mutation("metrics-not-cut", "training/metrics.py", "        self._file.truncate(size)\n", "", (TRAINING + "test_lines_behind_the_checkpoint_are_written_anew",)),
    Mutation("carry-not-carried", "training/loop.py", "        carry=carry,\n", "", (TRAINING + "test_every_step_has_a_key_of_its_own",)),
    Mutation("last-parameters-not-the-best", "training/loop.py", "whole(mesh, state.best if stops_early else state.params), progress", "whole(mesh, state.params), progress", (TRAINING + "test_training_stops_early_and_keeps_the_best",)),
    Mutation("patience-counts-all-scores", "training/loop.py", "0 if better else self.scores_without_better + 1", "self.scores_without_better + 1", (TRAINING + "test_training_stops_early_and_keeps_the_best",)),
    Mutation("a-failed-step-is-overlooked", "training/loop.py", "if int(state.failed) or not all(", "if not all(", (TRAINING + "test_a_loss_that_is_not_finite_ends_the_run",)),
    Mutation("signals-end-a-run-at-once", "training/loop.py", "        if not self._deferred:\n            raise", "        if True:\n            raise", ("test_runs.py::test_a_signal_ends_a_run_that_can_go_on",)),
    Mutation("handlers-stay", "training/loop.py", "            for each, handler in before.items():\n                signal.signal(each, handler)", "            pass", ("test_runs.py::test_a_signal_ends_a_run_that_can_go_on",)),
    Mutation("members-share-a-norm", "training/optimizers.py", "return chain if members is None else", "return chain if True else", (TRAINING + "test_members_of_an_ensemble_are_clipped_and_constrained_alone",)),
    Mutation("no-clipping", "training/optimizers.py", "if config.clip else []", "if False else []", (TRAINING + "test_optimizers_are_those_of_optax",)),
    Mutation("runs-not-locked", "training/run.py", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", ("test_runs.py::test_only_one_process_writes_to_a_run",)),
    Mutation("anything-is-overwritten", "training/run.py", "if not (workdir / _CONFIG).is_file():", "if False:", ("test_runs.py::test_overwrite_replaces_runs_only",)),
    Mutation("other-data-unnoticed", "training/program.py", "if data != described.data:", "if False:", ("test_runs.py::test_a_run_does_not_go_on_with_other_data",)),
    Mutation("one-order-for-all-epochs", "training/data.py", "np.random.default_rng((*seed, epoch))", "np.random.default_rng(seed)", (TRAINING + "test_every_epoch_has_every_example_once",)),
    Mutation("units-not-sharded", "training/mesh.py", '*[None] * (x.ndim - 1), "model")', "*[None] * x.ndim)", (TRAINING + "test_parameters_and_rows_lie_on_all_devices",)),
    Mutation("bounds-not-checked", "training/config.py", "if bounds and not bounds.least <= value <= bounds.most:", "if False:", (TRAINING + "test_a_bad_field_is_named",)),
    Mutation("bool-is-a-number", "training/config.py", "if type(value) is not hint and not (hint is float and type(value) is int):", "if not isinstance(value, hint) and not (hint is float and type(value) is int):", (TRAINING + "test_a_bad_field_is_named",)),
    Mutation("test-steps-are-learned", "training/tasks/forecast.py", "(aims < split.learned)[..., None] & learned.T", "learned.T | True & learned.T", (FORECAST + "test_nothing_after_the_fitted_part_is_learned",)),
    Mutation("statistics-of-all-steps", "training/tasks/forecast.py", "np.arange(len(values)) < split.learned, (max", "np.arange(len(values)) < len(values), (max", (FORECAST + "test_nothing_after_the_fitted_part_is_learned", FORECAST + "test_a_forecast_is_the_formula_in_float64")),
    Mutation("linear-model-of-all-steps", "training/tasks/forecast.py", "fit_autoregression(levels[:steps],", "fit_autoregression(levels,", (FORECAST + "test_nothing_after_the_fitted_part_is_learned",)),
    Mutation("blocks-forecast-by-their-own-fits", "training/tasks/forecast.py", "of_steps = of_steps & ~_blocks(config, split)", "of_steps = of_steps | _blocks(config, split)", (FORECAST + "test_each_block_is_forecast_by_networks_that_have_not_seen_it",)),
    Mutation("warm-up-is-learned-from", "training/tasks/forecast.py", "(np.arange(window) >= warm_up)[:, None, None]", "(np.arange(window) >= 0)[:, None, None]", (FORECAST + "test_the_loss_is_the_squared_error_of_the_fitted_steps_and_the_penalty",)),
    Mutation("head-without-penalty", "training/tasks/forecast.py", " + L2(config.l2)(params[\"head\"][\"kernel\"])", "", (FORECAST + "test_the_loss_is_the_squared_error_of_the_fitted_steps_and_the_penalty",)),
    Mutation("training-starts-anywhere", "training/tasks/forecast.py", "first = nn.initializers.zeros if", "first = nn.initializers.lecun_normal() if", (FORECAST + "test_training_starts_at_the_linear_model",)),
    Mutation("decimal-comma-unread", "training/series.py", 'cell.replace(",", ".", 1) if cell.count(",") == 1 else cell', "cell", (FORECAST + "test_files_as_people_have_them",)),
    Mutation("missing-value-is-nan", "training/series.py", "if number is None or not math.isfinite(number):", "if number is None:", (FORECAST + "test_files_that_cannot_be_read",)),
    Mutation("dates-that-fall-are-no-dates", "training/series.py", "            if read_cell is _date:\n", "            if False:\n", (FORECAST + "test_files_that_cannot_be_read",)),
    Mutation("what-is-constant-is-scored", "training/tasks/forecast.py", "if values.size and values.min() == values.max():", "if False:", (FORECAST + "test_what_is_constant_is_refused_before_training",)),
    Mutation("the-fitted-column-is-forgotten", "training/series.py", "        column = fitted  # no one", "        column = column  # no one", (FORECAST + "test_the_column_that_a_run_was_fitted_to_is_found_in_other_files",)),
    Mutation("any-file-is-a-config", "training/program.py", 'if path.is_file() and path.suffix == ".py":', "if path.is_file():", ("test_cli.py::test_a_file_of_the_users_is_executed_only_where_its_name_says_python",)),
    Mutation("months-are-seconds", "training/series.py", "if (rest == rest[0]).all() and apart[0] > 0", "if False and apart[0] > 0", (FORECAST + "test_the_index_goes_on",)),
    Mutation("season-of-tomorrow", "training/baselines.py", "back = -h % length", "back = -h % length - length", (FORECAST + "test_seasons",)),
    Mutation("files-do-not-reset", "training/tasks/characters.py", "        resets = inputs == begin\n", "        resets = inputs == begin - 1\n", ("test_training_characters.py",)),
    Mutation("unknown-characters-are-free", "training/tasks/characters.py", "jnp.where(targets == unknown, _UNKNOWN_BITS, 0.0)", "jnp.where(targets == unknown, 0.0, 0.0)", ("test_training_characters.py",)),
    Mutation("files-scored-without-a-reset", "training/tasks/characters.py", "inputs, inputs == model.begin)", "inputs, inputs < 0)", ("test_training_characters.py",)),
    Mutation("held-out-by-place", "training/text.py", "key=lambda text: hashlib.sha256(text.name.encode()).digest()", "key=lambda text: text.name", ("test_training_characters.py",)),
    Mutation("padding-is-read", "training/tasks/classify.py", '                batch.get("mask"),', "                None,", ("test_training_classify.py",)),
    Mutation("classes-of-other-folds", "training/tasks/classify.py", "members = slice(fold * config.networks, (fold + 1) * config.networks)", "members = slice(0, config.networks)", ("test_training_classify.py",)),
    Mutation("markers-anywhere", "training/tasks/adding.py", "rng.integers(0, half, count), rng.integers(half,", "rng.integers(0, length, count), rng.integers(half,", ("test_training_adding.py",)),
    Mutation("errors-exit-with-0", "__main__.py", "in _NO_ROOM else 2", "in _NO_ROOM else 0", ("test_cli.py::test_bad_input_is_one_line_and_exit_code_2",)),
]  # fmt: skip

MUTATIONS = [
    *OF_ONE_STEP,
    *OF_WHAT_ACTIVATIONS_HOLD,
    *OF_EXPLICIT_AXES,
    *OF_THE_LOOP,
    *OF_PRODUCTS,
    *OF_ACCELERATORS,
    *OF_ACTIVATIONS,
    *OF_THE_SOLVER,
    *OF_DROPOUT,
    *OF_SEQUENCES,
    *OF_TRUNCATION,
    *OF_BOTH_FAMILIES,
    *OF_LINEN,
    *OF_NNX,
    *OF_NAMES,
    *OF_VALIDATION,
    *OF_INTEROP,
    *OF_STRANGERS,
    *OF_TRAINING,
]
