// Expanded: for a long prompt it costs less to write out each head's keys and values, which are
// shorter than a latent, once per chunk of the cache. One task computes one head.

#include "attention_parts.h"

namespace shoal::attention {

namespace {

// Memory of one head's task.
struct Workspace {
  float *w_uk, *w_uv;      // the head's weights as floats: [nope, latent], [value, latent]
  float* rows;             // of the cache, if they are no floats: [kChunkRows, latent + rope]
  float* keys;             // [kChunkRows, nope + rope]
  float* values;           // [kChunkRows, value]
  float* queries;          // [tokens, nope + rope], scaled
  float* scores;           // [kExpandedTileRows, kChunkRows]
  SoftmaxState all, tile;  // of [tokens] and [kExpandedTileRows] rows, `value` wide

  Workspace(const Sizes& sizes, const Cache& cache) {
    const int64_t key = sizes.nope + sizes.rope;
    ScratchLayout layout;
    const size_t w_uk_place = layout.add<float>(sizes.nope * sizes.latent);
    const size_t w_uv_place = layout.add<float>(sizes.value * sizes.latent);
    const size_t rows_place = layout.add<float>(cache.scratch(kChunkRows));
    const size_t keys_place = layout.add<float>(kChunkRows * key);
    const size_t values_place = layout.add<float>(kChunkRows * sizes.value);
    const size_t queries_place = layout.add<float>(sizes.tokens * key);
    const size_t scores_place = layout.add<float>(kExpandedTileRows * kChunkRows);
    const SoftmaxPlace all_place(&layout, sizes.tokens, sizes.value);
    const SoftmaxPlace tile_place(&layout, kExpandedTileRows, sizes.value);
    layout.allocate(Scratch::kTask);
    w_uk = layout.at<float>(w_uk_place);
    w_uv = layout.at<float>(w_uv_place);
    rows = layout.at<float>(rows_place);
    keys = layout.at<float>(keys_place);
    values = layout.at<float>(values_place);
    queries = layout.at<float>(queries_place);
    scores = layout.at<float>(scores_place);
    all = all_place.at(layout);
    tile = tile_place.at(layout);
  }
};

void read_queries(const Sizes& sizes, const Tensors& tensors, int64_t head, float* queries) {
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    const int64_t from = t * sizes.heads + head;
    for (int64_t i = 0; i < sizes.nope; ++i) {
      *queries++ = tensors.q_nope[from * sizes.nope + i] * tensors.scale;
    }
    for (int64_t i = 0; i < sizes.rope; ++i) {
      *queries++ = tensors.q_rope[from * sizes.rope + i] * tensors.scale;
    }
  }
}

// Keys and values of `count` cached rows.
void expand(const Sizes& sizes, const float* cache, int64_t count, const Workspace& work) {
  const int64_t key = sizes.nope + sizes.rope;
  g_isa->dot_rows(cache, sizes.row(), count, work.w_uk, sizes.latent, sizes.nope, sizes.latent,
                  work.keys, key);
  g_isa->dot_rows(cache, sizes.row(), count, work.w_uv, sizes.latent, sizes.value, sizes.latent,
                  work.values, sizes.value);
  for (int64_t r = 0; r < count; ++r) {
    std::copy_n(cache + r * sizes.row() + sizes.latent, sizes.rope,
                work.keys + r * key + sizes.nope);
  }
}

void attend_head(const Sizes& sizes, const Tensors& tensors, int64_t head) {
  const Workspace work(sizes, tensors.cache);
  const int64_t key = sizes.nope + sizes.rope, value = sizes.value;
  dequantize_rows(tensors.w_uk, head * sizes.nope, sizes.nope, work.w_uk);
  dequantize_rows(tensors.w_uv, head * value, value, work.w_uv);
  read_queries(sizes, tensors, head, work.queries);
  clear(work.all, sizes.tokens, value);
  for (int64_t start = 0; start < sizes.cached; start += kChunkRows) {
    const int64_t count = std::min(kChunkRows, sizes.cached - start);
    expand(sizes, tensors.cache.read(start, count, work.rows), count, work);
    // Tokens before the chunk see nothing of it.
    int64_t t = std::max<int64_t>(0, start - sizes.past()) / kExpandedTileRows * kExpandedTileRows;
    for (; t < sizes.tokens; t += kExpandedTileRows) {
      const int64_t rows = std::min(kExpandedTileRows, sizes.tokens - t);
      const int64_t seen = std::min(count, sizes.past() + t + rows - start);
      attend_chunk(
          {work.queries + t * key, key, rows}, {work.keys, key, seen}, key, work.values, value,
          value, [&](int64_t r) { return sizes.past() + t + r + 1 - start; }, work.scores,
          work.tile);
      for (int64_t r = 0; r < rows; ++r) merge(work.all, t + r, work.tile, r, value);
    }
  }
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    float* y = tensors.y + (t * sizes.heads + head) * value;
    const float share = 1.0f / work.all.totals[t];
    for (int64_t i = 0; i < value; ++i) y[i] = work.all.sums[t * value + i] * share;
  }
}

}  // namespace

void attend_expanded(const Call& call, const Sizes& sizes, const Tensors& tensors) {
  call.parallel(sizes.heads, [&](int64_t head) { attend_head(sizes, tensors, head); });
}

}  // namespace shoal::attention
