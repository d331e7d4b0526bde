// Problems of random numbers for the driver, and what comes of them, by plain loops in float64.
//
// Inputs are allocations of exactly their size, for the address sanitizer, and NaN where a mask leaves them out.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "recurrence.h"

using srnn::Activation;
using srnn::Long;

// Sizes and options. `shared`: copies have the same weights; `cotangents`: the states have some.
struct Case {
  Long copies = 1, rows = 3, steps = 7, features = 2, units = 4;
  Activation activation = Activation::tanh;
  bool shared = true, reverse = false, time_major = false;
  bool bias = true, mask = false, resets = false, input_dropout = false, dropout = false, cotangents = true;
};

struct Flag {
  const char* name;
  bool Case::*in;
};
constexpr Flag FLAGS[] = {
    {"shared", &Case::shared}, {"reverse", &Case::reverse}, {"time-major", &Case::time_major},
    {"bias", &Case::bias},     {"mask", &Case::mask},       {"resets", &Case::resets},
    {"d_x", &Case::input_dropout}, {"d_h", &Case::dropout}, {"cotangents", &Case::cotangents},
};
constexpr Activation ACTIVATIONS[] = {Activation::linear, Activation::tanh, Activation::relu, Activation::sigmoid};
const char* const ACTIVATION_NAMES[] = {"linear", "tanh", "relu", "sigmoid"};

inline std::string describe(const Case& c) {
  std::string text = std::to_string(c.copies);
  for (Long size : {c.rows, c.steps, c.features, c.units}) text += "x" + std::to_string(size);
  text += std::string(" ") + ACTIVATION_NAMES[static_cast<Long>(c.activation)];
  for (Flag flag : FLAGS)
    if (c.*flag.in) text += std::string(" ") + flag.name;
  return text;
}

// What is computed: two results, and the cotangents of what is given.
enum Output {
  FINAL_STATE, STATES,
  INPUTS, KERNEL, RECURRENT_KERNEL, BIAS, INITIAL_STATE, RESET_STATE, INPUT_DROPOUT, DROPOUT,
  OUTPUTS
};
const char* const OUTPUT_NAMES[] = {
    "final state", "states", "∂x", "∂W", "∂U", "∂b", "∂h_0", "∂r", "∂d_x", "∂d_h",
};
constexpr Long ABSENT = -1;

inline Long size_of(const Case& c, int output) {
  Long rows = c.copies * c.rows;
  switch (output) {
    case STATES: return rows * c.steps * c.units;
    case INPUTS: return rows * c.steps * c.features;
    case KERNEL: return c.copies * c.features * c.units;
    case RECURRENT_KERNEL: return c.copies * c.units * c.units;
    case BIAS: return c.bias ? c.copies * c.units : ABSENT;
    case RESET_STATE: return c.resets ? rows * c.units : ABSENT;
    case INPUT_DROPOUT: return c.input_dropout ? rows * c.features : ABSENT;
    case DROPOUT: return c.dropout ? rows * c.units : ABSENT;
    default: return rows * c.units;
  }
}

using Exact = std::array<std::vector<double>, OUTPUTS>;
template <class T>
using Array = std::unique_ptr<T[]>;  // exactly as long as it must be, or null

struct Problem {
  Case c;
  Array<float> inputs, kernel, recurrent_kernel, bias, input_dropout_mask, dropout_mask, initial_state, reset_state;
  Array<bool> mask, resets;
  Array<float> states, final_cotangent, cotangents;
  Exact exact;

  Problem(const Case& c, unsigned seed);
  // Where the step that is processed as number t is, in arrays with `width` numbers a step; where its flags are.
  Long at(Long copy, Long row, Long t, Long width) const {
    Long step = c.reverse ? c.steps - 1 - t : t;
    return (c.time_major ? (copy * c.steps + step) * c.rows + row : (copy * c.rows + row) * c.steps + step) * width;
  }
  Long flag(Long row, Long t) const { return row * c.steps + (c.reverse ? c.steps - 1 - t : t); }
};

inline double activate(Activation f, double a) {
  switch (f) {
    case Activation::tanh: return std::tanh(a);
    case Activation::relu: return a > 0 ? a : 0;
    case Activation::sigmoid: return 1 / (1 + std::exp(-a));
    default: return a;
  }
}
inline double slope(Activation f, double y) {
  switch (f) {
    case Activation::tanh: return 1 - y * y;
    case Activation::relu: return y > 0;
    case Activation::sigmoid: return y * (1 - y);
    default: return 1;
  }
}

// The formulas of flax_srnn/core/recurrence.py, a number at a time.
inline Exact reference(const Problem& p) {
  const Long B = p.c.rows, T = p.c.steps, F = p.c.features, U = p.c.units;
  Exact d;
  for (int i = 0; i < OUTPUTS; ++i) d[i].assign(std::max<Long>(size_of(p.c, i), 0), 0.0);
  for (Long row = 0; row < p.c.copies * B; ++row) {
    const Long copy = row / B, r = row % B, weights = p.c.shared ? 0 : copy;
    const float *W = &p.kernel[weights * F * U], *R = &p.recurrent_kernel[weights * U * U];
    auto d_x = [&](Long k) { return p.input_dropout_mask ? p.input_dropout_mask[row * F + k] : 1.0; };
    auto d_h = [&](Long i) { return p.dropout_mask ? p.dropout_mask[row * U + i] : 1.0; };
    auto used = [&](Long t) { return !p.mask || p.mask[p.flag(row, t)]; };
    auto reset = [&](Long t) { return p.resets && p.resets[p.flag(row, t)]; };

    std::vector<double> h(&p.initial_state[row * U], &p.initial_state[row * U] + U), s(T * U);
    for (Long t = 0; t < T; ++t) {
      const float* x = &p.inputs[p.at(copy, r, t, F)];
      double* states = &d[STATES][p.at(copy, r, t, U)];
      for (Long i = 0; i < U; ++i) s[t * U + i] = reset(t) ? p.reset_state[row * U + i] : h[i];
      for (Long j = 0; j < U; ++j) {
        double a = p.bias ? p.bias[weights * U + j] : 0;
        for (Long k = 0; k < F; ++k) a += x[k] * d_x(k) * W[k * U + j];
        for (Long i = 0; i < U; ++i) a += s[t * U + i] * d_h(i) * R[i * U + j];
        states[j] = h[j] = used(t) ? activate(p.c.activation, a) : s[t * U + j];
      }
    }
    std::copy(h.begin(), h.end(), &d[FINAL_STATE][row * U]);

    std::vector<double> c(&p.final_cotangent[row * U], &p.final_cotangent[row * U] + U), e(U), delta(U);
    for (Long t = T - 1; t >= 0; --t) {
      const Long at_x = p.at(copy, r, t, F), at_h = p.at(copy, r, t, U);
      for (Long j = 0; j < U; ++j) {
        e[j] = c[j] + (p.cotangents ? p.cotangents[at_h + j] : 0);
        delta[j] = used(t) ? slope(p.c.activation, d[STATES][at_h + j]) * e[j] : 0;
        if (p.bias) d[BIAS][copy * U + j] += delta[j];
      }
      for (Long i = 0; i < U; ++i) {
        double q = 0;
        for (Long j = 0; j < U; ++j) {
          q += delta[j] * R[i * U + j];
          d[RECURRENT_KERNEL][(copy * U + i) * U + j] += s[t * U + i] * d_h(i) * delta[j];
        }
        if (p.dropout_mask) d[DROPOUT][row * U + i] += q * s[t * U + i];
        q = q * d_h(i) + (used(t) ? 0 : e[i]);
        if (reset(t)) d[RESET_STATE][row * U + i] += q;
        c[i] = reset(t) ? 0 : q;
      }
      for (Long k = 0; k < F && used(t); ++k) {
        double z = 0, x = p.inputs[at_x + k];
        for (Long j = 0; j < U; ++j) {
          z += delta[j] * W[k * U + j];
          d[KERNEL][(copy * F + k) * U + j] += x * d_x(k) * delta[j];
        }
        d[INPUTS][at_x + k] = z * d_x(k);
        if (p.input_dropout_mask) d[INPUT_DROPOUT][row * F + k] += z * x;
      }
    }
    std::copy(c.begin(), c.end(), &d[INITIAL_STATE][row * U]);
  }
  return d;
}

inline Problem::Problem(const Case& c, unsigned seed) : c(c) {
  std::mt19937 random(seed);
  auto chance = [&](double p) { return random() < p * 4294967296.0; };
  auto normal = [&](Long n, double scale, bool present = true) {
    Array<float> a(present ? new float[n] : nullptr);
    std::normal_distribution<double> numbers(0, scale);
    for (Long i = 0; i < n && present; ++i) a[i] = static_cast<float>(numbers(random));
    return a;
  };
  auto kept = [&](Long n, bool present) {
    Array<float> a(present ? new float[n] : nullptr);
    for (Long i = 0; i < n && present; ++i) a[i] = chance(0.6) ? 1.7f : 0.f;
    return a;
  };
  auto flags = [&](Long n, double p, bool present) {
    Array<bool> a(present ? new bool[n] : nullptr);
    for (Long i = 0; i < n && present; ++i) a[i] = chance(p);
    return a;
  };
  const Long rows = c.copies * c.rows, weights = c.shared ? 1 : c.copies;
  inputs = normal(rows * c.steps * c.features, 1);
  kernel = normal(weights * c.features * c.units, 1 / std::sqrt(c.features + 1.0));
  recurrent_kernel = normal(weights * c.units * c.units, 0.5 / std::sqrt(c.units));
  bias = normal(weights * c.units, 0.5, c.bias);
  initial_state = normal(rows * c.units, 0.5);
  reset_state = normal(rows * c.units, 0.5, c.resets);
  final_cotangent = normal(rows * c.units, 1);
  cotangents = normal(rows * c.steps * c.units, 1, c.cotangents);
  input_dropout_mask = kept(rows * c.features, c.input_dropout);
  dropout_mask = kept(rows * c.units, c.dropout);
  mask = flags(rows * c.steps, 0.7, c.mask);
  resets = flags(rows * c.steps, 0.2, c.resets);
  for (Long row = 0; row < rows && mask; ++row)
    for (Long t = 0; t < c.steps; ++t)
      if (!mask[flag(row, t)]) std::fill_n(&inputs[at(row / c.rows, row % c.rows, t, c.features)], c.features, NAN);
  exact = reference(*this);
  states.reset(new float[exact[STATES].size()]);
  std::copy(exact[STATES].begin(), exact[STATES].end(), states.get());
}
