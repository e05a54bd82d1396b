// int8 products of many tokens with AVX512-VNNI. 32 weight rows at a time are repacked into scratch
// memory so that a vector holds four inputs of 16 outputs; a register tile of them times six tokens
// then needs no sums across a vector. Same arithmetic in the same order as product_dots.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa.h"
#include "scratch.h"

namespace shoal {
namespace {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kManyTokens = 8;  // from here on packing pays
constexpr int kTileTokens = 6;

struct Panel {
  uint8_t* codes;  // [k / 4, 32, 4]
  float* scales;   // [k / block, 32]
};

// 16 rows of 16 four-byte groups -> 16 groups of 16 rows.
void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Packs rows first..first+31; past `valid` rows the last one is repeated.
void pack(const Int8Weight& weight, int64_t first, int64_t valid, const Panel& panel) {
  const int64_t blocks = weight.k / weight.block, groups = weight.k / 4;
  for (int64_t half = 0; half < kPanelRows; half += 16) {
    const uint8_t* rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t row = first + (half + i < valid ? half + i : valid - 1);
      rows[i] = weight.codes + row * weight.k;
      for (int64_t b = 0; b < blocks; ++b) {
        panel.scales[b * kPanelRows + half + i] = weight.scales[row * blocks + b];
      }
    }
    for (int64_t g = 0; g < groups; g += 16) {
      const int64_t count = groups - g < 16 ? groups - g : 16;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        __builtin_prefetch(rows[i] + 4 * g + 512, 0, 2);
        r[i] = _mm512_maskz_loadu_epi32(mask, rows[i] + 4 * g);
      }
      transpose16(r);
      for (int64_t i = 0; i < count; ++i) {
        _mm512_store_si512(panel.codes + ((g + i) * kPanelRows + half) * 4, r[i]);
      }
    }
  }
}

// The codes of the next panel, brought nearer a few at a time while this one is computed: packing
// would otherwise wait for memory while the multipliers idle, and they for packing.
struct Ahead {
  const uint8_t* at;
  const uint8_t* end;
  int64_t step_bytes;  // for each block of each register tile

  Ahead(const uint8_t* next, const Int8Weight& weight, int64_t tokens)
      : at(next), end(next + kPanelRows * weight.k) {
    const int64_t steps = (tokens + kTileTokens - 1) / kTileTokens * (weight.k / weight.block);
    step_bytes = (kPanelRows * weight.k + steps - 1) / steps;
  }
  void step() {
    const uint8_t* until = at + step_bytes < end ? at + step_bytes : end;
    for (; at < until; at += 64) fetch(at);
  }
};

template <int Tokens>
void panel_tile(const Int8Weight& weight, const Panel& panel, int64_t valid, const Int8Rows& x,
                int64_t token, float* y, int64_t y_stride, Ahead* ahead) {
  const int64_t blocks = weight.k / weight.block;
  const int8_t* codes[Tokens];
  for (int t = 0; t < Tokens; ++t) codes[t] = x.codes + (token + t) * weight.k;
  const uint8_t* w = panel.codes;
  __m512 sums[Tokens][2];
  for (auto& each : sums) each[0] = each[1] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    ahead->step();
    __m512i dots[Tokens][2];
    for (int t = 0; t < Tokens; ++t) {
      dots[t][0] = dots[t][1] = _mm512_set1_epi32(x.offsets[(token + t) * blocks + b]);
    }
    for (int64_t i = b * weight.block; i < (b + 1) * weight.block; i += 4) {
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
      w += 4 * kPanelRows;
      for (int t = 0; t < Tokens; ++t) {
        int32_t four;
        __builtin_memcpy(&four, codes[t] + i, sizeof four);
        const __m512i a = _mm512_set1_epi32(four);
        dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], w0, a);
        dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], w1, a);
      }
    }
    const __m512 s0 = _mm512_load_ps(panel.scales + b * kPanelRows);
    const __m512 s1 = _mm512_load_ps(panel.scales + b * kPanelRows + 16);
    for (int t = 0; t < Tokens; ++t) {
      const __m512 s = _mm512_set1_ps(x.scales[(token + t) * blocks + b]);
      sums[t][0] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][0]), _mm512_mul_ps(s, s0), sums[t][0]);
      sums[t][1] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][1]), _mm512_mul_ps(s, s1), sums[t][1]);
    }
  }
  const auto mask = static_cast<uint32_t>((uint64_t{1} << valid) - 1);
  for (int t = 0; t < Tokens; ++t) {
    float* to = y + (token + t) * y_stride;
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), sums[t][0]);
    _mm512_mask_storeu_ps(to + 16, static_cast<__mmask16>(mask >> 16), sums[t][1]);
  }
}

void product_tiles(const Int8Weight& weight, int64_t first, int64_t count, const Int8Rows& x,
                   int64_t tokens, float* y, int64_t y_stride) {
  if (tokens < kManyTokens) {
    product_dots(weight, first, count, x, tokens, y, y_stride);
    return;
  }
  // No ScratchLayout: its inline functions must not be compiled for this instruction set only.
  const int64_t code_bytes = weight.k * kPanelRows;
  const int64_t scale_bytes = weight.k / weight.block * kPanelRows * int64_t{sizeof(float)};
  auto* bytes = static_cast<uint8_t*>(
      scratch_bytes(Scratch::kPanel, static_cast<size_t>(code_bytes + scale_bytes)));
  const Panel panel{bytes, reinterpret_cast<float*>(bytes + code_bytes)};
  for (int64_t n = 0; n < count; n += kPanelRows) {
    const int64_t valid = count - n < kPanelRows ? count - n : kPanelRows;
    pack(weight, first + n, valid, panel);
    const bool is_last = n + kPanelRows >= count;
    const uint8_t* following = weight.codes + (first + n + valid) * weight.k;
    Ahead ahead(is_last && weight.then != nullptr ? weight.then : following, weight, tokens);
    int64_t t = 0;
    const auto take = [&](auto tile) {
      constexpr int kTile = decltype(tile)::value;
      panel_tile<kTile>(weight, panel, valid, x, t, y + n, y_stride, &ahead);
      t += kTile;
    };
    while (t + kTileTokens <= tokens) take(std::integral_constant<int, kTileTokens>{});
    switch (tokens - t) {
      case 5:
        take(std::integral_constant<int, 5>{});
        break;
      case 4:
        take(std::integral_constant<int, 4>{});
        break;
      case 3:
        take(std::integral_constant<int, 3>{});
        break;
      case 2:
        take(std::integral_constant<int, 2>{});
        break;
      case 1:
        take(std::integral_constant<int, 1>{});
        break;
    }
  }
}

}  // namespace
}  // namespace shoal
