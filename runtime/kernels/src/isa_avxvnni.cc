// The inner loops for AVX2 with VNNI dot products, which newer processors without AVX-512 have.
//
// SHOAL_VNNI_AS_AVX512VL takes the same instruction in its AVX-512 form, so that processors that
// have only that one can test this file.
#include "inl_includes.h"

#if defined(SHOAL_HAS_AVXVNNI)
#include <immintrin.h>

#if defined(__clang__)
#if defined(SHOAL_VNNI_AS_AVX512VL)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#endif
#else
#pragma GCC push_options
#if defined(SHOAL_VNNI_AS_AVX512VL)
#pragma GCC target("avx2,fma,f16c,avx512vl,avx512vnni")
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#endif

#include "vec_avx2-inl.h"

namespace shoal {
namespace {

struct Vec : Avx2 {
  static constexpr RegisterTiles kTiles = kAvx2Tiles;
  static constexpr bool kTakesOffsets = true;

  static __m256i dot(__m256i sum, __m256i w, __m256i s) {
#if defined(SHOAL_VNNI_AS_AVX512VL)
    return _mm256_dpbusd_epi32(sum, w, s);
#else
    return _mm256_dpbusd_avx_epi32(sum, w, s);
#endif
  }
  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    const auto dots_of = [](__m256i sums[Tokens], __m256i codes, const __m256i s[Tokens]) {
      for (int t = 0; t < Tokens; ++t) sums[t] = dot(sums[t], codes, s[t]);
    };
    dots_by<Tokens, Step>(w, x, x_stride, block, dots_of, dots);
  }
};

}  // namespace
}  // namespace shoal

#include "isa_table-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shoal {

constexpr Isa kAvxVnniIsa = make_isa("avxvnni", product_dots);

}  // namespace shoal
#endif
