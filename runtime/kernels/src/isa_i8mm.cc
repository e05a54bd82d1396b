// The inner loops for NEON with products of byte matrices, 2 x 8 by 8 x 2 (i8mm, ARMv8.6 and
// newer).
#include "inl_includes.h"

#if defined(SHOAL_HAS_I8MM)
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif

#include "vec_neon-inl.h"

namespace shoal {
namespace {

struct Vec : Neon {
  static constexpr RegisterTiles kTiles = kI8mmTiles;
  static constexpr bool kTakesOffsets = true;

  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    if constexpr (Tokens == 1) {
      int32x4_t sums[4];
      for (auto& each : sums) each = vdupq_n_s32(0);
      for (int64_t i = 0; i < block; i += 16) {
        const int8x16_t s = vld1q_s8(x + i);
        for (int r = 0; r < 4; ++r) sums[r] = vusdotq_s32(sums[r], vld1q_u8(w[r] + i), s);
      }
      dots[0] = sums_of_four(sums);
    } else {
      matrix_dots<Tokens>(w, x, x_stride, block, dots);
    }
  }

  // Two weight rows and two activation rows at a time: a sum holds w0 x0, w0 x1, w1 x0, w1 x1.
  template <int Tokens>
  static void matrix_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                          int64_t block, I4 dots[Tokens]) {
    static_assert(Tokens % 2 == 0, "activation rows are taken in pairs");
    int32x4_t sums[Tokens / 2][2];
    for (auto& row : sums) row[0] = row[1] = vdupq_n_s32(0);
    for (int64_t i = 0; i < block; i += 16) {
      uint8x16_t rows[2][2];  // of two rows: the first eight bytes of each, the last eight
      for (int r = 0; r < 2; ++r) {
        const uint64x2_t first = vreinterpretq_u64_u8(vld1q_u8(w[2 * r] + i));
        const uint64x2_t second = vreinterpretq_u64_u8(vld1q_u8(w[2 * r + 1] + i));
        rows[r][0] = vreinterpretq_u8_u64(vzip1q_u64(first, second));
        rows[r][1] = vreinterpretq_u8_u64(vzip2q_u64(first, second));
      }
      for (int t = 0; t < Tokens / 2; ++t) {
        const int8_t* from = x + 2 * t * x_stride + i;
        const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(from));
        const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(from + x_stride));
        const int8x16_t low = vreinterpretq_s8_s64(vzip1q_s64(first, second));
        const int8x16_t high = vreinterpretq_s8_s64(vzip2q_s64(first, second));
        for (int r = 0; r < 2; ++r) {
          sums[t][r] = vusmmlaq_s32(sums[t][r], rows[r][0], low);
          sums[t][r] = vusmmlaq_s32(sums[t][r], rows[r][1], high);
        }
      }
    }
    for (int t = 0; t < Tokens / 2; ++t) {
      dots[2 * t] = vuzp1q_s32(sums[t][0], sums[t][1]);
      dots[2 * t + 1] = vuzp2q_s32(sums[t][0], sums[t][1]);
    }
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

constexpr Isa kI8mmIsa = make_isa("i8mm", product_dots);

}  // namespace shoal
#endif
