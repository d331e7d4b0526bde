// The backward pass over some rows, by chunks of steps from the last to the first. With `tp1` the step processed after t:
//
//     q_t = (δ_tp1 Uᵀ) ∘ d_h (+ e_tp1 where not mask_tp1), of s_tp1: added to ∂r and then 0 where reset_tp1
//     e_t = g_t + q_t
//     δ_t = act'(h_t) e_t where mask_t, else 0
//
// `retreat` runs these for a chunk, and leaves [s ∘ d_h, x ∘ d_x, 1] and δ of its steps behind; `products` makes of them
//
//     [∂U; ∂W; ∂b] += [s ∘ d_h, x ∘ d_x, 1]ᵀ δ        ∂x = (δ Wᵀ) ∘ d_x        ∂d_x += (δ Wᵀ) ∘ x
//
// which no later step waits for: another thread can do it behind the recurrence.
#pragma once
#include "forward.h"

namespace srnn {
namespace {

Long backward_layout(Backward& b, float* memory) {
  const Problem& p = b.p;
  cut(b, chunk_steps(p, 2));
  b.joined_width = p.units + p.features + (p.bias ? 1 : 0);
  b.joined_stride = padded(b.joined_width);
  b.stride = padded(p.units);
  b.recurrent = panels_for(p.units, p.units, p.rows);
  b.input = panels_for(p.units, p.features, p.rows > b.chunk ? p.rows : b.chunk);
  Long used = 0, rows = b.slots * b.chunk * p.rows;
  b.recurrent.data = memory + take(used, size(b.recurrent));
  b.input.data = memory + take(used, size(b.input));
  b.weights = memory + take(used, b.joined_width * p.units);
  b.joined = memory + take(used, rows * b.joined_stride);
  b.deltas = memory + take(used, rows * b.stride);
  b.above = memory + take(used, p.rows * b.stride);
  b.held = memory + take(used, p.rows * b.stride);
  return used;
}

Long backward_memory(Backward& b) { return backward_layout(b, nullptr); }

void backward_start(Backward& b, float* memory) {
  backward_layout(b, memory);
  const Problem& p = b.p;
  pack_transposed(b.recurrent, p.recurrent_kernel);
  pack_transposed(b.input, p.kernel);
  std::memset(b.weights, 0, b.joined_width * p.units * sizeof(float));
  std::memset(b.above, 0, p.rows * b.stride * sizeof(float));
  auto clear = [&](float* sum, Long width) { if (sum) std::memset(sum, 0, p.rows * width * sizeof(float)); };
  clear(b.reset_cotangent, p.units);
  clear(b.dropout_cotangent, p.units);
  clear(b.input_dropout_cotangent, p.features);
}

// The first step of chunk c, which is counted from the end.
Long begin(const Backward& b, Long c) { return (b.chunks - 1 - c) * b.chunk; }
Long backward_length(const Backward& b, Long c) { return length(b, b.chunks - 1 - c); }

float* joined(const Backward& b, Long c, Long k, Long r) {
  return b.joined + (((c % b.slots) * b.chunk + k) * b.p.rows + r) * b.joined_stride;
}
float* delta(const Backward& b, Long c, Long k, Long r) {
  return b.deltas + (((c % b.slots) * b.chunk + k) * b.p.rows + r) * b.stride;
}

// s_t of a row.
const float* state_before(const Backward& b, Long r, Long t) {
  const Problem& p = b.p;
  if (p.reset(r, t)) return p.reset_state + r * p.units;
  return t == 0 ? p.initial_state + r * p.units : b.states.at(r, t - 1);
}

// A chunk's arrays, a row's steps at a time: what is far apart in memory is read in long runs. δ begins as g.
void stage(const Backward& b, Long c) {
  const Problem& p = b.p;
  for (Long r = 0; r < p.rows; ++r)
    for (Long k = 0; k < backward_length(b, c); ++k) {
      Long t = begin(b, c) + k;
      float *to = joined(b, c, k, r), *d = delta(b, c, k, r);
      const float* s = state_before(b, r, t);
      if (p.dropout_mask) drop(p, r, s, to);
      else std::memcpy(to, s, p.units * sizeof(float));
      copy_inputs(p, r, t, to + p.units);
      if (p.bias) to[p.units + p.features] = 1.f;
      if (b.cotangents.first) std::memcpy(d, b.cotangents.at(r, t), p.units * sizeof(float));
      else std::memset(d, 0, p.units * sizeof(float));
      if (t == p.steps - 1)
        for (Long i = 0; i < p.units; ++i) d[i] += b.final_cotangent[r * p.units + i];
    }
}

// Calls finish(r, column, q_t) for the step t, which may be -1: q of the initial state.
template <class Finish>
ALWAYS_INLINE void received(Backward& b, Long t, const float* deltas, Finish finish) {
  const Problem& p = b.p;
  bool last = t == p.steps - 1;  // nothing comes after: δ is 0
  product(p.rows, deltas, b.stride, b.recurrent, t % 2, [&](Long r, Long column, vec q) __attribute__((always_inline)) {
    Long n = p.units - column, at = r * p.units + column;
    if (!last && p.dropout_mask) {
      if (b.dropout_cotangent) {
        float* sum = b.dropout_cotangent + at;
        store(sum, load(sum, n) + q * load(state_before(b, r, t + 1) + column, n), n);
      }
      q *= load(p.dropout_mask + at, n);
    }
    if (!last && !p.used(r, t + 1)) q += load(b.held + r * b.stride + column);
    if (!last && p.reset(r, t + 1)) {
      float* sum = b.reset_cotangent + at;
      store(sum, load(sum, n) + q, n);
      q = vec{};
    }
    finish(r, column, q);
  });
}

void retreat(Backward& b, Long c) {
  const Problem& p = b.p;
  stage(b, c);
  const float* above = b.above;
  for (Long k = backward_length(b, c) - 1; k >= 0; --k) {
    Long t = begin(b, c) + k;
    float* deltas = delta(b, c, k, 0);
    received(b, t, above, [&](Long r, Long column, vec q) __attribute__((always_inline)) {
      float* d = deltas + r * b.stride + column;
      vec e = load(d) + q;
      if (p.used(r, t)) {
        store(d, derivative(p.activation, load(b.states.at(r, t) + column, p.units - column), e));
      } else {
        store(b.held + r * b.stride + column, e);
        store(d, vec{});
      }
    });
    above = deltas;
  }
  std::memcpy(b.above, above, p.rows * b.stride * sizeof(float));
}

void input_products(const Backward& b, Long c) {
  const Problem& p = b.p;
  Long t0 = begin(b, c), steps = backward_length(b, c);
  auto put = [&](Long r, Long t, Long column, vec value) __attribute__((always_inline)) {
    Long n = p.features - column;
    if (p.input_dropout_mask) {
      Long at = r * p.features + column;
      if (p.used(r, t)) {
        float* sum = b.input_dropout_cotangent + at;
        store(sum, load(sum, n) + value * load(p.inputs.at(r, t) + column, n), n);
      }
      value *= load(p.input_dropout_mask + at, n);
    }
    store(b.inputs_cotangent.at(r, t) + column, value, n);
  };
  if (steps >= p.rows)
    for (Long r = 0; r < p.rows; ++r)
      product(steps, delta(b, c, 0, r), p.rows * b.stride, b.input, r % 2,
              [&](Long k, Long column, vec v) __attribute__((always_inline)) { put(r, t0 + k, column, v); });
  else
    for (Long k = 0; k < steps; ++k)
      product(p.rows, delta(b, c, k, 0), b.stride, b.input, k % 2,
              [&](Long r, Long column, vec v) __attribute__((always_inline)) { put(r, t0 + k, column, v); });
}

void products(const Backward& b, Long c, int part) {
  if (part == PARTS - 1) return input_products(b, c);
  const Problem& p = b.p;
  Split halves(b.joined_width, (b.joined_width + 1) / 2);
  if (part >= halves.count) return;
  Long first = halves.begin(part);
  add_contraction(backward_length(b, c) * p.rows, halves.width(part), p.units, joined(b, c, 0, 0) + first,
                  b.joined_stride, delta(b, c, 0, 0), b.stride, b.weights + first * p.units);
}

void backward_finish(Backward& b) {
  const Problem& p = b.p;
  if (!p.steps) {
    std::memcpy(b.initial_cotangent, b.final_cotangent, p.rows * p.units * sizeof(float));
    return;
  }
  received(b, -1, b.above, [&](Long r, Long column, vec q) __attribute__((always_inline)) {
    store(b.initial_cotangent + r * p.units + column, q, p.units - column);
  });
}

}  // namespace
}  // namespace srnn
