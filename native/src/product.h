// Matrix products by one thread, on small blocks of the result that stay in registers.
//
// The tile rule: a block of R rows and V vectors of columns takes R·V accumulators, V vectors of the right side and one
// broadcast number of the left, so R·V + V + 1 registers of 32 (AVX-512) or 16. Each step of its loop over k has R·V
// multiply-adds for V + R loads. With few rows R is what there is and V as large as fits, with many R is 8 (or 6): 8x3 on
// AVX-512, 6x2 on AVX2. Rows and vectors are cut into equal blocks rather than whole ones and a rest: 9 rows are 5 and 4.
//
// Sums over k are cut too, every `SEGMENT` terms: the rounding errors of a float32 sum grow with the number of its terms,
// and those of sums of sums with its square root (128x50x512x1024: 4.4e-6 of the largest output without, 1.2e-6 with).
#pragma once
#include <cstring>

#include "vector.h"

namespace srnn {
namespace {

constexpr int MOST_ROWS = REGISTERS == 32 ? 8 : 6, MOST_VECS = 8;
constexpr Long SEGMENT = 64;

constexpr bool fits(int rows, int vecs) {
  return rows <= MOST_ROWS && vecs <= MOST_VECS && rows * vecs + vecs + 1 <= REGISTERS;
}

ALWAYS_INLINE Long vectors(Long n) { return (n + LANES - 1) / LANES; }

// The stride of rows of n numbers: whole vectors, and no multiple of 1 KB, which would put a column into few sets of the cache.
ALWAYS_INLINE Long padded(Long n) {
  n = vectors(n) * LANES;
  return n % 256 == 0 ? n + LANES : n;
}

// Vectors per tile of this many rows. A single row's time is that of reading B, so there the panels are small enough for some
// to stay in the nearest cache until they are needed again (see `product`).
Long tile_vecs(Long rows) {
  Long vecs = rows == 1 ? 4 : (REGISTERS - 1) / (rows + 1);
  return vecs < MOST_VECS ? vecs : MOST_VECS;
}

// --- the right side --------------------------------------------------------------------------------------------------

Panels panels_for(Long K, Long N, Long rows) {
  Long tile_rows = Split(rows, MOST_ROWS).width(0);
  if (tile_rows < 1) tile_rows = 1;
  return {K, N, tile_rows, tile_vecs(tile_rows), nullptr};
}
Long size(const Panels& B) { return B.K * vectors(B.N) * LANES; }

// Rows [k0, k0 + n) of the matrix, from row-major `source`.
void pack(const Panels& B, const float* source, Long k0, Long n) {
  Split cut(vectors(B.N), B.vecs);
  for (Long panel = 0; panel < cut.count; ++panel) {
    Long width = cut.width(panel), column = cut.begin(panel) * LANES;
    float* to = B.data + column * B.K + k0 * width * LANES;
    for (Long k = 0; k < n; ++k)
      for (Long v = 0; v < width; ++v, to += LANES)
        store(to, load(source + k * B.N + column + v * LANES, B.N - column - v * LANES));
  }
}

// The matrix, from its row-major transpose (N, K), in blocks of columns that share their cache lines.
void pack_transposed(const Panels& B, const float* source) {
  Split cut(vectors(B.N), B.vecs);
  for (Long panel = 0; panel < cut.count; ++panel) {
    Long width = cut.width(panel) * LANES, column = cut.begin(panel) * LANES;
    float* to = B.data + column * B.K;
    for (Long begin = 0; begin < width; begin += LANES)
      for (Long k = 0; k < B.K; ++k)
        for (Long i = begin; i < begin + LANES; ++i)
          to[k * width + i] = column + i < B.N ? source[(column + i) * B.K + k] : 0.f;
  }
}

// --- a block of the result -------------------------------------------------------------------------------------------

// tile (R, V) = A · B over K terms; `right` moves by `stride` numbers from term to term. A is at left[i * ld + k], or, where
// `Transposed`, at left[k * ld + i].
template <int R, int V, bool Transposed>
void multiply(Long K, const float* left, Long ld, const float* right, Long stride, vec* tile) {
  constexpr int CHAINS = R * V >= 8 ? 1 : R * V >= 4 ? 2 : 4;  // of additions, to hide their latency
  Long k = 0;
  do {
    Long end = K - k > SEGMENT ? k + SEGMENT : K;
    vec sum[CHAINS][R][V] = {};
    auto term = [&](int chain, Long k) __attribute__((always_inline)) {
      const float* b = right + k * stride;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        vec a = splat(Transposed ? left[k * ld + i] : left[i * ld + k]);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[chain][i][j] += a * *(const vec*)(b + j * LANES);
      }
    };
    for (; k + CHAINS <= end; k += CHAINS)
#pragma GCC unroll 4
      for (int chain = 0; chain < CHAINS; ++chain) term(chain, k + chain);
    for (; k < end; ++k) term(0, k);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        vec total = sum[0][i][j];
        if constexpr (CHAINS == 2) total += sum[1][i][j];
        if constexpr (CHAINS == 4) total = (total + sum[1][i][j]) + (sum[2][i][j] + sum[3][i][j]);
        tile[i * V + j] = k <= SEGMENT ? total : tile[i * V + j] + total;
      }
  } while (k < K);
}

using Multiply = void (*)(Long, const float*, Long, const float*, Long, vec*);

template <bool Transposed, int R, int V>
constexpr Multiply entry() {
  if constexpr (fits(R, V)) return multiply<R, V, Transposed>;
  else return nullptr;
}
#define ROW(T, R) {entry<T, R, 1>(), entry<T, R, 2>(), entry<T, R, 3>(), entry<T, R, 4>(), \
                   entry<T, R, 5>(), entry<T, R, 6>(), entry<T, R, 7>(), entry<T, R, 8>()}
#define TABLE(T) {ROW(T, 1), ROW(T, 2), ROW(T, 3), ROW(T, 4), ROW(T, 5), ROW(T, 6), ROW(T, 7), ROW(T, 8)}
constexpr Multiply MULTIPLY[2][8][8] = {TABLE(false), TABLE(true)};
#undef TABLE
#undef ROW

// --- whole products --------------------------------------------------------------------------------------------------

// Calls finish(row, column, value) for every row and vector of columns of A · B, A being (M, K) of row stride `ld`; from the
// last panel of B to the first if `turned`: who multiplies with B again and again turns every other time, and finds the
// panels that he used last in the cache that all of B is too large for.
template <class Finish>
void product(Long M, const float* left, Long ld, const Panels& B, bool turned, Finish finish) {
  if (!M || !B.N) return;
  Split rows(M, B.rows), cut(vectors(B.N), B.vecs);
  vec tile[REGISTERS];
  for (Long i = 0; i < cut.count; ++i) {
    Long panel = turned ? cut.count - 1 - i : i;
    Long width = cut.width(panel), column = cut.begin(panel) * LANES;
    for (Long block = 0; block < rows.count; ++block) {
      Long height = rows.width(block), row = rows.begin(block);
      MULTIPLY[false][height - 1][width - 1](B.K, left + row * ld, ld, B.data + column * B.K, width * LANES, tile);
      for (Long i = 0; i < height; ++i)
        for (Long j = 0; j < width; ++j) finish(row + i, column + j * LANES, tile[i * width + j]);
    }
  }
}

// C += Aᵀ B, with A (K, M), B (K, N) and C (M, N) row-major; rows of B are whole vectors, and what is in them beyond N is
// not used.
void add_contraction(Long K, Long M, Long N, const float* left, Long left_ld, const float* right, Long right_ld, float* C) {
  if (!M || !N) return;
  Split rows(M, MOST_ROWS);
  Split cut(vectors(N), tile_vecs(rows.width(0)));
  vec tile[REGISTERS];
  for (Long panel = 0; panel < cut.count; ++panel) {
    Long width = cut.width(panel), column = cut.begin(panel) * LANES;
    for (Long block = 0; block < rows.count; ++block) {
      Long height = rows.width(block), row = rows.begin(block);
      MULTIPLY[true][height - 1][width - 1](K, left + row, left_ld, right + column, right_ld, tile);
      for (Long i = 0; i < height; ++i)
        for (Long j = 0; j < width; ++j) {
          float* c = C + (row + i) * N + column + j * LANES;
          Long n = N - column - j * LANES;
          store(c, load(c, n) + tile[i * width + j], n);
        }
    }
  }
}

}  // namespace
}  // namespace srnn
