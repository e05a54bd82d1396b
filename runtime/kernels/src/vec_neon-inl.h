// Vector primitives for NEON, but for the int8 dot products; vec_portable-inl.h says what each one
// means. Included by isa_neon.cc, isa_dotprod.cc and isa_i8mm.cc, which add these products, where
// the compiler may use their instructions: the same source gives each its own code.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace shoal {
namespace {

struct Neon {
  static constexpr int kWidth = 4;
  static constexpr bool kPairsOfBlocks = false;  // whether there is pair_dots, of two blocks of 32

  using F = float32x4_t;

  static F zero() { return vdupq_n_f32(0); }
  static F set(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static F load_part(const float* p, int64_t count) {
    float all[kWidth] = {};
    for (int i = 0; i < kWidth && i < count; ++i) all[i] = p[i];
    return vld1q_f32(all);
  }
  static void store(float* p, F a) { vst1q_f32(p, a); }
  static void store_part(float* p, F a, int64_t count) {
    float all[kWidth];
    vst1q_f32(all, a);
    for (int i = 0; i < kWidth && i < count; ++i) p[i] = all[i];
  }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // By comparison: vminq_f32 and vmaxq_f32 give NaN where either is NaN, not the second operand.
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F round(F a) { return vrndnq_f32(a); }
  static F scale_by_power_of_two(F a, F n) {
    const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
  static float sum(F a) { return vaddvq_f32(a); }
  static float largest(F a) { return vmaxvq_f32(a); }
  static F from_codes(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const uint8x8_t centred = veor_u8(vreinterpret_u8_u32(vdup_n_u32(four)), vdup_n_u8(128));
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(centred));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static F from_halves(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static void store_int8(int8_t* p, F a) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(a));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    std::memcpy(p, &four, sizeof four);
  }
  static void unzip(F a, F b, F* even, F* odd) {
    *even = vuzp1q_f32(a, b);
    *odd = vuzp2q_f32(a, b);
  }

  using F4 = float32x4_t;
  using I4 = int32x4_t;
  static F4 sum4(const F a[4]) {
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
  }
  static F4 zero4() { return vdupq_n_f32(0); }
  static F4 gather4(const float* a, const float* b, const float* c, const float* d) {
    return F4{*a, *b, *c, *d};
  }
  static void store4(float* p, F4 a, int64_t count) {
    if (count >= 4) {
      vst1q_f32(p, a);
    } else {
      store_part(p, a, count);
    }
  }
  static F4 add_block(F4 sum, I4 dots, int32_t offset, float x_scale, F4 w_scales) {
    const F4 exact = vcvtq_f32_s32(vaddq_s32(dots, vdupq_n_s32(offset)));
    return vfmaq_f32(sum, exact, vmulq_n_f32(w_scales, x_scale));
  }

  // The sums of four vectors of integers.
  static I4 sums_of_four(const int32x4_t a[4]) {
    return vpaddq_s32(vpaddq_s32(a[0], a[1]), vpaddq_s32(a[2], a[3]));
  }
  // 16 codes less their zero point.
  static int8x16_t centred(const uint8_t* p) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128)));
  }
  // Dot products of one block of four weight rows with Tokens activation rows, by
  // dot(sums, w, x), which adds products of 16 bytes to four sums.
  template <int Tokens, class Dot>
  static void dots_by(const uint8_t* const w[4], const int8_t* x, int64_t x_stride, int64_t block,
                      const Dot& dot, I4 dots[Tokens]) {
    int32x4_t sums[Tokens][4];
    for (auto& row : sums) {
      for (auto& each : row) each = vdupq_n_s32(0);
    }
    for (int64_t i = 0; i < block; i += 16) {
      int8x16_t s[Tokens];
      for (int t = 0; t < Tokens; ++t) s[t] = vld1q_s8(x + t * x_stride + i);
      for (int r = 0; r < 4; ++r) {
        const int8x16_t row = centred(w[r] + i);
        for (int t = 0; t < Tokens; ++t) sums[t][r] = dot(sums[t][r], row, s[t]);
      }
    }
    for (int t = 0; t < Tokens; ++t) dots[t] = sums_of_four(sums[t]);
  }
};

}  // namespace
}  // namespace shoal
