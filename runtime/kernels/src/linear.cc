// Linear and PreciseLinear: quantize their input to int8 rows, one or two for each token, and
// multiply these by the weight, task by task.
#include <algorithm>

#include "int8_rows.h"
#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "thresholds.h"
#include "weights.h"

namespace shoal {

namespace {

// Weight rows of one task.
int64_t rows_per_task(int64_t k, int64_t rows) {
  const int64_t fitting = kTaskBytes / k / kMinTaskRows * kMinTaskRows;
  const int64_t least = rows < kWholePanelTokens ? kMinTaskRows : kPanelRows;
  return std::clamp<int64_t>(fitting, least, kMaxTaskRows);
}

// What int8 rows have lost of x by rounding: rest = x - codes * scale. As the rows are x rounded to
// a multiple of the scale, the difference is exact or nearly so.
void rounding_rest(const float* x, const Int8Rows& rows, int64_t count, int64_t block,
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
  const RowsPlace place(&layout, rows_count, blocks, block_);
  layout.allocate(Scratch::kCall);
  const Int8Rows rows = place.at(layout);
  quantize_terms(call, x.data, tokens, rows);

  const Int8Weight w{weight.data, scales.data, k_, block_};
  call.parallel_ranges(n_, rows_per_task(k_, rows_count), [&](int64_t first, int64_t count) {
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

void Linear::quantize_terms(const Call& call, const float* x, int64_t tokens,
                            const Int8Rows& rows) const {
  const int64_t blocks = k_ / block_;
  call.parallel_ranges(tokens, rows_per_quantize_task(k_), [&](int64_t first, int64_t count) {
    const float* from = x + first * k_;
    const Int8Rows large = rows_from(rows, first, blocks, block_);
    g_isa->quantize(from, count, k_, block_, blocks, large);
    if (terms_ == 1) return;
    auto* rest = static_cast<float*>(scratch_bytes(Scratch::kTask, count * k_ * sizeof(float)));
    rounding_rest(from, large, count * k_, block_, rest);
    g_isa->quantize(rest, count, k_, block_, blocks,
                    rows_from(rows, tokens + first, blocks, block_));
  });
}

}  // namespace shoal
