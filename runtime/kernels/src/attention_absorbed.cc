// Absorbed: (q w_uk) c equals q (w_uk c), so queries go to the latent space and all heads of a
// token are rows of one matrix product with the cache; the mean latent then goes through w_uv.

#include "attention_parts.h"

namespace shoal::attention {

namespace {

// The query rows of one head, scaled: [q_nope w_uk, q_rope] in queries [tokens, heads, row].
void absorb_head(const Sizes& sizes, const Tensors& tensors, int64_t first_token, int64_t tokens,
                 int64_t head, float* queries) {
  ScratchLayout layout;
  const size_t strip_place = layout.add<float>(kDequantizedRows * sizes.latent);
  const size_t scaled_place = layout.add<float>(tokens * sizes.nope);
  layout.allocate(Scratch::kTask);
  auto* strip = layout.at<float>(strip_place);
  auto* scaled = layout.at<float>(scaled_place);
  const int64_t stride = sizes.heads * sizes.row();
  float* out = queries + head * sizes.row();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t from = (first_token + t) * sizes.heads + head;
    for (int64_t i = 0; i < sizes.nope; ++i) {
      scaled[t * sizes.nope + i] = tensors.q_nope[from * sizes.nope + i] * tensors.scale;
    }
    std::fill_n(out + t * stride, sizes.latent, 0.0f);
    for (int64_t i = 0; i < sizes.rope; ++i) {
      out[t * stride + sizes.latent + i] = tensors.q_rope[from * sizes.rope + i] * tensors.scale;
    }
  }
  for (int64_t n = 0; n < sizes.nope; n += kDequantizedRows) {
    const int64_t rows = std::min(kDequantizedRows, sizes.nope - n);
    dequantize_rows(tensors.w_uk, head * sizes.nope + n, rows, strip);
    g_isa->add_weighted_rows(scaled + n, sizes.nope, tokens, strip, sizes.latent, rows,
                             sizes.latent, out, stride);
  }
}

// The values of one head: y = w_uv (sums / totals).
void project_head(const Sizes& sizes, const Tensors& tensors, int64_t first_token, int64_t tokens,
                  int64_t head, const SoftmaxState& state) {
  ScratchLayout layout;
  const size_t strip_place = layout.add<float>(kDequantizedRows * sizes.latent);
  const size_t means_place = layout.add<float>(tokens * sizes.latent);
  layout.allocate(Scratch::kTask);
  auto* strip = layout.at<float>(strip_place);
  auto* means = layout.at<float>(means_place);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t row = t * sizes.heads + head;
    const float share = 1.0f / state.totals[row];
    for (int64_t i = 0; i < sizes.latent; ++i) {
      means[t * sizes.latent + i] = state.sums[row * sizes.latent + i] * share;
    }
  }
  float* y = tensors.y + (first_token * sizes.heads + head) * sizes.value;
  for (int64_t v = 0; v < sizes.value; v += kDequantizedRows) {
    const int64_t rows = std::min(kDequantizedRows, sizes.value - v);
    dequantize_rows(tensors.w_uv, head * sizes.value + v, rows, strip);
    g_isa->dot_rows(means, sizes.latent, tokens, strip, sizes.latent, rows, sizes.latent, y + v,
                    sizes.heads * sizes.value);
  }
}

// What one chunk of the cache gives to the query rows of tokens at `position` and after.
void attend_rows(const Sizes& sizes, const Tensors& tensors, const float* queries, int64_t rows,
                 int64_t position, int64_t chunk, const SoftmaxState& state) {
  ScratchLayout layout;
  const size_t scores = layout.add<float>(rows * kChunkRows);
  const size_t read = layout.add<float>(tensors.cache.scratch(kChunkRows));
  layout.allocate(Scratch::kTask);
  const int64_t start = chunk * kChunkRows;
  const int64_t count = std::min(kChunkRows, sizes.cached - start);
  const float* keys = tensors.cache.read(start, count, layout.at<float>(read));
  attend_chunk(
      {queries, sizes.row(), rows}, {keys, sizes.row(), count}, sizes.row(), keys, sizes.row(),
      sizes.latent, [&](int64_t r) { return position + r / sizes.heads + 1 - start; },
      layout.at<float>(scores), state);
}

}  // namespace

void attend_absorbed(const Call& call, const Sizes& sizes, const Tensors& tensors) {
  const int64_t group = std::min(kAbsorbedGroupTokens, sizes.tokens), latent = sizes.latent;
  const int64_t group_rows = group * sizes.heads;
  const int64_t chunks = (sizes.cached + kChunkRows - 1) / kChunkRows;
  const int64_t wave = std::clamp<int64_t>(kAbsorbedWaveRows / group_rows, 1, chunks);
  ScratchLayout layout;
  const size_t queries_place = layout.add<float>(group_rows * sizes.row());
  const SoftmaxPlace all_place(&layout, group_rows, latent);
  const SoftmaxPlace wave_place(&layout, wave * group_rows, latent);
  layout.allocate(Scratch::kCall);
  auto* queries = layout.at<float>(queries_place);
  const SoftmaxState all = all_place.at(layout), of_chunks = wave_place.at(layout);

  for (int64_t first = 0; first < sizes.tokens; first += group) {
    const int64_t tokens = std::min(group, sizes.tokens - first), rows = tokens * sizes.heads;
    const int64_t position = sizes.past() + first;
    const int64_t seen = (position + tokens + kChunkRows - 1) / kChunkRows;  // chunks
    call.parallel(sizes.heads,
                  [&](int64_t head) { absorb_head(sizes, tensors, first, tokens, head, queries); });
    clear(all, rows, latent);
    for (int64_t w = 0; w < seen; w += wave) {
      const int64_t count = std::min(wave, seen - w);
      const int64_t tiles = (tokens + kAbsorbedTaskTokens - 1) / kAbsorbedTaskTokens;
      call.parallel(count * tiles, [&](int64_t i) {
        const int64_t chunk = i / tiles, token = i % tiles * kAbsorbedTaskTokens;
        const int64_t row = token * sizes.heads;
        attend_rows(sizes, tensors, queries + row * sizes.row(),
                    std::min(kAbsorbedTaskTokens, tokens - token) * sizes.heads, position + token,
                    w + chunk, of_chunks.from(chunk * rows + row, latent));
      });
      call.parallel(sizes.heads, [&](int64_t head) {
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t r = head; r < rows; r += sizes.heads)
            merge(all, r, of_chunks, i * rows + r, latent);
        }
      });
    }
    call.parallel(sizes.heads,
                  [&](int64_t head) { project_head(sizes, tensors, first, tokens, head, all); });
  }
}

}  // namespace shoal::attention
