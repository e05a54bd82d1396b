// int8 products over the vector primitives of one instruction set. Included through isa_table-inl.h
// by every isa_*.cc, whose struct Vec makes them other code in each.
#pragma once

#include <cfloat>
#include <cstdint>
#include <type_traits>

#include "isa.h"
#include "thresholds.h"

namespace shoal {
namespace {

constexpr float kLargestCode = 127;

void quantize_block(const float* x, int64_t block, int8_t* codes, float* scale, int32_t* offset) {
  Vec::F peak = Vec::zero(), odd_values = Vec::zero();
  for (int64_t i = 0; i < block; i += Vec::kWidth) {
    const Vec::F values = Vec::load(x + i);
    peak = Vec::max(peak, Vec::abs(values));
    odd_values = Vec::fma(values, Vec::zero(), odd_values);  // NaN if any is NaN or infinite
  }
  const float check = Vec::sum(odd_values);
  if (!(check == 0)) {
    for (int64_t i = 0; i < block; ++i) codes[i] = 0;
    *scale = check;
    *offset = 0;
    return;
  }
  const float step = Vec::largest(peak) / kLargestCode;
  *scale = step < FLT_MIN ? 0.0f : step;  // below it 1 / scale could overflow
  const Vec::F reciprocal = Vec::set(*scale > 0 ? 1.0f / *scale : 0.0f);
  Vec::F sums = Vec::zero();  // exact: integers below 2^24
  for (int64_t i = 0; i < block; i += Vec::kWidth) {
    const Vec::F rounded = Vec::round(Vec::mul(Vec::load(x + i), reciprocal));
    Vec::store_int8(codes + i, rounded);
    sums = Vec::add(sums, rounded);
  }
  *offset = -kZeroPoint * static_cast<int32_t>(Vec::sum(sums));
}

void quantize(const float* x, int64_t rows, int64_t k, int64_t block, int64_t to_row_blocks,
              Int8Rows to) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < k / block; ++b) {
      const int64_t at = row * to_row_blocks + b;
      quantize_block(x + row * k + b * block, block, to.codes + at * block, to.scales + at,
                     to.offsets + at);
    }
  }
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// kProductRows weight rows (some repeated at the end of the weight) by Tokens activation rows, in
// steps of Step bytes. Fetch: also prefetch the rows that follow.
template <int Tokens, int Step, bool Fetch>
void product_tile(const Int8Weight& weight, const int64_t rows[kProductRows], int64_t valid,
                  const Int8Rows& x, int64_t token, float* y, int64_t y_stride) {
  const int64_t blocks = weight.k / weight.block;
  const uint8_t* w[kProductRows];
  const float* s[kProductRows];
  for (int r = 0; r < kProductRows; ++r) {
    w[r] = weight.codes + rows[r] * weight.k;
    s[r] = weight.scales + rows[r] * blocks;
  }
  Vec::F4 sums[Tokens];
  for (auto& each : sums) each = Vec::zero4();
  const int8_t* codes = x.codes + token * weight.k;
  const auto add = [&](int64_t b, const typename Vec::I4 dots[Tokens]) {
    const Vec::F4 w_scales = Vec::gather4(s[0] + b, s[1] + b, s[2] + b, s[3] + b);
    for (int t = 0; t < Tokens; ++t) {
      const int64_t at = (token + t) * blocks + b;
      const int32_t offset = Vec::kTakesOffsets ? x.offsets[at] : 0;
      sums[t] = Vec::add_block(sums[t], dots[t], offset, x.scales[at], w_scales);
    }
    if constexpr (Fetch) {
      if (b % kCacheLineFloats == 0) {
        for (const float* each : s) prefetch(each + kProductRows * blocks + b);
      }
    }
  };
  const auto advance = [&](int64_t bytes) {
    codes += bytes;
    for (auto& each : w) {
      if constexpr (Fetch) {
        // Processors stop prefetching at the end of a 4 KiB page, which mapped files have; so
        // ask for the rows that follow (harmless past the end of the weight).
        for (int64_t i = 0; i < bytes; i += kCacheLineBytes) {
          prefetch(each + kProductRows * weight.k + i);
        }
      }
      each += bytes;
    }
  };
  int64_t b = 0;
  const auto take_pairs = [&](auto vec) {  // a template: few instruction sets have pair_dots
    for (; b + 2 <= blocks; b += 2) {
      typename Vec::I4 dots[2][Tokens];
      decltype(vec)::template pair_dots<Tokens>(w, codes, weight.k, dots);
      add(b, dots[0]);
      add(b + 1, dots[1]);
      advance(2 * Step);
    }
  };
  if constexpr (Step == 32 && Vec::kPairsOfBlocks) take_pairs(Vec{});
  for (; b < blocks; ++b) {
    typename Vec::I4 dots[Tokens];
    Vec::block_dots<Tokens, Step>(w, codes, weight.k, weight.block, dots);
    add(b, dots);
    advance(weight.block);
  }
  for (int t = 0; t < Tokens; ++t) Vec::store4(y + (token + t) * y_stride, sums[t], valid);
}

// All activation rows, kProductRows weight rows at a time: their bytes come from memory once and
// stay in the first-level cache for the following activation rows.
template <int Step>
void product_by_rows(const Int8Weight& weight, int64_t first, int64_t count, const Int8Rows& x,
                     int64_t tokens, float* y, int64_t y_stride) {
  for (int64_t n = 0; n < count; n += kProductRows) {
    const int64_t valid = count - n < kProductRows ? count - n : kProductRows;
    int64_t rows[kProductRows];
    for (int r = 0; r < kProductRows; ++r) rows[r] = first + n + (r < valid ? r : valid - 1);
    int64_t t = 0;
    const auto take = [&](auto tile) {
      constexpr int kTile = decltype(tile)::value;
      while (t + kTile <= tokens) {
        if (t == 0) {
          product_tile<kTile, Step, true>(weight, rows, valid, x, t, y + n, y_stride);
        } else {
          product_tile<kTile, Step, false>(weight, rows, valid, x, t, y + n, y_stride);
        }
        t += kTile;
      }
    };
    take(std::integral_constant<int, Vec::kTiles.product_tokens>{});
    take(std::integral_constant<int, 2>{});
    take(std::integral_constant<int, 1>{});
  }
}

void product_dots(const Int8Weight& weight, int64_t first, int64_t count, const Int8Rows& x,
                  int64_t tokens, float* y, int64_t y_stride) {
  switch (weight.block) {
    case 16:
      return product_by_rows<16>(weight, first, count, x, tokens, y, y_stride);
    case 32:
      return product_by_rows<32>(weight, first, count, x, tokens, y, y_stride);
    default:
      return product_by_rows<64>(weight, first, count, x, tokens, y, y_stride);
  }
}

}  // namespace
}  // namespace shoal
