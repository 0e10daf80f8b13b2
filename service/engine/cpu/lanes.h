/* Registers of LANES numbers of 32 bits, with AVX-512 or with AVX2 and FMA: what the compiled code for CPUs is written in. */

#pragma once

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef int16_t Narrow __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#if LANES == 16
/* a * b + c, rounded once. */
INLINE Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Ints nearest(Floats x) { return (Ints)_mm512_cvtps_epi32((__m512)x); }
INLINE float sum_of(Floats x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float largest_of(Floats x) { return _mm512_reduce_max_ps((__m512)x); }

INLINE __m512 sums_of_two(Floats a, Floats b) {
  return _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
}

INLINE __m512 sums_of_four(const Floats *x) {
  const __m512 low = sums_of_two(x[0], x[1]), high = sums_of_two(x[2], x[3]);
  return _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
}

INLINE __m512 sums_of_eight(const Floats *x) {
  const __m512 low = sums_of_four(x), high = sums_of_four(x + 4);
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xEE));
}

/* The sum of each of LANES registers, all in the same order. */
INLINE Floats sums_of(const Floats *x) {
  const __m512 low = sums_of_eight(x), high = sums_of_eight(x + 8);
  return (Floats)_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}
#else
INLINE Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE Ints nearest(Floats x) { return (Ints)_mm256_cvtps_epi32((__m256)x); }

INLINE float sum_of(Floats x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float largest_of(Floats x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE __m256 sums_of_four(const Floats *x) {
  return _mm256_hadd_ps(_mm256_hadd_ps((__m256)x[0], (__m256)x[1]), _mm256_hadd_ps((__m256)x[2], (__m256)x[3]));
}

INLINE Floats sums_of(const Floats *x) {
  const __m256 low = sums_of_four(x), high = sums_of_four(x + 4);
  return (Floats)_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
#endif

INLINE Floats all(float x) { return x - (Floats){}; }
INLINE Floats load(const float *from) { return *(const Floats *)from; }
INLINE void store(Floats x, float *to) { *(Floats *)to = x; }

INLINE Floats exponential(Floats x) {
  /* Cephes' polynomial; beyond these bounds float32 has no exponentials. What is no number stays so. */
  x = larger(all(-87.0f), smaller(all(88.0f), x));
  const Ints n = nearest(x * 1.44269504f);
  const Floats whole = __builtin_convertvector(n, Floats);
  const Floats r = fused(whole, all(2.12194440e-4f), fused(whole, all(-0.693359375f), x));
  Floats p = fused(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(5.0000001201e-1f));
  p = fused(p, r * r, r + 1.0f);
  return p * (Floats)((n + 127) << 23);
}
