// The version for NEON with dot products of bytes (ARMv8.2 and newer). Everything that is compiled
// for them has internal linkage: an inline function shared with other files could be kept in that
// form and crash elsewhere.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "vec_neon.h"

namespace shoal {
namespace {

struct Vec : Neon {
  static constexpr int kTokens = 4;
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

#include "float_body.h"
#include "int8_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shoal {

const Isa kDotprodIsa = {"dotprod",    quantize, product_dots,      swiglu,       dequantize,
                         widen_halves, dot_rows, add_weighted_rows, softmax_part, blend};

}  // namespace shoal
#endif
