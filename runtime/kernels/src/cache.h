// The latent cache as the kernels see it: rows of one of three types, read as floats.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"

namespace shoal::attention {

// A row is a latent and a rope key. In an int8 cache the latent has a scale for each block.
struct Cache {
  enum Type { kFloat32, kFloat16, kInt8 };
  Type type;
  int64_t latent, rope;
  const void* rows;       // [cached, latent + rope]; of int8: codes [cached, latent]
  const float* scales;    // int8: [cached, latent / block]
  const uint16_t* ropes;  // int8: [cached, rope]
  int64_t block;          // int8: latent values of one scale

  int64_t row() const { return latent + rope; }

  // Floats of scratch memory that `read` needs for `count` rows.
  int64_t scratch(int64_t count) const { return type == kFloat32 ? 0 : count * row(); }

  // Rows first..first+count-1 as floats [count, row()]: where they lie, or in `scratch`.
  const float* read(int64_t first, int64_t count, float* floats) const {
    if (type == kFloat32) return static_cast<const float*>(rows) + first * row();
    if (type == kFloat16) {
      g_isa->widen_halves(static_cast<const uint16_t*>(rows) + first * row(), count * row(),
                          floats);
      return floats;
    }
    const int64_t blocks = latent / block;
    for (int64_t r = 0; r < count; ++r) {
      float* to = floats + r * row();
      g_isa->dequantize(static_cast<const uint8_t*>(rows) + (first + r) * latent,
                        scales + (first + r) * blocks, latent, block, to);
      g_isa->widen_halves(ropes + (first + r) * rope, rope, to + latent);
    }
    return floats;
  }
};

}  // namespace shoal::attention
