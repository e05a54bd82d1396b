// float16 as it lies in memory: conversions for single values.
#pragma once

#include <cstdint>
#include <cstring>

namespace shoal {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Bit patterns of float32 and float16.
constexpr uint32_t kFloatInfinity = 0x7f800000u;
constexpr uint32_t kFloatFirstOverflow = 0x477ff000u;   // 65520, which float16 rounds to infinity
constexpr uint32_t kFloatSmallestNormal = 0x38800000u;  // 2^-14, the smallest normal float16
constexpr uint32_t kFloatExponentShift = 0x38000000u;   // 112, by which the exponent biases differ
constexpr uint32_t kHalfInfinity = 0x7c00u;
constexpr uint32_t kHalfNan = 0x7e00u;
constexpr int kDroppedBits = 13;  // of the significand

// Nearest float16, ties to even; from 65520 on infinity; NaN stays NaN.
inline uint16_t half_of(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t half;
  if (size > kFloatInfinity) {
    half = kHalfNan;
  } else if (size >= kFloatFirstOverflow) {
    half = kHalfInfinity;
  } else if (size >= kFloatSmallestNormal) {
    const uint32_t below_half = (1u << (kDroppedBits - 1)) - 1, odd = size >> kDroppedBits & 1u;
    half = (size - kFloatExponentShift + below_half + odd) >> kDroppedBits;
  } else {  // multiples of 2^-24, which is what the last bit of 0.5 stands for
    half = bits_of(float_of_bits(size) + 0.5f) - bits_of(0.5f);
  }
  return static_cast<uint16_t>(sign | half);
}

// The same value.
inline float float_of_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size >= kHalfInfinity) return float_of_bits(sign | kFloatInfinity | size << kDroppedBits);
  const float value = float_of_bits(size << kDroppedBits) * 0x1p112f;  // moves the exponent's bias
  return float_of_bits(sign | bits_of(value));
}

}  // namespace shoal
