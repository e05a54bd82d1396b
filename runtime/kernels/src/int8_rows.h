// Rows of int8 activations as the ops handle them: their scratch memory, and parts of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "scratch.h"
#include "thresholds.h"

namespace shoal {

// The rows from `row` on, of `blocks` blocks each.
inline Int8Rows rows_from(const Int8Rows& all, int64_t row, int64_t blocks, int64_t block) {
  return {all.codes + row * blocks * block, all.scales + row * blocks, all.offsets + row * blocks};
}

// Places of Int8Rows in the scratch memory.
struct RowsPlace {
  size_t codes, scales, offsets;
  RowsPlace(ScratchLayout* layout, int64_t rows, int64_t blocks, int64_t block)
      : codes(layout->add<int8_t>(rows * blocks * block)),
        scales(layout->add<float>(rows * blocks)),
        offsets(layout->add<int32_t>(rows * blocks)) {}
  Int8Rows at(const ScratchLayout& layout) const {
    return {layout.at<int8_t>(codes), layout.at<float>(scales), layout.at<int32_t>(offsets)};
  }
};

// Rows of k values that one task quantizes.
inline int64_t rows_per_quantize_task(int64_t k) {
  return std::max<int64_t>(1, kQuantizeTaskValues / k);
}

}  // namespace shoal
