// Vector primitives for AVX-512 with VNNI; vec_portable-inl.h says what each one means. Included by
// isa_avx512vnni.cc, where the compiler may use these instructions, and by no other file.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "thresholds.h"

namespace shoal {
namespace {

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr RegisterTiles kTiles = kAvx512Tiles;
  static constexpr bool kTakesOffsets = true;
  static constexpr bool kPairsOfBlocks = true;

  using F = __m512;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static __mmask16 part(int64_t count) {
    return static_cast<__mmask16>((1u << static_cast<unsigned>(count)) - 1);
  }
  static F load_part(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(part(count), p);
  }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static void store_part(float* p, F a, int64_t count) { _mm512_mask_storeu_ps(p, part(count), a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F scale_by_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }
  static F from_codes(const uint8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i centred = _mm_xor_si128(codes, _mm_set1_epi8(-128));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(centred));
  }
  static F from_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_int8(int8_t* p, F a) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  static void unzip(F a, F b, F* even, F* odd) {
    const __m512i first =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, first, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b);
  }

  using F4 = __m128;
  using I4 = __m128i;
  static F4 sum4(const F a[4]) {
    const __m512d ab = _mm512_castps_pd(pair_sums(a[0], a[1]));
    const __m512d cd = _mm512_castps_pd(pair_sums(a[2], a[3]));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  static F pair_sums(F a, F b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  static F4 zero4() { return _mm_setzero_ps(); }
  static F4 gather4(const float* a, const float* b, const float* c, const float* d) {
    return _mm_setr_ps(*a, *b, *c, *d);
  }
  static void store4(float* p, F4 a, int64_t count) {
    _mm_mask_storeu_ps(p, count >= 4 ? 15 : static_cast<__mmask8>((1 << count) - 1), a);
  }
  static F4 add_block(F4 sum, I4 dots, int32_t offset, float x_scale, F4 w_scales) {
    const __m128 exact = _mm_cvtepi32_ps(_mm_add_epi32(dots, _mm_set1_epi32(offset)));
    return _mm_fmadd_ps(exact, _mm_mul_ps(_mm_set1_ps(x_scale), w_scales), sum);
  }
  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    if constexpr (Step == 64) {
      __m512i sums[Tokens][4];
      for (auto& row : sums) {
        for (auto& each : row) each = _mm512_setzero_si512();
      }
      for (int64_t i = 0; i < block; i += 64) {
        __m512i s[Tokens];
        for (int t = 0; t < Tokens; ++t) s[t] = _mm512_loadu_si512(x + t * x_stride + i);
        for (int r = 0; r < 4; ++r) {
          const __m512i u = _mm512_loadu_si512(w[r] + i);
          for (int t = 0; t < Tokens; ++t) sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], u, s[t]);
        }
      }
      for (int t = 0; t < Tokens; ++t) {
        const __m512i all = row_sums(sums[t]);
        const __m256i half =
            _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        dots[t] = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
      }
    } else {
      const __m256i zero = _mm256_setzero_si256();
      for (int t = 0; t < Tokens; ++t) {
        const __m256i s = load_bytes<Step>(x + t * x_stride);
        __m256i sums[4];
        for (int r = 0; r < 4; ++r) sums[r] = _mm256_dpbusd_epi32(zero, load_bytes<Step>(w[r]), s);
        dots[t] = sums_of_four(sums[0], sums[1], sums[2], sums[3]);
      }
    }
  }
  // Of two blocks of 32, which fill a vector.
  template <int Tokens>
  static void pair_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                        I4 dots[2][Tokens]) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i u[4];
    for (int r = 0; r < 4; ++r) u[r] = _mm512_loadu_si512(w[r]);
    for (int t = 0; t < Tokens; ++t) {
      const __m512i s = _mm512_loadu_si512(x + t * x_stride);
      __m512i sums[4];
      for (int r = 0; r < 4; ++r) sums[r] = _mm512_dpbusd_epi32(zero, u[r], s);
      const __m512i all = row_sums(sums);
      const __m512i both = _mm512_add_epi32(all, _mm512_shuffle_i64x2(all, all, 0xb1));
      dots[0][t] = _mm512_castsi512_si128(both);
      dots[1][t] = _mm512_extracti32x4_epi32(both, 2);
    }
  }
  // Partial sums of four rows in each quarter of a vector.
  static __m512i row_sums(const __m512i of[4]) {
    const __m512i ab = pair_sums(of[0], of[1]), cd = pair_sums(of[2], of[3]);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }
  static __m512i pair_sums(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  static __m128i sums_of_four(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i abcd = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
  }
  // Step is the block size here: 16 or 32.
  template <int Step>
  static __m256i load_bytes(const void* p) {
    if constexpr (Step == 16) {
      return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    } else {
      return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    }
  }
};

}  // namespace
}  // namespace shoal
