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

}  // namespace

Linear::Linear(const Attributes& attributes)
    : k_(attributes.integer("K")),
      n_(attributes.integer("N")),
      block_(attributes.integer("block_size")) {
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
  const int64_t tokens = leading_count(x.shape, 1);
  if (tokens == 0 || n_ == 0) return;

  ScratchLayout layout;
  const size_t codes = layout.add<int8_t>(tokens * k_);
  const size_t steps = layout.add<float>(tokens * blocks);
  const size_t offsets = layout.add<int32_t>(tokens * blocks);
  layout.allocate(Scratch::kCall);
  const Int8Rows rows{layout.at<int8_t>(codes), layout.at<float>(steps),
                      layout.at<int32_t>(offsets)};

  const int64_t strip = std::max<int64_t>(1, 32768 / k_);  // tokens quantized by one task
  call.parallel((tokens + strip - 1) / strip, [&](int64_t i) {
    const int64_t first = i * strip, count = std::min(strip, tokens - first);
    g_isa->quantize(
        x.data + first * k_, count, k_, block_, blocks,
        {rows.codes + first * k_, rows.scales + first * blocks, rows.offsets + first * blocks});
  });

  const Int8Weight w{weight.data, scales.data, k_, block_};
  const int64_t step = rows_per_task(k_, tokens);
  call.parallel((n_ + step - 1) / step, [&](int64_t i) {
    const int64_t first = i * step, count = std::min(step, n_ - first);
    g_isa->product(w, first, count, rows, tokens, y + first, n_);
  });
}

}  // namespace shoal
