// int8 products of many tokens with AVX512-VNNI. kPanelRows weight rows at a time are packed into
// scratch memory so that a vector holds four inputs of 16 outputs; a register tile of them times
// kPanelTokens tokens then needs no sums across a vector. Same arithmetic in the same order as
// product_dots. Included by isa_avx512vnni.cc, where the compiler may use these instructions, and
// by no other file.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa.h"
#include "scratch.h"
#include "thresholds.h"

namespace shoal {
namespace {

constexpr int kLanes = Vec::kWidth;           // outputs of one vector
constexpr int64_t kVectorBytes = kLanes * 4;  // four inputs of each
static_assert(kPanelRows == 2 * kLanes, "a register tile has two vectors of outputs");

struct Panel {
  uint8_t* codes;  // [k / 4, kPanelRows, 4]
  float* scales;   // [k / block, kPanelRows]
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

// Packs rows first..first+kPanelRows-1; past `valid` rows the last one is repeated.
void pack(const Int8Weight& weight, int64_t first, int64_t valid, const Panel& panel) {
  const int64_t blocks = weight.k / weight.block, groups = weight.k / 4;
  for (int64_t half = 0; half < kPanelRows; half += kLanes) {
    const uint8_t* rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t row = first + (half + i < valid ? half + i : valid - 1);
      rows[i] = weight.codes + row * weight.k;
      for (int64_t b = 0; b < blocks; ++b) {
        panel.scales[b * kPanelRows + half + i] = weight.scales[row * blocks + b];
      }
    }
    for (int64_t g = 0; g < groups; g += kLanes) {
      const int64_t count = groups - g < kLanes ? groups - g : kLanes;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
      __m512i r[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        prefetch(rows[i] + 4 * g + kPackPrefetchBytes);
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
struct PanelPrefetch {
  const uint8_t* at;
  const uint8_t* end;
  int64_t step_bytes;  // for each block of each register tile

  PanelPrefetch(const uint8_t* codes, const Int8Weight& weight, int64_t tokens)
      : at(codes), end(codes + kPanelRows * weight.k) {
    const int64_t steps = (tokens + kPanelTokens - 1) / kPanelTokens * (weight.k / weight.block);
    step_bytes = (kPanelRows * weight.k + steps - 1) / steps;
  }
  void step() {
    const uint8_t* until = at + step_bytes < end ? at + step_bytes : end;
    for (; at < until; at += kCacheLineBytes) prefetch(at);
  }
};

template <int Tokens>
void panel_tile(const Int8Weight& weight, const Panel& panel, int64_t valid, const Int8Rows& x,
                int64_t token, float* y, int64_t y_stride, PanelPrefetch* next) {
  const int64_t blocks = weight.k / weight.block;
  const int8_t* codes[Tokens];
  for (int t = 0; t < Tokens; ++t) codes[t] = x.codes + (token + t) * weight.k;
  const uint8_t* w = panel.codes;
  __m512 sums[Tokens][2];
  for (auto& each : sums) each[0] = each[1] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    next->step();
    __m512i dots[Tokens][2];
    for (int t = 0; t < Tokens; ++t) {
      dots[t][0] = dots[t][1] = _mm512_set1_epi32(x.offsets[(token + t) * blocks + b]);
    }
    for (int64_t i = b * weight.block; i < (b + 1) * weight.block; i += 4) {
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + kVectorBytes);
      w += 2 * kVectorBytes;
      for (int t = 0; t < Tokens; ++t) {
        int32_t four;
        __builtin_memcpy(&four, codes[t] + i, sizeof four);
        const __m512i a = _mm512_set1_epi32(four);
        dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], w0, a);
        dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], w1, a);
      }
    }
    const __m512 s0 = _mm512_load_ps(panel.scales + b * kPanelRows);
    const __m512 s1 = _mm512_load_ps(panel.scales + b * kPanelRows + kLanes);
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
    _mm512_mask_storeu_ps(to + kLanes, static_cast<__mmask16>(mask >> kLanes), sums[t][1]);
  }
}

void product_tiles(const Int8Weight& weight, int64_t first, int64_t count, const Int8Rows& x,
                   int64_t tokens, float* y, int64_t y_stride) {
  if (tokens < kPackFromTokens) {
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
    PanelPrefetch next(is_last && weight.next_codes != nullptr ? weight.next_codes : following,
                       weight, tokens);
    int64_t t = 0;
    const auto take = [&](auto tile) {
      constexpr int kTile = decltype(tile)::value;
      panel_tile<kTile>(weight, panel, valid, x, t, y + n, y_stride, &next);
      t += kTile;
    };
    while (t + kPanelTokens <= tokens) take(std::integral_constant<int, kPanelTokens>{});
    // A switch in this function: a recursion over smaller tiles took 3 % longer (2048 x 2048
    // weight, 256 tokens).
    static_assert(kPanelTokens == 6, "one case for each number of tokens that can be left");
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
