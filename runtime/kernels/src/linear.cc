#include <algorithm>

#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "weights.h"

namespace shoal {

namespace {

// Weight rows of one task. For a few tokens: about this many bytes, enough that handing out tasks
// costs nothing and few enough that all threads end together. For many tokens: a panel whose
// packed form stays in the second-level cache.
constexpr int64_t kTaskBytes = 64 << 10;
constexpr int64_t kManyTokens = 16;

int64_t rows_per_task(int64_t k, int64_t tokens) {
  const int64_t rows = kTaskBytes / k / 16 * 16;
  return std::clamp<int64_t>(rows, tokens < kManyTokens ? 16 : 32, 256);
}

// What int8 rows have lost of x: rest = x - codes * scale. As the rows are x rounded to a multiple
// of the scale, the difference is exact or nearly so.
void lost_by_rounding(const float* x, const Int8Rows& rows, int64_t count, int64_t block,
                      float* rest) {
  for (int64_t b = 0; b < count / block; ++b) {
    for (int64_t i = b * block; i < (b + 1) * block; ++i) {
      rest[i] = x[i] - static_cast<float>(rows.codes[i]) * rows.scales[b];
    }
  }
}

}  // namespace

Linear::Linear(const Attributes& attributes, int terms)
    : k_(attributes.integer("K")),
      n_(attributes.integer("N")),
      block_(attributes.integer("block_size")),
      terms_(terms) {
  check_block_size(block_);
}

void Linear::compute(const Call& call) const {
  const auto x = call.floats(0, 1);
  const auto weight = call.codes(1, 3);
  const auto scales = call.floats(2, 1);
  check_blocks(call, "weight", k_, block_);
  const int64_t blocks = k_ / block_;
  call.expect_shape("weight", weight.shape, {n_, blocks, block_});
  call.expect_shape("weight_scales", scales.shape, {n_, blocks});
  Shape y_shape = x.shape;
  if (y_shape.back() != k_) {
    y_shape.back() = k_;
    call.expect_shape("x", x.shape, y_shape);
  }
  y_shape.back() = n_;
  float* y = call.float_output(0, y_shape);
  const int64_t tokens = leading_count(x.shape, 1), rows_count = terms_ * tokens;
  if (tokens == 0 || n_ == 0) return;

  // Row t is token t; rows tokens + t are the second terms.
  ScratchLayout layout;
  const size_t codes = layout.add<int8_t>(rows_count * k_);
  const size_t steps = layout.add<float>(rows_count * blocks);
  const size_t offsets = layout.add<int32_t>(rows_count * blocks);
  layout.allocate(Scratch::kCall);
  const Int8Rows rows{layout.at<int8_t>(codes), layout.at<float>(steps),
                      layout.at<int32_t>(offsets)};
  const auto rows_from = [&](int64_t row) {
    return Int8Rows{rows.codes + row * k_, rows.scales + row * blocks, rows.offsets + row * blocks};
  };

  const int64_t strip = std::max<int64_t>(1, 32768 / k_);  // tokens quantized by one task
  call.parallel((tokens + strip - 1) / strip, [&](int64_t i) {
    const int64_t first = i * strip, count = std::min(strip, tokens - first);
    const float* from = x.data + first * k_;
    g_isa->quantize(from, count, k_, block_, blocks, rows_from(first));
    if (terms_ == 1) return;
    auto* rest = static_cast<float*>(scratch_bytes(Scratch::kTask, count * k_ * sizeof(float)));
    lost_by_rounding(from, rows_from(first), count * k_, block_, rest);
    g_isa->quantize(rest, count, k_, block_, blocks, rows_from(tokens + first));
  });

  const Int8Weight w{weight.data, scales.data, k_, block_};
  const int64_t step = rows_per_task(k_, rows_count);
  call.parallel((n_ + step - 1) / step, [&](int64_t i) {
    const int64_t first = i * step, count = std::min(step, n_ - first);
    if (terms_ == 1) {
      g_isa->product(w, first, count, rows, tokens, y + first, n_);
      return;
    }
    auto* terms =
        static_cast<float*>(scratch_bytes(Scratch::kTask, rows_count * count * sizeof(float)));
    g_isa->product(w, first, count, rows, rows_count, terms, count);
    for (int64_t t = 0; t < tokens; ++t) {
      const float *large = terms + t * count, *small = terms + (tokens + t) * count;
      float* to = y + t * n_ + first;
      for (int64_t n = 0; n < count; ++n) to[n] = large[n] + small[n];
    }
  });
}

}  // namespace shoal
