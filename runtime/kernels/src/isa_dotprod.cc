// The inner loops for NEON with dot products of bytes (ARMv8.2 and newer).
#include "inl_includes.h"

#if defined(SHOAL_HAS_DOTPROD)
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "vec_neon-inl.h"

namespace shoal {
namespace {

struct Vec : Neon {
  static constexpr RegisterTiles kTiles = kDotprodTiles;
  static constexpr bool kTakesOffsets = false;

  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    const auto dot = [](int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); };
    dots_by<Tokens>(w, x, x_stride, block, dot, dots);
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

constexpr Isa kDotprodIsa = make_isa("dotprod", product_dots);

}  // namespace shoal
#endif
