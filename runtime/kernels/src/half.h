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

// Nearest float16, ties to even; from 65520 on infinity; NaN stays NaN.
inline uint16_t half_of(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t half;
  if (size > 0x7f800000u) {
    half = 0x7e00u;
  } else if (size >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (size >= 0x38800000u) {  // 2^-14, the smallest normal float16
    half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  } else {  // multiples of 2^-24, which is what the last bit of 0.5 stands for
    half = bits_of(float_of_bits(size) + 0.5f) - bits_of(0.5f);
  }
  return static_cast<uint16_t>(sign | half);
}

// The same value.
inline float float_of_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | size << 13);
  const float value = float_of_bits(size << 13) * 0x1p112f;  // moves the exponent's bias
  return float_of_bits(sign | bits_of(value));
}

}  // namespace shoal
