// The files of the fused encoder share these: targets, and functions of 16 floats.

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE AVX512 inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")

namespace {

// A stripe of rows times a group of columns fills the registers: 6 x 4 of 32.
constexpr int STRIPE = 6, GROUP = 64;

INLINE __m512 set(float value) { return _mm512_set1_ps(value); }

// 32 bits of any kind.
typedef uint32_t Cell;

// Transpose 16 rows of 16 cells, of 32 bits. out: 16 rows, `stride` cells apart.
INLINE void transpose(__m512i (&rows)[16], Cell* out, int stride) {
  __m512 r[16], t[16];
  UNROLL16 for (int i = 0; i < 16; ++i) r[i] = _mm512_castsi512_ps(rows[i]);
  // Pairs of rows, then groups of four: r[4 g + c] has the columns c, c + 4, c + 8, c + 12 of one.
  UNROLL16 for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLL16 for (int i = 0; i < 16; i += 4) {
    const __m512d low = _mm512_castps_pd(t[i]), high = _mm512_castps_pd(t[i + 1]);
    const __m512d next_low = _mm512_castps_pd(t[i + 2]), next_high = _mm512_castps_pd(t[i + 3]);
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
  }
  UNROLL16 for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    const __m512 next_even = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 next_odd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    Cell* place = out + (size_t)c * stride;
    _mm512_storeu_ps(place, _mm512_shuffle_f32x4(even, next_even, 0x88));
    _mm512_storeu_ps(place + 4 * (size_t)stride, _mm512_shuffle_f32x4(odd, next_odd, 0x88));
    _mm512_storeu_ps(place + 8 * (size_t)stride, _mm512_shuffle_f32x4(even, next_even, 0xdd));
    _mm512_storeu_ps(place + 12 * (size_t)stride, _mm512_shuffle_f32x4(odd, next_odd, 0xdd));
  }
}

// e^x, with a relative error below 2e-7, for x <= 0. Cephes' polynomial.
INLINE __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, set(-87.f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, set(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, set(-2.12194440e-4f), r);
  __m512 p = set(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, set(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, set(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, set(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, set(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, set(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, set(1.f)));
  return _mm512_scalef_ps(p, n);
}

}  // namespace
