// The inner loops for NEON as every 64-bit ARM processor has it.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "inl_includes.h"

#include "vec_neon-inl.h"

namespace shoal {
namespace {

struct Vec : Neon {
  static constexpr RegisterTiles kTiles = kNeonTiles;
  static constexpr bool kTakesOffsets = false;

  // Two products fit into 16 bits: 2 * 128 * 127.
  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    const auto dot = [](int32x4_t sum, int8x16_t a, int8x16_t b) {
      const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
      return vpadalq_s16(sum, vmlal_high_s8(low, a, b));
    };
    dots_by<Tokens>(w, x, x_stride, block, dot, dots);
  }
};

}  // namespace
}  // namespace shoal

#include "isa_table-inl.h"

namespace shoal {

constexpr Isa kNeonIsa = make_isa("neon", product_dots);

}  // namespace shoal
#endif
