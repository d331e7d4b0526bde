// Vectors of float32 of the instruction set that the file is compiled for, and the functions of them.
//
// Included by routines.cc only. Everything is in an unnamed namespace, and what is not, in passes.h, is always inlined: the
// same inline function of two instruction sets must not become one at link time, or an old processor would run the new
// one's code.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "passes.h"

namespace srnn {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef std::int32_t ints __attribute__((vector_size(LANES * 4)));

ALWAYS_INLINE vec splat(float x) { return x - vec{}; }
ALWAYS_INLINE vec load(const float* p) { return *(const unaligned*)p; }
ALWAYS_INLINE void store(float* p, vec v) { *(unaligned*)p = v; }

// The first n lanes, zeros in the others.
ALWAYS_INLINE vec load(const float* p, Long n) {
  if (n >= LANES) return load(p);
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  vec v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
ALWAYS_INLINE void store(float* p, vec v, Long n) {
  if (n >= LANES) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

ALWAYS_INLINE vec select(ints flag, vec yes, vec no) { return (vec)((flag & (ints)yes) | (~flag & (ints)no)); }
ALWAYS_INLINE vec absolute(vec x) { return (vec)((ints)x & 0x7fffffff); }

// eˣ = scale (1 + rest), for |x| < 87: x = n ln 2 + r with |r| <= ln 2 / 2, scale = 2ⁿ, rest = eʳ - 1. The polynomial is
// the minimax one of (eʳ - 1 - r) / r² weighted with r: 1.4e-8 off, relative to eʳ - 1.
struct Exponential { vec scale, rest; };
ALWAYS_INLINE Exponential exponential(vec x) {
  const vec shift = splat(12582912.f);  // 1.5 · 2²³: adding it rounds to an integer, which is then in the low bits
  vec shifted = x * 1.44269504f + shift;
  vec n = shifted - shift;
  vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: n times the first one is exact
  vec q = r * 1.394649599e-3f + 8.366610654e-3f;
  q = q * r + 4.166628141e-2f;
  q = q * r + 1.666654279e-1f;
  q = q * r + 5.000000062e-1f;
  ints scale = ((ints)shifted << 23) + 0x3f800000;  // what is above the exponent is shifted out
  return {(vec)scale, q * (r * r) + r};
}

// tanh |x| = E / (E + 2) with E = exp(2|x|) - 1, which is accurate where x is small, too: 2.4 units in the last place at most,
// hardly ever above 1.6; the quotient of polynomials (13/6) that XLA uses is 4.4 off. From 10 on it is 1 exactly. NaN stays NaN.
ALWAYS_INLINE vec tanh(vec x) {
  vec a = absolute(x);
  a = select(a > 10.f, splat(10.f), a);
  Exponential e = exponential(a + a);
  vec E = e.scale * e.rest + (e.scale - 1.f);
  return (vec)((ints)(E / (E + 2.f)) | ((ints)x & (ints)splat(-0.f)));
}

// 1 / (1 + e⁻ˣ), as e / (1 + e) where x < 0, with e = exp(-|x|): nothing overflows.
ALWAYS_INLINE vec sigmoid(vec x) {
  vec a = absolute(x);
  Exponential y = exponential(-select(a > 87.f, splat(87.f), a));
  vec e = select(a > 87.f, vec{}, y.scale * y.rest + y.scale);
  return select(x < 0.f, e, splat(1.f)) / (1.f + e);
}

ALWAYS_INLINE vec activate(Activation f, vec a) {
  switch (f) {
    case Activation::tanh: return tanh(a);
    case Activation::relu: return select(a < 0.f, vec{}, a);
    case Activation::sigmoid: return sigmoid(a);
    case Activation::linear: break;
  }
  return a;
}

// act'(a) e from y = act(a), as `from_output` in flax_srnn/activations.py.
ALWAYS_INLINE vec derivative(Activation f, vec y, vec e) {
  switch (f) {
    case Activation::tanh: return (e + e * y) * (1.f - y);
    case Activation::relu: return select(y > 0.f, e, vec{});
    case Activation::sigmoid: return e * y * (1.f - y);
    case Activation::linear: break;
  }
  return e;
}

}  // namespace
}  // namespace srnn
