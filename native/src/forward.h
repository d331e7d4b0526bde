// The forward pass over some rows, by chunks of steps:
//
//     s_t = r where reset_t, else h_tm1
//     h_t = act(x_t W + b + (s_t ∘ d_h) U) where mask_t, else s_t
//
// With FUSED rows or more, [s_t ∘ d_h, x_t ∘ d_x] times [U; W] is one product. With fewer, a step's product reads the
// weights for few multiplications, so the inputs of a whole chunk are projected at once: `project`, which another thread
// can do ahead of the recurrence.
#pragma once
#include "product.h"

namespace srnn {
namespace {

constexpr Long FUSED = 6;        // rows; measured
constexpr Long CHUNK_ROWS = 256;  // of a product over a chunk: as many as make it efficient and stay in cache

Long chunk_steps(const Problem& p, Long least) {
  Long steps = CHUNK_ROWS / (p.rows > 0 ? p.rows : 1);
  steps = steps < least ? least : steps;
  return steps < p.steps ? steps : p.steps;
}

Long take(Long& used, Long n) {
  Long at = used;
  used += vectors(n) * LANES;
  return at;
}

void cut(Pass& pass, Long chunk) {
  pass.chunk = chunk < 1 ? 1 : chunk;
  pass.chunks = (pass.p.steps + pass.chunk - 1) / pass.chunk;
}

// How many steps chunk c has.
Long length(const Pass& pass, Long c) {
  Long rest = pass.p.steps - c * pass.chunk;
  return rest < pass.chunk ? rest : pass.chunk;
}

// x_t ∘ d_x of a row, zeros where the step is masked: what stands there may be NaN.
void copy_inputs(const Problem& p, Long r, Long t, float* to) {
  if (!p.used(r, t)) {
    std::memset(to, 0, p.features * sizeof(float));
    return;
  }
  const float* x = p.inputs.at(r, t);
  if (!p.input_dropout_mask) {
    std::memcpy(to, x, p.features * sizeof(float));
    return;
  }
  const float* d = p.input_dropout_mask + r * p.features;
  for (Long i = 0; i < p.features; ++i) to[i] = x[i] * d[i];
}

// s ∘ d_h of a row.
void drop(const Problem& p, Long r, const float* s, float* to) {
  const float* d = p.dropout_mask + r * p.units;
  for (Long i = 0; i < p.units; ++i) to[i] = s[i] * d[i];
}

Long forward_layout(Forward& f, float* memory) {
  const Problem& p = f.p;
  f.fused = p.rows >= FUSED;
  cut(f, f.fused ? p.steps : chunk_steps(p, 8));
  f.stride = padded(p.units + (f.fused ? p.features : 0) + LANES);
  f.recurrent = panels_for(p.units + (f.fused ? p.features : 0), p.units, p.rows);
  f.input = panels_for(p.features, p.units, f.chunk);
  Long used = 0, block = p.rows * f.stride;
  f.recurrent.data = memory + take(used, size(f.recurrent));
  f.state = memory + take(used, block);
  f.next = memory + take(used, block);
  f.left = p.dropout_mask ? memory + take(used, block) : nullptr;
  if (!f.fused) {
    f.input.data = memory + take(used, size(f.input));
    f.projected = memory + take(used, f.slots * p.rows * f.chunk * p.units);
    if (p.input_dropout_mask) take(used, f.chunk * p.features);
  }
  return used;
}

Long forward_memory(Forward& f) { return forward_layout(f, nullptr); }

void forward_start(Forward& f, float* memory) {
  forward_layout(f, memory);
  const Problem& p = f.p;
  pack(f.recurrent, p.recurrent_kernel, 0, p.units);
  if (f.fused) pack(f.recurrent, p.kernel, p.units, p.features);
  else pack(f.input, p.kernel, 0, p.features);
  for (Long r = 0; r < p.rows; ++r)
    std::memcpy(f.state + r * f.stride, p.initial_state + r * p.units, p.units * sizeof(float));
}

float* projected(const Forward& f, Long r, Long c) {
  return f.projected + ((c % f.slots) * f.p.rows + r) * f.chunk * f.p.units;
}

void project(const Forward& f, Long c) {
  const Problem& p = f.p;
  for (Long r = 0; r < p.rows; ++r) {
    const float* x = p.inputs.at(r, c * f.chunk);
    Long ld = p.inputs.step;
    if (p.input_dropout_mask) {  // one row's at a time, behind all that is projected
      float* dropped = f.projected + vectors(f.slots * p.rows * f.chunk * p.units) * LANES;
      for (Long k = 0; k < length(f, c); ++k) copy_inputs(p, r, c * f.chunk + k, dropped + k * p.features);
      x = dropped;
      ld = p.features;
    }
    float* z = projected(f, r, c);
    product(length(f, c), x, ld, f.input, false, [&](Long k, Long column, vec value) __attribute__((always_inline)) {
      Long n = p.units - column;
      if (p.bias) value += load(p.bias + column, n);
      store(z + k * p.units + column, value, n);
    });
  }
}

void advance(Forward& f, Long c) {
  const Problem& p = f.p;
  for (Long k = 0; k < length(f, c); ++k) {
    Long t = c * f.chunk + k;
    float* left = f.left ? f.left : f.state;
    for (Long r = 0; r < p.rows; ++r) {
      float* s = f.state + r * f.stride;
      if (p.reset(r, t)) std::memcpy(s, p.reset_state + r * p.units, p.units * sizeof(float));
      if (f.left) drop(p, r, s, left + r * f.stride);
      if (f.fused) copy_inputs(p, r, t, left + r * f.stride + p.units);
    }
    const float* added = f.fused ? p.bias : projected(f, 0, c) + k * p.units;
    Long added_stride = f.fused ? 0 : f.chunk * p.units;
    product(p.rows, left, f.stride, f.recurrent, t % 2, [&](Long r, Long column, vec a) __attribute__((always_inline)) {
      Long n = p.units - column, at = r * f.stride + column;
      if (added) a += load(added + r * added_stride + column, n);
      vec h = p.used(r, t) ? activate(p.activation, a) : load(f.state + at);
      store(f.next + at, h);
      if (f.states.first) store(f.states.at(r, t) + column, h, n);
    });
    float* before = f.state;
    f.state = f.next;
    f.next = before;
  }
}

void forward_finish(const Forward& f) {
  for (Long r = 0; r < f.p.rows; ++r)
    std::memcpy(f.final_state + r * f.p.units, f.state + r * f.stride, f.p.units * sizeof(float));
}

}  // namespace
}  // namespace srnn
