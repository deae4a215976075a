// What happens to the rows of an encoder: they are summed by token, and heads multiply them by a few
// columns.

#pragma once

#include "vectors.h"

namespace {

// Add up J * 16 numbers of a token's rows, with their weights.
template <int J>
INLINE void sum_rows(const float* rows, int width, const int64_t* columns, const float* weights,
                     int n, float* out) {
  __m512 sums[J];
  UNROLL for (int j = 0; j < J; ++j) sums[j] = _mm512_setzero_ps();
  for (int i = 0; i < n; ++i) {
    const float* row = rows + (size_t)columns[i] * width;
    const __m512 weight = set(weights[i]);
    UNROLL for (int j = 0; j < J; ++j) {
      sums[j] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(row + 16 * j), sums[j]);
    }
  }
  UNROLL for (int j = 0; j < J; ++j) _mm512_storeu_ps(out + 16 * j, sums[j]);
}

// One row times J * 16 columns for N rows. packed: (n_in, padded), from the first column on.
template <int N, int J>
INLINE void multiply_floats(const float* x, int n_in, const float* packed, int padded,
                            __m512 (&sums)[N][J]) {
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    sums[i][j] = _mm512_setzero_ps();
  }
  for (int k = 0; k < n_in; ++k, packed += padded) {
    __m512 columns[J];
    UNROLL for (int j = 0; j < J; ++j) columns[j] = _mm512_load_ps(packed + 16 * j);
    UNROLL for (int i = 0; i < N; ++i) {
      const __m512 value = set(x[(size_t)i * n_in + k]);
      UNROLL for (int j = 0; j < J; ++j) sums[i][j] = _mm512_fmadd_ps(value, columns[j], sums[i][j]);
    }
  }
}

// J * 16 columns of x W^T, of which `n_out` exist, for all n rows.
template <int J>
AVX512 void multiply_columns(const float* x, int n, int n_in, const float* packed, int padded,
                             int n_out, int stride, float* out) {
  const auto store = [&](float* row, const __m512* sums) AVX512 {
    UNROLL for (int j = 0; j < J; ++j) {
      const int left = n_out - 16 * j;
      const __mmask16 real = left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1);
      _mm512_mask_storeu_ps(row + 16 * j, real, sums[j]);
    }
  };
  int i = 0;
  for (; i + STRIPE <= n; i += STRIPE) {
    __m512 sums[STRIPE][J];
    multiply_floats<STRIPE, J>(x + (size_t)i * n_in, n_in, packed, padded, sums);
    UNROLL for (int r = 0; r < STRIPE; ++r) store(out + (size_t)(i + r) * stride, sums[r]);
  }
  for (; i < n; ++i) {
    __m512 sums[1][J];
    multiply_floats<1, J>(x + (size_t)i * n_in, n_in, packed, padded, sums);
    store(out + (size_t)i * stride, sums[0]);
  }
}

}  // namespace
