// What the two passes over a sequence work on. Everything here is plain data, shared by the code that is compiled once
// (recurrence.cc) and the code that is compiled for each instruction set (routines.cc).
//
// Letters as in the Python library: B rows, T steps, F features, U units; row-major arrays of float32.
#pragma once
#include <cstdint>

namespace srnn {

using Long = std::int64_t;
#define ALWAYS_INLINE inline __attribute__((always_inline))

enum class Activation : Long { linear, tanh, relu, sigmoid };

// An array over rows and steps; a step is `width` neighbouring numbers. Steps are counted in the order in which they are
// processed: a reversed sequence is one whose step is negative, a time-major one has a small row and a large step.
template <class T>
struct Sequence {
  T* first = nullptr;
  Long row = 0, step = 0;
  ALWAYS_INLINE T* at(Long r, Long t) const { return first + r * row + t * step; }
  ALWAYS_INLINE Sequence rows_from(Long r) const { return {first ? at(r, 0) : nullptr, row, step}; }
};

// A recurrence over some rows, as in flax_srnn/core/recurrence.py; absent arrays are null.
struct Problem {
  Long rows, steps, features, units;
  Activation activation;
  const float *kernel, *recurrent_kernel, *bias;        // (F, U), (U, U), (U)
  const float *input_dropout_mask, *dropout_mask;       // d_x (B, F), d_h (B, U)
  const float *initial_state, *reset_state;             // (B, U)
  Sequence<const float> inputs;
  Sequence<const bool> mask, resets;

  ALWAYS_INLINE bool used(Long r, Long t) const { return !mask.first || *mask.at(r, t); }
  ALWAYS_INLINE bool reset(Long r, Long t) const { return resets.first && *resets.at(r, t); }
};

// n pieces cut into `count` blocks of at most `most`, as equal as can be.
struct Split {
  Long count, size, extra;
  ALWAYS_INLINE Split(Long n, Long most) : count(n > 0 ? (n + most - 1) / most : 1) {
    size = n / count;
    extra = n % count;
  }
  ALWAYS_INLINE Long begin(Long i) const { return i * size + (i < extra ? i : extra); }
  ALWAYS_INLINE Long width(Long i) const { return size + (i < extra); }
};

// A matrix (K, N), packed for products of `rows` rows with it: panels of at most `vecs` vectors of columns, each panel
// contiguous, the last column padded with zeros to a whole vector.
struct Panels {
  Long K = 0, N = 0, rows = 1, vecs = 1;
  float* data = nullptr;
};

// One pass, of which `chunk` steps at a time are worked on; up to `slots` chunks are in memory at once, so that as many
// can be worked on ahead of the recurrence, or behind it.
struct Pass {
  Problem p;
  Long chunk, chunks, slots;
};

struct Forward : Pass {
  Sequence<float> states;      // where all states go, null: nowhere
  float* final_state;          // (B, U)

  bool fused;                  // whether x_t W is part of the step's product
  Long stride;                 // of the rows below
  Panels recurrent, input;
  float *state, *next;         // (rows, stride): s_t and, if fused, x_t beside it
  float* left;                 // the same with dropout; `state` where there is none
  float* projected;            // (slots, rows, chunk, U): z_t + b
};

struct Backward : Pass {
  Sequence<const float> states, cotangents;      // h_t, g_t (null: zero)
  const float* final_cotangent;                  // (B, U)
  Sequence<float> inputs_cotangent;
  float *initial_cotangent, *reset_cotangent;    // (B, U), the second null where there are no resets
  float *input_dropout_cotangent, *dropout_cotangent;

  Long joined_width, joined_stride, stride;
  Panels recurrent, input;                       // Uᵀ, Wᵀ
  float* weights;   // (U + F + 1, U): the cotangents of U, W and b, one above the other
  float* joined;    // (slots, chunk, rows, joined_stride): s_t ∘ d_h, x_t ∘ d_x, 1
  float* deltas;    // (slots, chunk, rows, stride)
  float* above;     // (rows, stride): δ of the step processed after
  float* held;      // (rows, stride): e of the step processed after, in rows where that one was masked
};

// The parts of the products of a chunk: two halves of the weights' cotangents, and the inputs'.
constexpr int PARTS = 3;

// One instruction set's code. `*_memory` decides how a pass is cut and returns how many numbers of memory it needs, which
// `*_start` gets, aligned for its vectors; then come the chunks, counted in the order in which they are processed.
struct Routines {
  const char* name;
  Long (*forward_memory)(Forward&);
  void (*forward_start)(Forward&, float*);
  void (*project)(const Forward&, Long chunk);
  void (*advance)(Forward&, Long chunk);
  void (*forward_finish)(const Forward&);

  Long (*backward_memory)(Backward&);
  void (*backward_start)(Backward&, float*);
  void (*retreat)(Backward&, Long chunk);
  void (*products)(const Backward&, Long chunk, int part);
  void (*backward_finish)(Backward&);
};

// By number: generic, avx2, avx512. Null where this build or this processor has no such code.
const Routines* routines(int number);
int best();

extern const Routines generic, avx2, avx512;

}  // namespace srnn
