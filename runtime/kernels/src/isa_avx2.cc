// The inner loops for AVX2 with FMA and F16C.
#if defined(__x86_64__)
#include <immintrin.h>

#include "inl_includes.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2-inl.h"

namespace shoal {
namespace {

struct Vec : Avx2 {
  static constexpr RegisterTiles kTiles = kAvx2Tiles;
  static constexpr bool kTakesOffsets = false;  // block_dots subtracts the zero point itself

  // |w| * (s with the sign of w), summed in fours: the instruction that multiplies bytes takes one
  // operand unsigned, and saturates sums of two products at 16 bits, which 128 * 127 * 2 fits.
  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    const auto dots_of = [](__m256i sums[Tokens], __m256i codes, const __m256i s[Tokens]) {
      const __m256i centred = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
      const __m256i magnitude = _mm256_abs_epi8(centred);
      for (int t = 0; t < Tokens; ++t) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(s[t], centred));
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        sums[t] = _mm256_add_epi32(sums[t], fours);
      }
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

constexpr Isa kAvx2Isa = make_isa("avx2", product_dots);

}  // namespace shoal
#endif
