// shoal::LatentAttention: checks its inputs, updates the cache and chooses the form that computes
// less.

#include <cstring>

#include "attention_parts.h"
#include "ops.h"
#include "weights.h"

namespace shoal {

namespace {

using attention::Sizes;

// Up to here the absorbed form runs whatever it costs, so that a token decoded alone and one that
// is verified with its neighbours get the same bits.
constexpr int64_t kFewTokens = 16;

// Multiply-adds of one head: either the tokens' queries and results go through w_uk and w_uv and
// meet rows of latents, or the cached rows go through them and meet keys and values.
bool is_expanding_cheaper(const Sizes& sizes) {
  if (sizes.tokens <= kFewTokens) return false;
  const auto projection = static_cast<double>((sizes.nope + sizes.value) * sizes.latent);
  const auto tokens = static_cast<double>(sizes.tokens), cached = static_cast<double>(sizes.cached);
  const double pairs = tokens * (cached - tokens / 2);
  const double absorbed =
      tokens * projection + pairs * static_cast<double>(2 * sizes.latent + sizes.rope);
  const double expanded =
      cached * projection + pairs * static_cast<double>(sizes.nope + sizes.rope + sizes.value);
  return expanded < absorbed;
}

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
    call.fail("cache: expected at least the " + std::to_string(sizes.tokens) + " new rows, found " +
              std::to_string(sizes.cached));
  }

  float* y = call.float_output(0, {1, sizes.tokens, sizes.heads, sizes.value});
  float* cache_out = call.float_output(1, cache.shape);
  append(sizes, cache.data, latent.data, k_rope.data, cache_out);
  if (sizes.tokens == 0 || sizes.heads == 0) return;

  const attention::Tensors tensors{q_nope.data,
                                   q_rope.data,
                                   cache_out,
                                   {w_uk.data, w_uk_scales.data, sizes.latent, block_},
                                   {w_uv.data, w_uv_scales.data, sizes.latent, block_},
                                   y,
                                   scale_};
  if (is_expanding_cheaper(sizes)) {
    attention::attend_expanded(call, sizes, tensors);
  } else {
    attention::attend_absorbed(call, sizes, tensors);
  }
}

}  // namespace shoal
