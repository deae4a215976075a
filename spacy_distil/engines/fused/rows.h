// The steps behind an encoder: tokens sum its rows, and heads multiply token vectors by a few columns.

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

// Arrange W, (n_out, n_in), in panels of 16 columns of W^T: (n_out / 16, rounded up, n_in, 16). The
// columns of the last panel that do not exist are zeros.
AVX512 void pack_columns(const float* weight, int n_in, int n_out, float* packed) {
  for (int at = 0; at < n_out; at += 16, packed += 16 * (size_t)n_in) {
    int k = 0;
    for (; k + 16 <= n_in; k += 16) {
      __m512i rows[16];
      UNROLL16 for (int j = 0; j < 16; ++j) {
        rows[j] = at + j < n_out ? _mm512_loadu_si512(weight + (size_t)(at + j) * n_in + k)
                                 : _mm512_setzero_si512();
      }
      transpose(rows, (Cell*)packed + 16 * (size_t)k, 16);
    }
    for (; k < n_in; ++k) {
      for (int j = 0; j < 16; ++j) {
        packed[16 * (size_t)k + j] = at + j < n_out ? weight[(size_t)(at + j) * n_in + k] : 0.f;
      }
    }
  }
}

// N rows of x times J panels.
template <int N, int J>
INLINE void multiply_floats(const float* x, int n_in, const float* packed, __m512 (&sums)[N][J]) {
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    sums[i][j] = _mm512_setzero_ps();
  }
  const size_t panel = 16 * (size_t)n_in;
  for (int k = 0; k < n_in; ++k, packed += 16) {
    __m512 columns[J];
    UNROLL for (int j = 0; j < J; ++j) columns[j] = _mm512_load_ps(packed + j * panel);
    UNROLL for (int i = 0; i < N; ++i) {
      const __m512 value = set(x[(size_t)i * n_in + k]);
      UNROLL for (int j = 0; j < J; ++j) sums[i][j] = _mm512_fmadd_ps(value, columns[j], sums[i][j]);
    }
  }
}

template <int N, int J>
INLINE void multiply_stripe(const float* x, int n_in, const float* packed, int n_out, int stride,
                            float* out) {
  __m512 sums[N][J];
  multiply_floats<N, J>(x, n_in, packed, sums);
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    const int left = n_out - 16 * j;
    const __mmask16 real = left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1);
    _mm512_mask_storeu_ps(out + (size_t)i * stride + 16 * j, real, sums[i][j]);
  }
}

// J panels, of which `n_out` columns exist, for all n rows. out: (n, stride), from the first of these
// columns on.
template <int J>
AVX512 void multiply_columns(const float* x, int n, int n_in, const float* packed, int n_out,
                             int stride, float* out) {
  int i = 0;
  for (; i + STRIPE <= n; i += STRIPE) {
    multiply_stripe<STRIPE, J>(x + (size_t)i * n_in, n_in, packed, n_out, stride,
                               out + (size_t)i * stride);
  }
  for (; i < n; ++i) {
    multiply_stripe<1, J>(x + (size_t)i * n_in, n_in, packed, n_out, stride,
                          out + (size_t)i * stride);
  }
}

}  // namespace
