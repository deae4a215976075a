// Attention in one window, in float32 or, on CPUs with AVX512-BF16, with products of bfloat16.
//
// Both forms work on cells of 32 bits: a cell is one float32, or a pair of bfloat16. Scores and
// weighted values are then the same product of a stripe of rows and a few columns of cells.

#pragma once

#include "vectors.h"

// Older compilers and assemblers do not know the instructions.
#if defined(__clang__) || __GNUC__ >= 11
#define BFLOAT16 1
#else
#define BFLOAT16 0
#endif

namespace {

INLINE __m512i load_cells(const Cell* cells) { return _mm512_loadu_si512(cells); }

// Products of float32.
struct Float32 {
  static constexpr int PER_CELL = 1;
  static INLINE void multiply_add(__m512& sum, __m512i left, __m512i right) {
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sum);
  }
  // 16 cells of a row.
  static INLINE __m512i cells(const float* row) { return _mm512_loadu_si512(row); }
  // 16 cells of one row, or of a row and the next. next: null for zeros.
  static INLINE __m512i columns(const float* row, const float*) { return cells(row); }
  static INLINE __m512 exponential(__m512 x) { return ::exponential(x); }
  static INLINE void put(Cell* row, int at, __m512 value) {
    _mm512_storeu_ps((float*)row + at, value);
  }
};

#if BFLOAT16

// Products of bfloat16, with sums in float32. By assembly, since `AVX512` does not include it.
struct BFloat16 {
  static constexpr int PER_CELL = 2;
  static INLINE void multiply_add(__m512& sum, __m512i left, __m512i right) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
  }
  // The numbers of `low`, then the numbers of `high`.
  static INLINE __m512i round(__m512 low, __m512 high) {
    __m512i rounded;
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(rounded) : "v"(high), "v"(low));
    return rounded;
  }
  static INLINE __m512i cells(const float* row) {
    return round(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16));
  }
  static INLINE __m512i columns(const float* row, const float* next) {
    const __m512 second = next ? _mm512_loadu_ps(next) : _mm512_setzero_ps();
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    return _mm512_permutexvar_epi16(pairs, round(_mm512_loadu_ps(row), second));
  }
  // With a relative error below 1e-4, a twentieth of the rounding that follows. 2^r by the
  // polynomial with the smallest largest relative error.
  static INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, set(-87.f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)), 0);
    const __m512 r = _mm512_fmsub_ps(x, set(1.44269504f), n);
    __m512 p = _mm512_fmadd_ps(set(5.51716703e-2f), r, set(2.42611125e-1f));
    p = _mm512_fmadd_ps(p, r, set(6.93260985e-1f));
    p = _mm512_fmadd_ps(p, r, set(9.99928073e-1f));
    return _mm512_scalef_ps(p, n);
  }
  static INLINE void put(Cell* row, int at, __m512 value) {
    __m256i rounded;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(value));
    _mm256_storeu_si256((__m256i*)((uint16_t*)row + at), rounded);
  }
};

#else

using BFloat16 = Float32;

#endif

// N rows, `stride` cells apart, times J * 16 columns, `right_stride` cells apart: n cells of each.
template <class Numbers, int N, int J>
INLINE void multiply(int n, const Cell* left, int stride, const Cell* right, int right_stride,
                     __m512 (&sums)[N][J]) {
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    sums[i][j] = _mm512_setzero_ps();
  }
  for (int k = 0; k < n; ++k, right += right_stride) {
    __m512i columns[J];
    UNROLL for (int j = 0; j < J; ++j) columns[j] = load_cells(right + 16 * j);
    UNROLL for (int i = 0; i < N; ++i) {
      const __m512i row = _mm512_set1_epi32((int)left[(size_t)i * stride + k]);
      UNROLL for (int j = 0; j < J; ++j) Numbers::multiply_add(sums[i][j], row, columns[j]);
    }
  }
}

// One head in one window, for which its numbers have been arranged in cells.
// n: pieces. padded: n, rounded up to 16. size: of the head, in numbers.
// queries: (n, size / PER_CELL). keys: transposed, (size / PER_CELL, padded).
// values: (n / PER_CELL, rounded up, size); a cell has the numbers of neighbouring pieces.
struct Head {
  int n, padded, size;
  Cell *queries, *keys, *values;
};

// Replace n scores by e^((score - largest) * scale), in cells. The padding's become 0.
// Returns the inverse of their sum.
template <class Numbers>
INLINE float soften(float* scores, int n, int padded, float scale) {
  const __mmask16 tail = n % 16 ? (__mmask16)((1u << n % 16) - 1) : (__mmask16)0xFFFF;
  __m512 most = set(-INFINITY);
  for (int j = 0; j < padded; j += 16) {
    const __mmask16 real = j + 16 < padded ? (__mmask16)0xFFFF : tail;
    most = _mm512_mask_max_ps(most, real, most, _mm512_loadu_ps(scores + j));
  }
  const __m512 shift = set(-_mm512_reduce_max_ps(most) * scale);
  __m512 sum = _mm512_setzero_ps();
  for (int j = 0; j < padded; j += 16) {
    const __mmask16 real = j + 16 < padded ? (__mmask16)0xFFFF : tail;
    const __m512 x = _mm512_fmadd_ps(_mm512_loadu_ps(scores + j), set(scale), shift);
    const __m512 value = _mm512_maskz_mov_ps(real, Numbers::exponential(x));
    Numbers::put((Cell*)scores, j, value);  // never beyond what has been read
    sum = _mm512_add_ps(sum, value);
  }
  return 1.f / _mm512_reduce_add_ps(sum);
}

template <class Numbers, int N, int J>
INLINE void score(const Head& head, int query, int at, float* scores) {
  const int n_cells = head.size / Numbers::PER_CELL;
  __m512 sums[N][J];
  multiply<Numbers, N, J>(n_cells, head.queries + (size_t)query * n_cells, n_cells, head.keys + at,
                          head.padded, sums);
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    _mm512_storeu_ps(scores + (size_t)i * head.padded + at + 16 * j, sums[i][j]);
  }
}

// Values, weighted by softened scores and factors: J * 16 of them for N queries, from `at` on.
template <class Numbers, int N, int J>
INLINE void mix(const Head& head, const float* scores, const float* factors, int at, float* out,
                int width) {
  __m512 sums[N][J];
  multiply<Numbers, N, J>((head.n + Numbers::PER_CELL - 1) / Numbers::PER_CELL,
                          (const Cell*)scores, head.padded, head.values + at, head.size, sums);
  UNROLL for (int i = 0; i < N; ++i) UNROLL for (int j = 0; j < J; ++j) {
    _mm512_storeu_ps(out + (size_t)i * width + at + 16 * j,
                     _mm512_mul_ps(sums[i][j], set(factors[i])));
  }
}

// N queries, from `query` on. scores: scratch, (N, padded). out: (N, width).
template <class Numbers, int N>
AVX512 void attend_stripe(const Head& head, int query, float* scores, float* out, int width) {
  const float scale = 1.f / sqrtf((float)head.size);
  float factors[N];
  int at = 0;
  for (; at + 64 <= head.padded; at += 64) score<Numbers, N, 4>(head, query, at, scores);
  for (; at < head.padded; at += 16) score<Numbers, N, 1>(head, query, at, scores);
  for (int i = 0; i < N; ++i) {
    factors[i] = soften<Numbers>(scores + (size_t)i * head.padded, head.n, head.padded, scale);
  }
  for (at = 0; at + 32 <= head.size; at += 32) {
    mix<Numbers, N, 2>(head, scores, factors, at, out, width);
  }
  if (at < head.size) mix<Numbers, N, 1>(head, scores, factors, at, out, width);
}

// Arrange a head's queries, keys and values in cells. projected: of the head's first query; queries,
// keys and values stand `width` floats apart, and those of the next piece `3 * width`.
template <class Numbers>
INLINE void arrange(const float* projected, int width, const Head& head) {
  const int stride = 3 * width, n_cells = head.size / Numbers::PER_CELL;
  for (int i = 0; i < head.n; ++i) {
    for (int k = 0; k < n_cells; k += 16) {
      _mm512_storeu_si512(head.queries + (size_t)i * n_cells + k,
                          Numbers::cells(projected + (size_t)i * stride + k * Numbers::PER_CELL));
    }
  }
  const float* keys = projected + width;
  for (int at = 0; at < head.padded; at += 16) {
    for (int k = 0; k < n_cells; k += 16) {
      __m512i rows[16];
      UNROLL16 for (int i = 0; i < 16; ++i) {
        const float* row = keys + (size_t)(at + i) * stride + k * Numbers::PER_CELL;
        rows[i] = at + i < head.n ? Numbers::cells(row) : _mm512_setzero_si512();
      }
      transpose(rows, head.keys + (size_t)k * head.padded + at, head.padded);
    }
  }
  const float* values = projected + 2 * width;
  Cell* place = head.values;
  for (int i = 0; i < head.n; i += Numbers::PER_CELL, place += head.size) {
    const float* row = values + (size_t)i * stride;
    const float* next = i + 1 < head.n ? row + stride : nullptr;
    for (int k = 0; k < head.size; k += 16) {
      _mm512_storeu_si512(place + k, Numbers::columns(row + k, next ? next + k : nullptr));
    }
  }
}

// Attention of one window. projected: (n, 3 * width), queries, keys and values.
// cells: scratch, (3, padded, width / n_heads). scores: scratch, (STRIPE, padded). out: (n, width).
template <class Numbers>
AVX512 void attend(const float* projected, int n, int width, int n_heads, Cell* cells,
                   float* scores, float* out) {
  const int size = width / n_heads, padded = (n + 15) & ~15;
  const size_t part = (size_t)padded * size;
  const Head head = {n, padded, size, cells, cells + part, cells + 2 * part};
  for (int h = 0; h < n_heads; ++h, projected += size, out += size) {
    arrange<Numbers>(projected, width, head);
    int i = 0;
    for (; i + STRIPE <= n; i += STRIPE) {
      attend_stripe<Numbers, STRIPE>(head, i, scores, out + (size_t)i * width, width);
    }
    for (; i + 2 <= n; i += 2) {
      attend_stripe<Numbers, 2>(head, i, scores, out + (size_t)i * width, width);
    }
    if (i < n) attend_stripe<Numbers, 1>(head, i, scores, out + (size_t)i * width, width);
  }
}

}  // namespace
