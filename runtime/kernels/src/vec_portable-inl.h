// Vector primitives in plain C++, and the meaning of each: the other vec_*-inl.h offer the same.
// Loops over eight values, which compilers turn into whatever vectors the target has. Included by
// isa_portable.cc; as a vec_*-inl.h it defines Vec anew, so no two of them fit into one file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "isa.h"
#include "thresholds.h"

namespace shoal {
namespace {

struct Vec {
  static constexpr int kWidth = 8;
  static constexpr RegisterTiles kTiles = kPortableTiles;
  static constexpr bool kPairsOfBlocks = false;  // whether there is pair_dots, of two blocks of 32
  static constexpr bool kTakesOffsets = true;    // block_dots leaves the zero point to the offset

  struct F {
    float v[kWidth];
  };

  template <class Action>
  static F each(const Action& action) {
    F r;
    for (int i = 0; i < kWidth; ++i) r.v[i] = action(i);
    return r;
  }
  static F zero() { return set(0); }
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static F load_part(const float* p, int64_t count) {
    return each([&](int i) { return i < count ? p[i] : 0.0f; });
  }
  static void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static void store_part(float* p, F a, int64_t count) {
    for (int i = 0; i < count; ++i) p[i] = a.v[i];
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  // The second operand where either is NaN, as the processor instructions have it.
  static F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F abs(F a) {
    return each([&](int i) { return std::fabs(a.v[i]); });
  }
  // Nearest integer, ties to even, for |a| < 2^22: beyond 2^23 a float has no room for a fraction.
  static F round(F a) {
    const float big = 0x1.8p23f;
    return each([&](int i) { return (a.v[i] + big) - big; });
  }
  // a * 2^n for integral n in -126..127.
  static F scale_by_power_of_two(F a, F n) {
    return each([&](int i) {
      const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
      float power;
      std::memcpy(&power, &bits, sizeof power);
      return a.v[i] * power;
    });
  }
  static float sum(F a) {
    float r = 0;
    for (float x : a.v) r += x;
    return r;
  }
  static float largest(F a) {
    float r = a.v[0];
    for (float x : a.v) r = r > x ? r : x;
    return r;
  }
  // kWidth codes less their zero point.
  static F from_codes(const uint8_t* p) {
    return each([&](int i) { return static_cast<float>(static_cast<int>(p[i]) - kZeroPoint); });
  }
  // kWidth float16 values.
  static F from_halves(const uint16_t* p) {
    return each([&](int i) { return float_of_half(p[i]); });
  }
  // Integral values in -128..127 as bytes.
  static void store_int8(int8_t* p, F a) {
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(a.v[i]);
  }
  // Even and odd elements of two vectors.
  static void unzip(F a, F b, F* even, F* odd) {
    float all[2 * kWidth];
    store(all, a);
    store(all + kWidth, b);
    *even = each([&](int i) { return all[2 * i]; });
    *odd = each([&](int i) { return all[2 * i + 1]; });
  }

  // Four values of one kind: the outputs of four weight rows.
  struct F4 {
    float v[4];
  };
  struct I4 {
    int32_t v[4];
  };
  // The sums of four vectors.
  static F4 sum4(const F a[4]) { return {{sum(a[0]), sum(a[1]), sum(a[2]), sum(a[3])}}; }
  static F4 zero4() { return {{0, 0, 0, 0}}; }
  static F4 gather4(const float* a, const float* b, const float* c, const float* d) {
    return {{*a, *b, *c, *d}};
  }
  static void store4(float* p, F4 a, int64_t count) {
    for (int i = 0; i < count; ++i) p[i] = a.v[i];
  }
  // sum + (dots + offset) * (x_scale * w_scales)
  static F4 add_block(F4 sum, I4 dots, int32_t offset, float x_scale, F4 w_scales) {
    F4 r;
    for (int i = 0; i < 4; ++i) {
      const float scale = x_scale * w_scales.v[i];
      r.v[i] = std::fma(static_cast<float>(dots.v[i] + offset), scale, sum.v[i]);
    }
    return r;
  }
  // For each activation row: dot products of one block of four weight rows (unsigned) with it.
  template <int Tokens, int Step>
  static void block_dots(const uint8_t* const w[4], const int8_t* x, int64_t x_stride,
                         int64_t block, I4 dots[Tokens]) {
    for (int t = 0; t < Tokens; ++t) {
      for (int r = 0; r < 4; ++r) {
        int32_t sum = 0;
        for (int64_t i = 0; i < block; ++i) {
          sum += static_cast<int32_t>(w[r][i]) * static_cast<int32_t>(x[t * x_stride + i]);
        }
        dots[t].v[r] = sum;
      }
    }
  }
};

}  // namespace
}  // namespace shoal
