// What the two forms of latent attention share: sizes, the cache in chunks, and merging chunks.
//
// The cache is cut into chunks at fixed positions. A chunk gives each query row the largest score,
// the sum of exponentials and the weighted sum of values; chunks are merged in order. So a row's
// result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cache.h"
#include "context.h"
#include "isa.h"
#include "scratch.h"
#include "thresholds.h"

namespace shoal::attention {

struct Sizes {
  int64_t tokens, cached, heads, nope, rope, latent, value;
  int64_t row() const { return latent + rope; }
  int64_t past() const { return cached - tokens; }
};

struct Tensors {
  const float *q_nope, *q_rope;
  Cache cache;
  Int8Weight w_uk, w_uv;
  float* y;
  float scale;
};

// Online softmax of some query rows: what the chunks so far, or one of them, give.
struct SoftmaxState {
  float* sums;    // [rows, width]: of exponentials times values
  float* maxima;  // [rows]: the largest score, which exponentials are relative to
  float* totals;  // [rows]: of exponentials

  SoftmaxState from(int64_t row, int64_t width) const {
    return {sums + row * width, maxima + row, totals + row};
  }
};

// Places of a SoftmaxState in the scratch memory.
struct SoftmaxPlace {
  size_t sums, maxima, totals;
  SoftmaxPlace(ScratchLayout* layout, int64_t rows, int64_t width)
      : sums(layout->add<float>(rows * width)),
        maxima(layout->add<float>(rows)),
        totals(layout->add<float>(rows)) {}
  SoftmaxState at(const ScratchLayout& layout) const {
    return {layout.at<float>(sums), layout.at<float>(maxima), layout.at<float>(totals)};
  }
};

inline void clear(const SoftmaxState& state, int64_t rows, int64_t width) {
  std::fill_n(state.sums, rows * width, 0.0f);
  std::fill_n(state.maxima, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.totals, rows, 0.0f);
}

// Rows of queries and the cached rows of one chunk.
struct Rows {
  const float* data;
  int64_t stride, count;
};

// What the keys and values of a chunk give to query rows; `visible(row)` of the chunk's first rows
// count, at most keys.count. A row that sees nothing of the chunk gets a total of 0. Scores is
// memory for queries.count * kChunkRows values.
template <class Visible>
void attend_chunk(const Rows& queries, const Rows& keys, int64_t k, const float* values,
                  int64_t value_stride, int64_t width, const Visible& visible, float* scores,
                  const SoftmaxState& state) {
  g_isa->dot_rows(queries.data, queries.stride, queries.count, keys.data, keys.stride, keys.count,
                  k, scores, kChunkRows);
  for (int64_t r = 0; r < queries.count; ++r) {
    float* row = scores + r * kChunkRows;
    const int64_t count = std::clamp<int64_t>(visible(r), 0, keys.count);
    state.maxima[r] = -std::numeric_limits<float>::infinity();
    state.totals[r] = 0;
    if (count > 0) g_isa->softmax_part(row, count, state.maxima + r, state.totals + r);
    std::fill(row + count, row + keys.count, 0.0f);
  }
  std::fill_n(state.sums, queries.count * width, 0.0f);
  g_isa->add_weighted_rows(scores, kChunkRows, queries.count, values, value_stride, keys.count,
                           width, state.sums, width);
}

// Merges what the next chunk gives one query row into what the chunks before gave.
inline void merge(const SoftmaxState& all, int64_t row, const SoftmaxState& next, int64_t next_row,
                  int64_t width) {
  if (next.totals[next_row] == 0) return;
  const float max = std::max(all.maxima[row], next.maxima[next_row]);
  const float keep = std::exp(all.maxima[row] - max), take = std::exp(next.maxima[next_row] - max);
  g_isa->blend(keep, all.sums + row * width, take, next.sums + next_row * width, width);
  all.totals[row] = all.totals[row] * keep + next.totals[next_row] * take;
  all.maxima[row] = max;
}

// Weight rows first..first+count-1 as floats.
inline void dequantize_rows(const Int8Weight& weight, int64_t first, int64_t count, float* floats) {
  const int64_t blocks = weight.k / weight.block;
  g_isa->dequantize(weight.codes + first * weight.k, weight.scales + first * blocks,
                    count * weight.k, weight.block, floats);
}

// All heads attend to the latents themselves: one pass over the cache serves them all.
void attend_absorbed(const Call& call, const Sizes& sizes, const Tensors& tensors);

// Keys and values of each head are written out, a chunk at a time.
void attend_expanded(const Call& call, const Sizes& sizes, const Tensors& tensors);

}  // namespace shoal::attention
