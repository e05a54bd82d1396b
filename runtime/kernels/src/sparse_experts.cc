#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "weights.h"

// A slot is one (token, chosen expert) pair. Slots are sorted by expert, so that each routed
// expert's weights are read once and its tokens lie side by side. A token's experts are added in
// the order of their ids, whatever else is in the call.

namespace shoal {

namespace {

constexpr int64_t kStripSlots = 128;  // slots computed at a time: bounds a task's scratch
constexpr int64_t kTaskOutputs = 64;  // outputs of one task of the second product
// Rows of 4-bit weights that are int8 codes at a time: of few tokens, as many as stay in the
// first-level cache; of many, as many as Isa::product packs.
constexpr int64_t kUnpackedRows = 32, kUnpackedRowsOfFew = 8, kFewTokens = 8;

struct Sizes {
  int64_t tokens, slots_per_token, slots, hidden, experts, width, block;
  int64_t codes_per_byte;
  int64_t hidden_blocks() const { return hidden / block; }
  int64_t width_blocks() const { return width / block; }
};

// The slots of one expert: first..first+count-1 of the sorted order.
struct Group {
  int64_t expert, first, count;
};

// Sorts slots by expert, keeping the order of tokens; those of no expert are left out.
std::vector<Group> sort_slots(const Call& call, const int64_t* ids, const Sizes& sizes,
                              std::vector<int64_t>* order) {
  std::vector<int64_t> starts(static_cast<size_t>(sizes.experts) + 1, 0);
  for (int64_t slot = 0; slot < sizes.slots; ++slot) {
    if (ids[slot] < 0 || ids[slot] > sizes.experts) {
      call.fail("expert_ids: expected 0.." + std::to_string(sizes.experts) + ", found " +
                std::to_string(ids[slot]));
    }
    if (ids[slot] < sizes.experts) ++starts[static_cast<size_t>(ids[slot]) + 1];
  }
  std::vector<Group> groups;
  for (int64_t e = 0; e < sizes.experts; ++e) {
    const auto at = static_cast<size_t>(e);
    if (starts[at + 1] > 0) groups.push_back({e, starts[at], starts[at + 1]});
    starts[at + 1] += starts[at];
  }
  order->resize(static_cast<size_t>(starts.back()));
  for (int64_t slot = 0; slot < sizes.slots; ++slot) {
    if (ids[slot] == sizes.experts) continue;
    (*order)[static_cast<size_t>(starts[static_cast<size_t>(ids[slot])]++)] = slot;
  }
  return groups;
}

Int8Rows rows_from(const Int8Rows& all, int64_t row, int64_t blocks, int64_t block) {
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

// The low and then the high half of every byte, times 16: int8 codes.
void unpack(const uint8_t* packed, int64_t count, uint8_t* codes) {
  constexpr int64_t kAhead = 1024;  // bytes: mapped files have small pages
  constexpr int64_t kStep = 64;     // a number of turns the compiler knows: half as fast again
  const auto widen = [&](int64_t i) {
    codes[2 * i] = static_cast<uint8_t>(packed[i] << 4);
    codes[2 * i + 1] = packed[i] & 0xf0;
  };
  int64_t start = 0;
  for (; start + kStep <= count; start += kStep) {
    __builtin_prefetch(packed + start + kAhead, 0, 2);
    for (int64_t i = 0; i < kStep; ++i) widen(start + i);
  }
  for (; start < count; ++start) widen(start);
}

// Isa::product of weights with 8 bits or, some rows at a time, with 4.
void multiply(const Int8Weight& weight, const Sizes& sizes, int64_t first, int64_t count,
              const Int8Rows& x, int64_t tokens, float* y, int64_t y_stride) {
  if (sizes.codes_per_byte == 1) {
    g_isa->product(weight, first, count, x, tokens, y, y_stride);
    return;
  }
  auto* codes = static_cast<uint8_t*>(
      scratch_bytes(Scratch::kUnpacked, static_cast<size_t>(kUnpackedRows * weight.k)));
  const int64_t step = tokens < kFewTokens ? kUnpackedRowsOfFew : kUnpackedRows;
  for (int64_t n = 0; n < count; n += step) {
    const int64_t rows = std::min(step, count - n);
    unpack(weight.codes + (first + n) * weight.k / 2, rows * weight.k / 2, codes);
    const Int8Weight part{codes, weight.scales + (first + n) * (weight.k / weight.block), weight.k,
                          weight.block, codes};
    g_isa->product(part, 0, rows, x, tokens, y + n, y_stride);
  }
}

// One block of hidden values of some slots: gate and up rows, SwiGLU, quantized for `down`.
void compute_hidden(const Int8Weight& gate_up, const Sizes& sizes, const Group& group,
                    int64_t hidden_block, const Int8Rows& x_slots, const Int8Rows& hidden_slots) {
  const int64_t block = sizes.block, rows = 2 * block;
  ScratchLayout layout;
  const size_t products = layout.add<float>(kStripSlots * rows);
  const size_t values = layout.add<float>(kStripSlots * block);
  layout.allocate(Scratch::kTask);
  auto* y = layout.at<float>(products);
  auto* hidden = layout.at<float>(values);
  const int64_t first_row = group.expert * 2 * sizes.width + hidden_block * rows;
  for (int64_t s = 0; s < group.count; s += kStripSlots) {
    const int64_t count = std::min(kStripSlots, group.count - s), slot = group.first + s;
    multiply(gate_up, sizes, first_row, rows,
             rows_from(x_slots, slot, sizes.hidden_blocks(), block), count, y, rows);
    g_isa->swiglu(y, count * block, hidden);
    const int64_t at = slot * sizes.width_blocks() + hidden_block;
    g_isa->quantize(hidden, count, block, block, sizes.width_blocks(),
                    rows_from(hidden_slots, at, 1, block));
  }
}

// Outputs first..first+count-1 of all tokens.
void compute_outputs(Int8Weight down, const Sizes& sizes, const std::vector<Group>& groups,
                     const std::vector<int64_t>& order, const float* weights, int64_t first,
                     int64_t count, const Int8Rows& hidden_slots, float* y) {
  ScratchLayout layout;
  const size_t place = layout.add<float>(kStripSlots * count);
  layout.allocate(Scratch::kTask);
  auto* products = layout.at<float>(place);
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    std::memset(y + t * sizes.hidden + first, 0, static_cast<size_t>(count) * sizeof(float));
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    const bool is_last = g + 1 == groups.size();
    down.then =
        is_last ? nullptr : down.codes + (groups[g + 1].expert * sizes.hidden + first) * down.k;
    for (int64_t s = 0; s < group.count; s += kStripSlots) {
      const int64_t strip = std::min(kStripSlots, group.count - s), slot = group.first + s;
      multiply(down, sizes, group.expert * sizes.hidden + first, count,
               rows_from(hidden_slots, slot, sizes.width_blocks(), sizes.block), strip, products,
               count);
      for (int64_t i = 0; i < strip; ++i) {
        const int64_t source = order[static_cast<size_t>(slot + i)];
        float* to = y + source / sizes.slots_per_token * sizes.hidden + first;
        g_isa->blend(1.0f, to, weights[source], products + i * count, count);
      }
    }
  }
}

}  // namespace

SparseExperts::SparseExperts(const Attributes& attributes, int bits)
    : block_(attributes.integer("block_size")), codes_per_byte_(8 / bits) {
  check_block_size(block_);
}

void SparseExperts::compute(const Call& call) const {
  const auto x = call.floats(0, 1);
  const auto ids = call.integers(1, 1);
  const auto weights = call.floats(2, 1);
  const auto gate_up = call.codes(3, 3);
  const auto gate_up_scales = call.floats(4, 3);
  const auto down = call.codes(5, 3);
  const auto down_scales = call.floats(6, 3);

  Sizes sizes{};
  sizes.block = block_;
  sizes.codes_per_byte = codes_per_byte_;
  sizes.tokens = leading_count(x.shape, 1);
  sizes.hidden = x.shape.back();
  sizes.experts = gate_up.shape[0];
  sizes.width = gate_up.shape[1] / 2;
  sizes.slots_per_token = ids.shape.back();
  sizes.slots = sizes.tokens * sizes.slots_per_token;
  check_blocks(call, "gate_up", sizes.hidden, block_);
  check_blocks(call, "down", sizes.width, block_);
  Shape ids_shape = x.shape;
  ids_shape.back() = sizes.slots_per_token;
  call.expect_shape("expert_ids", ids.shape, ids_shape);
  call.expect_shape("expert_weights", weights.shape, ids_shape);
  call.expect_shape("gate_up", gate_up.shape,
                    {sizes.experts, 2 * sizes.width, sizes.hidden / codes_per_byte_});
  call.expect_shape("gate_up_scales", gate_up_scales.shape,
                    {sizes.experts, 2 * sizes.width, sizes.hidden_blocks()});
  call.expect_shape("down", down.shape,
                    {sizes.experts, sizes.hidden, sizes.width / codes_per_byte_});
  call.expect_shape("down_scales", down_scales.shape,
                    {sizes.experts, sizes.hidden, sizes.width_blocks()});
  float* y = call.float_output(0, x.shape);
  if (sizes.tokens == 0) return;

  std::vector<int64_t> order;
  const std::vector<Group> groups = sort_slots(call, ids.data, sizes, &order);
  sizes.slots = static_cast<int64_t>(order.size());

  ScratchLayout layout;
  const int64_t hidden_blocks = sizes.hidden_blocks(), width_blocks = sizes.width_blocks();
  const RowsPlace x_place(&layout, sizes.tokens, hidden_blocks, block_);
  const RowsPlace slots_place(&layout, sizes.slots, hidden_blocks, block_);
  const RowsPlace hidden_place(&layout, sizes.slots, width_blocks, block_);
  layout.allocate(Scratch::kCall);
  const Int8Rows x_rows = x_place.at(layout), x_slots = slots_place.at(layout);
  const Int8Rows hidden_slots = hidden_place.at(layout);

  const int64_t strip = std::max<int64_t>(1, 32768 / sizes.hidden);
  call.parallel((sizes.tokens + strip - 1) / strip, [&](int64_t i) {
    const int64_t first = i * strip, count = std::min(strip, sizes.tokens - first);
    g_isa->quantize(x.data + first * sizes.hidden, count, sizes.hidden, block_, hidden_blocks,
                    rows_from(x_rows, first, hidden_blocks, block_));
  });
  call.parallel((sizes.slots + strip - 1) / strip, [&](int64_t i) {
    for (int64_t s = i * strip; s < std::min(sizes.slots, (i + 1) * strip); ++s) {
      const int64_t token = order[static_cast<size_t>(s)] / sizes.slots_per_token;
      const Int8Rows from = rows_from(x_rows, token, hidden_blocks, block_);
      const Int8Rows to = rows_from(x_slots, s, hidden_blocks, block_);
      std::memcpy(to.codes, from.codes, static_cast<size_t>(sizes.hidden));
      std::copy(from.scales, from.scales + hidden_blocks, to.scales);
      std::copy(from.offsets, from.offsets + hidden_blocks, to.offsets);
    }
  });

  const auto num_tasks = static_cast<int64_t>(groups.size()) * width_blocks;
  call.parallel(num_tasks, [&](int64_t i) {
    const auto group_of = [&](int64_t task) {
      return groups[static_cast<size_t>(task / width_blocks)];
    };
    Int8Weight weight{gate_up.data, gate_up_scales.data, sizes.hidden, block_};
    if ((i + 1) % width_blocks == 0 && i + 1 < num_tasks) {
      weight.then = gate_up.data + group_of(i + 1).expert * 2 * sizes.width * sizes.hidden;
    }
    compute_hidden(weight, sizes, group_of(i), i % width_blocks, x_slots, hidden_slots);
  });

  const Int8Weight down_weight{down.data, down_scales.data, sizes.width, block_};
  call.parallel((sizes.hidden + kTaskOutputs - 1) / kTaskOutputs, [&](int64_t i) {
    const int64_t first = i * kTaskOutputs, count = std::min(kTaskOutputs, sizes.hidden - first);
    compute_outputs(down_weight, sizes, groups, order, weights.data, first, count, hidden_slots, y);
  });
}

}  // namespace shoal
