// What the files of the fused encoder share: targets, and functions of 16 floats.

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
