// LatentAttention and LatentAttentionInt8Cache: check their inputs, update the cache and choose the
// form that computes less.
#include <algorithm>
#include <cstring>

#include "attention_parts.h"
#include "half.h"
#include "ops.h"
#include "thresholds.h"
#include "weights.h"

namespace shoal {

namespace {

using attention::Sizes;

// Whether the expanded form takes fewer multiply-adds. Of one head: either the tokens' queries and
// results go through w_uk and w_uv and meet rows of latents (absorbed), or the cached rows go
// through them and meet keys and values (expanded).
bool is_expanding_cheaper(const Sizes& sizes) {
  if (sizes.tokens <= kAbsorbedUpToTokens) return false;
  const auto projection = static_cast<double>((sizes.nope + sizes.value) * sizes.latent);
  const auto tokens = static_cast<double>(sizes.tokens), cached = static_cast<double>(sizes.cached);
  const double pairs = tokens * (cached - tokens / 2);
  const double absorbed =
      tokens * projection + pairs * static_cast<double>(2 * sizes.latent + sizes.rope);
  const double expanded =
      cached * projection + pairs * static_cast<double>(sizes.nope + sizes.rope + sizes.value);
  return expanded < absorbed;
}

// The inputs of both ops besides the cache, checked; `w` is the place of w_uk among them.
struct AttentionInputs {
  Input<float> q_nope, q_rope, latent, k_rope;
  Input<uint8_t> w_uk, w_uv;
  Input<float> w_uk_scales, w_uv_scales;
  Sizes sizes{};

  AttentionInputs(const Call& call, size_t w, int64_t cached, int64_t block)
      : q_nope(call.floats(0, 4)),
        q_rope(call.floats(1, 4)),
        latent(call.floats(2, 3)),
        k_rope(call.floats(3, 3)),
        w_uk(call.codes(w, 3)),
        w_uv(call.codes(w + 2, 3)),
        w_uk_scales(call.floats(w + 1, 3)),
        w_uv_scales(call.floats(w + 3, 3)) {
    sizes.tokens = q_nope.shape[1];
    sizes.heads = q_nope.shape[2];
    sizes.nope = q_nope.shape[3];
    sizes.rope = q_rope.shape[3];
    sizes.latent = latent.shape[2];
    sizes.cached = cached;
    sizes.value = w_uv.shape[1];
    check_blocks(call, "w_uk", sizes.latent, block);
    const int64_t blocks = sizes.latent / block;
    call.expect_shape("q_nope", q_nope.shape, {1, sizes.tokens, sizes.heads, sizes.nope});
    call.expect_shape("q_rope", q_rope.shape, {1, sizes.tokens, sizes.heads, sizes.rope});
    call.expect_shape("latent", latent.shape, {1, sizes.tokens, sizes.latent});
    call.expect_shape("k_rope", k_rope.shape, {1, sizes.tokens, sizes.rope});
    call.expect_shape("w_uk", w_uk.shape, {sizes.heads, sizes.nope, sizes.latent});
    call.expect_shape("w_uk_scales", w_uk_scales.shape, {sizes.heads, sizes.nope, blocks});
    call.expect_shape("w_uv", w_uv.shape, {sizes.heads, sizes.value, sizes.latent});
    call.expect_shape("w_uv_scales", w_uv_scales.shape, {sizes.heads, sizes.value, blocks});
    if (sizes.past() < 0) {
      call.fail("cache: expected at least the " + std::to_string(sizes.tokens) +
                " new rows, found " + std::to_string(sizes.cached));
    }
  }

  // Attends to a cache that has the new rows, and writes output 0.
  void attend(const Call& call, const attention::Cache& cache, float scale, int64_t block) const {
    float* y = call.float_output(0, {1, sizes.tokens, sizes.heads, sizes.value});
    if (sizes.tokens == 0 || sizes.heads == 0) return;
    const attention::Tensors tensors{q_nope.data,
                                     q_rope.data,
                                     cache,
                                     {w_uk.data, w_uk_scales.data, sizes.latent, block},
                                     {w_uv.data, w_uv_scales.data, sizes.latent, block},
                                     y,
                                     scale};
    if (is_expanding_cheaper(sizes)) {
      attention::attend_expanded(call, sizes, tensors);
    } else {
      attention::attend_absorbed(call, sizes, tensors);
    }
  }
};

// Copies the past rows where the runtime gave the output a buffer of its own; returns where the new
// ones go.
template <class T>
T* copy_past(const Sizes& sizes, int64_t width, const T* cache, T* cache_out) {
  const auto count = static_cast<size_t>(sizes.past() * width);
  if (cache_out != cache) std::memcpy(cache_out, cache, count * sizeof(T));
  return cache_out + count;
}

// New latents as codes, each block with a scale of its own.
void quantize_latents(const Sizes& sizes, const float* latent, int64_t block, uint8_t* codes,
                      float* scales) {
  const int64_t count = sizes.tokens * sizes.latent;
  ScratchLayout layout;
  const size_t signed_place = layout.add<int8_t>(count);
  const size_t offsets_place = layout.add<int32_t>(count / block);
  layout.allocate(Scratch::kCall);
  auto* from = layout.at<int8_t>(signed_place);
  g_isa->quantize(latent, sizes.tokens, sizes.latent, block, sizes.latent / block,
                  {from, scales, layout.at<int32_t>(offsets_place)});
  std::transform(from, from + count, codes,
                 [](int8_t code) { return static_cast<uint8_t>(code + kZeroPoint); });
}

// The new rows, each value converted.
template <class T, class Convert>
void append(const AttentionInputs& inputs, T* rows, const Convert& convert) {
  const Sizes& sizes = inputs.sizes;
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    const float* latent = inputs.latent.data + t * sizes.latent;
    const float* rope = inputs.k_rope.data + t * sizes.rope;
    rows = std::transform(latent, latent + sizes.latent, rows, convert);
    rows = std::transform(rope, rope + sizes.rope, rows, convert);
  }
}

}  // namespace

LatentAttention::LatentAttention(const Attributes& attributes)
    : scale_(attributes.real("softmax_scale")), block_(attributes.integer("block_size")) {
  check_block_size(block_);
}

void LatentAttention::compute(const Call& call) const {
  using attention::Cache;
  Cache cache{};
  const auto prepare = [&](const auto& found, Cache::Type type, auto* out, const auto& convert) {
    const AttentionInputs inputs(call, 5, found.shape[1], block_);
    const Sizes& sizes = inputs.sizes;
    call.expect_shape("cache", found.shape, {1, sizes.cached, sizes.row()});
    append(inputs, copy_past(sizes, sizes.row(), found.data, out), convert);
    cache = {type, sizes.latent, sizes.rope, out, nullptr, nullptr, 0};
    inputs.attend(call, cache, scale_, block_);
  };
  if (call.element_type(4) == ort::kFloat16) {
    const auto found = call.halves(4, 3);
    prepare(found, Cache::kFloat16, call.half_output(1, found.shape), half_of);
  } else {
    const auto found = call.floats(4, 3);
    prepare(found, Cache::kFloat32, call.float_output(1, found.shape), [](float x) { return x; });
  }
}

LatentAttentionInt8Cache::LatentAttentionInt8Cache(const Attributes& attributes)
    : scale_(attributes.real("softmax_scale")),
      block_(attributes.integer("block_size")),
      cache_block_(attributes.integer("cache_block_size")) {
  check_block_size(block_);
  check_block_size(cache_block_);
}

void LatentAttentionInt8Cache::compute(const Call& call) const {
  const auto codes = call.codes(4, 3);
  const auto scales = call.floats(5, 3);
  const auto ropes = call.halves(6, 3);
  const AttentionInputs inputs(call, 7, codes.shape[1], block_);
  const Sizes& sizes = inputs.sizes;
  check_blocks(call, "cache", sizes.latent, cache_block_);
  const int64_t blocks = sizes.latent / cache_block_;
  call.expect_shape("cache", codes.shape, {1, sizes.cached, sizes.latent});
  call.expect_shape("cache_scales", scales.shape, {1, sizes.cached, blocks});
  call.expect_shape("cache_rope", ropes.shape, {1, sizes.cached, sizes.rope});

  uint8_t* codes_out = call.code_output(1, codes.shape);
  float* scales_out = call.float_output(2, scales.shape);
  uint16_t* ropes_out = call.half_output(3, ropes.shape);
  quantize_latents(sizes, inputs.latent.data, cache_block_,
                   copy_past(sizes, sizes.latent, codes.data, codes_out),
                   copy_past(sizes, blocks, scales.data, scales_out));
  std::transform(inputs.k_rope.data, inputs.k_rope.data + sizes.tokens * sizes.rope,
                 copy_past(sizes, sizes.rope, ropes.data, ropes_out), half_of);
  inputs.attend(call,
                {attention::Cache::kInt8, sizes.latent, sizes.rope, codes_out, scales_out,
                 ropes_out, cache_block_},
                scale_, block_);
}

}  // namespace shoal
