#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "weights.h"

// The absorbed form: all heads attend to the cached latents themselves, so one pass over the cache
// serves the query rows of all heads. The cache is cut into chunks at fixed positions; a chunk
// gives each query row the largest score, the sum of exponentials and the weighed sum of latents,
// and the chunks are joined in order. So a row's result depends neither on the number of threads
// nor on the tokens it is computed with.

namespace shoal {

namespace {

constexpr int64_t kChunkRows = 128;     // cached tokens of one chunk
constexpr int64_t kGroupTokens = 64;    // new tokens computed at a time: bounds the scratch memory
constexpr int64_t kFewTokens = 8;       // up to here the work is split by chunks, else by tokens
constexpr int64_t kWaveChunks = 32;     // chunks whose parts are kept at a time
constexpr int64_t kTileTokens = 4;      // new tokens of one task when the work is split by tokens
constexpr int64_t kStripRows = 16;      // weight rows dequantized at a time: stays in the cache

struct Sizes {
  int64_t tokens, cached, heads, nope, rope, latent, value;
  int64_t row() const { return latent + rope; }
  int64_t past() const { return cached - tokens; }
};

struct Tensors {
  const float *q_nope, *q_rope, *cache;
  Int8Weight w_uk, w_uv;
  float* y;
};

// Running result of some query rows.
struct Parts {
  float* sums;    // [rows, latent]
  float* maxima;  // [rows]
  float* totals;  // [rows]
};

// Weight rows first..first+count-1 as floats.
void dequantize_rows(const Int8Weight& weight, int64_t first, int64_t count, float* floats) {
  g_isa->dequantize(weight.codes + first * weight.k, weight.scales + first * (weight.k / weight.block),
                    count * weight.k, weight.block, floats);
}

// The query rows of one head, scaled: [q_nope w_uk, q_rope] in queries [tokens, heads, row].
void absorb_head(const Sizes& sizes, const Tensors& tensors, float scale, int64_t first_token,
                 int64_t tokens, int64_t head, float* queries) {
  ScratchLayout layout;
  const size_t strip_place = layout.add<float>(kStripRows * sizes.latent);
  const size_t scaled_place = layout.add<float>(tokens * sizes.nope);
  layout.allocate(Scratch::kTask);
  auto* strip = layout.at<float>(strip_place);
  auto* scaled = layout.at<float>(scaled_place);
  const int64_t stride = sizes.heads * sizes.row();
  float* out = queries + head * sizes.row();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t from = (first_token + t) * sizes.heads + head;
    for (int64_t i = 0; i < sizes.nope; ++i) {
      scaled[t * sizes.nope + i] = tensors.q_nope[from * sizes.nope + i] * scale;
    }
    std::fill_n(out + t * stride, sizes.latent, 0.0f);
    for (int64_t i = 0; i < sizes.rope; ++i) {
      out[t * stride + sizes.latent + i] = tensors.q_rope[from * sizes.rope + i] * scale;
    }
  }
  for (int64_t n = 0; n < sizes.nope; n += kStripRows) {
    const int64_t rows = std::min(kStripRows, sizes.nope - n);
    dequantize_rows(tensors.w_uk, head * sizes.nope + n, rows, strip);
    g_isa->add_weighted_rows(scaled + n, sizes.nope, tokens, strip, sizes.latent, rows,
                             sizes.latent, out, stride);
  }
}

// The values of one head: y = w_uv (sums / totals).
void project_head(const Sizes& sizes, const Tensors& tensors, int64_t first_token, int64_t tokens,
                  int64_t head, const Parts& parts) {
  ScratchLayout layout;
  const size_t strip_place = layout.add<float>(kStripRows * sizes.latent);
  const size_t means_place = layout.add<float>(tokens * sizes.latent);
  layout.allocate(Scratch::kTask);
  auto* strip = layout.at<float>(strip_place);
  auto* means = layout.at<float>(means_place);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t row = t * sizes.heads + head;
    const float share = 1.0f / parts.totals[row];
    for (int64_t i = 0; i < sizes.latent; ++i) {
      means[t * sizes.latent + i] = parts.sums[row * sizes.latent + i] * share;
    }
  }
  float* y = tensors.y + (first_token * sizes.heads + head) * sizes.value;
  for (int64_t v = 0; v < sizes.value; v += kStripRows) {
    const int64_t rows = std::min(kStripRows, sizes.value - v);
    dequantize_rows(tensors.w_uv, head * sizes.value + v, rows, strip);
    g_isa->dot_rows(means, sizes.latent, tokens, strip, sizes.latent, rows, sizes.latent, y + v,
                    sizes.heads * sizes.value);
  }
}

// What one chunk gives to query rows of `tokens` tokens, the first at position `position` of the
// cache. Writes the parts of every row; a row that sees nothing of the chunk gets a total of 0.
void attend_chunk(const Sizes& sizes, const Tensors& tensors, const float* queries, int64_t tokens,
                  int64_t position, int64_t chunk, const Parts& parts) {
  const int64_t rows = tokens * sizes.heads;
  const int64_t start = chunk * kChunkRows;
  const int64_t visible = std::min(kChunkRows, position + tokens - start);  // to the last token
  ScratchLayout layout;
  const size_t scores_place = layout.add<float>(rows * kChunkRows);
  layout.allocate(Scratch::kTask);
  auto* scores = layout.at<float>(scores_place);
  const float* keys = tensors.cache + start * sizes.row();
  g_isa->dot_rows(queries, sizes.row(), rows, keys, sizes.row(), visible, sizes.row(), scores,
                  kChunkRows);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kChunkRows;
    const int64_t count = std::min(visible, position + r / sizes.heads + 1 - start);
    if (count > 0) {
      g_isa->softmax_part(row, count, parts.maxima + r, parts.totals + r);
    } else {
      parts.maxima[r] = -std::numeric_limits<float>::infinity();
      parts.totals[r] = 0;
    }
    std::fill(row + std::max<int64_t>(count, 0), row + visible, 0.0f);
  }
  std::fill_n(parts.sums, rows * sizes.latent, 0.0f);
  g_isa->add_weighted_rows(scores, kChunkRows, rows, keys, sizes.row(), visible, sizes.latent,
                           parts.sums, sizes.latent);
}

// Joins the part of the next chunk to what the chunks before gave, for one query row.
void join(const Sizes& sizes, const Parts& all, int64_t row, const Parts& next, int64_t next_row) {
  if (next.totals[next_row] == 0) return;
  float* sums = all.sums + row * sizes.latent;
  const float* next_sums = next.sums + next_row * sizes.latent;
  const float max = std::max(all.maxima[row], next.maxima[next_row]);
  const float keep = std::exp(all.maxima[row] - max), take = std::exp(next.maxima[next_row] - max);
  g_isa->blend(keep, sums, take, next_sums, sizes.latent);
  all.totals[row] = all.totals[row] * keep + next.totals[next_row] * take;
  all.maxima[row] = max;
}

void clear(const Sizes& sizes, const Parts& parts, int64_t rows) {
  std::fill_n(parts.sums, rows * sizes.latent, 0.0f);
  std::fill_n(parts.maxima, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(parts.totals, rows, 0.0f);
}

// Places of Parts in the scratch memory.
struct PartsPlace {
  size_t sums, maxima, totals;
  PartsPlace(ScratchLayout* layout, int64_t rows, int64_t latent)
      : sums(layout->add<float>(rows * latent)),
        maxima(layout->add<float>(rows)),
        totals(layout->add<float>(rows)) {}
  Parts at(const ScratchLayout& layout, int64_t row, int64_t latent) const {
    return {layout.at<float>(sums) + row * latent, layout.at<float>(maxima) + row,
            layout.at<float>(totals) + row};
  }
};

// Writes the new rows, and the old ones where the runtime gave the output a buffer of its own.
void append(const Sizes& sizes, const float* cache, const float* latent, const float* k_rope,
            float* cache_out) {
  const int64_t row = sizes.row();
  if (cache_out != cache) {
    std::memcpy(cache_out, cache, static_cast<size_t>(sizes.past() * row) * sizeof(float));
  }
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    float* to = cache_out + (sizes.past() + t) * row;
    std::copy_n(latent + t * sizes.latent, sizes.latent, to);
    std::copy_n(k_rope + t * sizes.rope, sizes.rope, to + sizes.latent);
  }
}

}  // namespace

LatentAttention::LatentAttention(const Attributes& attributes)
    : scale_(attributes.real("softmax_scale")), block_(attributes.integer("block_size")) {
  check_block_size(block_);
}

void LatentAttention::compute(const Call& call) const {
  const auto q_nope = call.floats(0, 4);
  const auto q_rope = call.floats(1, 4);
  const auto latent = call.floats(2, 3);
  const auto k_rope = call.floats(3, 3);
  const auto cache = call.floats(4, 3);
  const auto w_uk = call.codes(5, 3);
  const auto w_uk_scales = call.floats(6, 3);
  const auto w_uv = call.codes(7, 3);
  const auto w_uv_scales = call.floats(8, 3);

  Sizes sizes{};
  sizes.tokens = q_nope.shape[1];
  sizes.heads = q_nope.shape[2];
  sizes.nope = q_nope.shape[3];
  sizes.rope = q_rope.shape[3];
  sizes.latent = latent.shape[2];
  sizes.cached = cache.shape[1];
  sizes.value = w_uv.shape[1];
  check_blocks(call, "w_uk", sizes.latent, block_);
  const int64_t blocks = sizes.latent / block_;
  call.expect_shape("q_nope", q_nope.shape, {1, sizes.tokens, sizes.heads, sizes.nope});
  call.expect_shape("q_rope", q_rope.shape, {1, sizes.tokens, sizes.heads, sizes.rope});
  call.expect_shape("latent", latent.shape, {1, sizes.tokens, sizes.latent});
  call.expect_shape("k_rope", k_rope.shape, {1, sizes.tokens, sizes.rope});
  call.expect_shape("cache", cache.shape, {1, sizes.cached, sizes.row()});
  call.expect_shape("w_uk", w_uk.shape, {sizes.heads, sizes.nope, sizes.latent});
  call.expect_shape("w_uk_scales", w_uk_scales.shape, {sizes.heads, sizes.nope, blocks});
  call.expect_shape("w_uv", w_uv.shape, {sizes.heads, sizes.value, sizes.latent});
  call.expect_shape("w_uv_scales", w_uv_scales.shape, {sizes.heads, sizes.value, blocks});
  if (sizes.past() < 0) {
    call.fail("cache: expected at least the " + std::to_string(sizes.tokens) +
              " new rows, found " + std::to_string(sizes.cached));
  }

  float* y = call.float_output(0, {1, sizes.tokens, sizes.heads, sizes.value});
  float* cache_out = call.float_output(1, cache.shape);
  append(sizes, cache.data, latent.data, k_rope.data, cache_out);
  if (sizes.tokens == 0 || sizes.heads == 0) return;

  const Tensors tensors{q_nope.data, q_rope.data, cache_out,
                        {w_uk.data, w_uk_scales.data, sizes.latent, block_},
                        {w_uv.data, w_uv_scales.data, sizes.latent, block_},
                        y};
  const int64_t group = std::min(kGroupTokens, sizes.tokens);
  const int64_t group_rows = group * sizes.heads;
  const bool is_few = sizes.tokens <= kFewTokens;
  const int64_t chunks = (sizes.cached + kChunkRows - 1) / kChunkRows;
  const int64_t wave = std::min(kWaveChunks, chunks);
  ScratchLayout layout;
  const size_t queries_place = layout.add<float>(group_rows * sizes.row());
  const PartsPlace all_place(&layout, group_rows, sizes.latent);
  const PartsPlace chunk_place(&layout, is_few ? wave * group_rows : 0, sizes.latent);
  layout.allocate(Scratch::kCall);
  auto* queries = layout.at<float>(queries_place);
  const Parts all = all_place.at(layout, 0, sizes.latent);

  for (int64_t first = 0; first < sizes.tokens; first += group) {
    const int64_t tokens = std::min(group, sizes.tokens - first);
    const int64_t rows = tokens * sizes.heads, position = sizes.past() + first;
    call.parallel(sizes.heads, [&](int64_t head) {
      absorb_head(sizes, tensors, scale_, first, tokens, head, queries);
    });
    clear(sizes, all, rows);
    if (is_few) {
      for (int64_t w = 0; w < chunks; w += wave) {
        const int64_t count = std::min(wave, chunks - w);
        call.parallel(count, [&](int64_t i) {
          attend_chunk(sizes, tensors, queries, tokens, position, w + i,
                       chunk_place.at(layout, i * rows, sizes.latent));
        });
        call.parallel(sizes.heads, [&](int64_t head) {
          for (int64_t i = 0; i < count; ++i) {
            const Parts part = chunk_place.at(layout, i * rows, sizes.latent);
            for (int64_t r = head; r < rows; r += sizes.heads) join(sizes, all, r, part, r);
          }
        });
      }
    } else {
      call.parallel((tokens + kTileTokens - 1) / kTileTokens, [&](int64_t i) {
        const int64_t t = i * kTileTokens, count = std::min(kTileTokens, tokens - t);
        const int64_t tile_rows = count * sizes.heads;
        ScratchLayout tile;
        const PartsPlace place(&tile, tile_rows, sizes.latent);
        tile.allocate(Scratch::kPanel);
        const Parts part = place.at(tile, 0, sizes.latent);
        const int64_t last_chunk = (position + t + count - 1) / kChunkRows;
        for (int64_t c = 0; c <= last_chunk; ++c) {
          attend_chunk(sizes, tensors, queries + t * sizes.heads * sizes.row(), count, position + t,
                       c, part);
          for (int64_t r = 0; r < tile_rows; ++r) {
            join(sizes, all, t * sizes.heads + r, part, r);
          }
        }
      });
    }
    call.parallel(sizes.heads, [&](int64_t head) {
      project_head(sizes, tensors, first, tokens, head, all);
    });
  }
}

}  // namespace shoal
