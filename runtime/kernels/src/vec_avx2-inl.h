// Vector primitives for AVX2 with FMA, but for the int8 dot products; vec_portable-inl.h says what
// each one means. Included by isa_avx2.cc and isa_avxvnni.cc, which add these products, where the
// compiler may use their instructions: the same source gives each its own code.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shoal {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr bool kPairsOfBlocks = false;  // whether there is pair_dots, of two blocks of 32

  using F = __m256;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static __m256i part(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  }
  static F load_part(const float* p, int64_t count) { return _mm256_maskload_ps(p, part(count)); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static void store_part(float* p, F a, int64_t count) { _mm256_maskstore_ps(p, part(count), a); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power_of_two(F a, F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static float sum(F a) {
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
  }
  static float largest(F a) {
    __m128 r = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    r = _mm_max_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
  }
  static F from_codes(const uint8_t* p) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i centred = _mm_xor_si128(codes, _mm_set1_epi8(-128));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(centred));
  }
  static F from_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_int8(int8_t* p, F a) {
    const __m256i wide = _mm256_cvtps_epi32(a);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static void unzip(F a, F b, F* even, F* odd) {
    const F low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(low, high, 0x88);
    *odd = _mm256_shuffle_ps(low, high, 0xdd);
  }

  using F4 = __m128;
  using I4 = __m128i;
  static F4 sum4(const F a[4]) {
    const F all = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  }
  static F4 zero4() { return _mm_setzero_ps(); }
  static F4 gather4(const float* a, const float* b, const float* c, const float* d) {
    return _mm_setr_ps(*a, *b, *c, *d);
  }
  static void store4(float* p, F4 a, int64_t count) {
    if (count >= 4) {
      _mm_storeu_ps(p, a);
      return;
    }
    alignas(16) float all[4];
    _mm_store_ps(all, a);
    for (int i = 0; i < count; ++i) p[i] = all[i];
  }
  static F4 add_block(F4 sum, I4 dots, int32_t offset, float x_scale, F4 w_scales) {
    const __m128 exact = _mm_cvtepi32_ps(_mm_add_epi32(dots, _mm_set1_epi32(offset)));
    return _mm_fmadd_ps(exact, _mm_mul_ps(_mm_set1_ps(x_scale), w_scales), sum);
  }
  // Dot products of one block of four weight rows with Tokens activation rows, by
  // dots(sums, w, s): adds w times each s[t] to sums[t], products of four neighbours to one sum.
  template <int Tokens, int Step, class Dots>
  static void dots_by(const uint8_t* const w[4], const int8_t* x, int64_t x_stride, int64_t block,
                      const Dots& dots_of, I4 dots[Tokens]) {
    __m256i sums[4][Tokens];
    for (auto& row : sums) {
      for (auto& each : row) each = _mm256_setzero_si256();
    }
    constexpr int kStep = Step < 32 ? 16 : 32;
    for (int64_t i = 0; i < block; i += kStep) {
      __m256i s[Tokens];
      for (int t = 0; t < Tokens; ++t) s[t] = load_bytes<kStep>(x + t * x_stride + i);
      for (int r = 0; r < 4; ++r) dots_of(sums[r], load_bytes<kStep>(w[r] + i), s);
    }
    for (int t = 0; t < Tokens; ++t) {
      const __m256i ab = _mm256_hadd_epi32(sums[0][t], sums[1][t]);
      const __m256i cd = _mm256_hadd_epi32(sums[2][t], sums[3][t]);
      const __m256i abcd = _mm256_hadd_epi32(ab, cd);
      dots[t] = _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
    }
  }
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
