// SparseExperts and Int4SparseExperts: the feed-forward networks of the chosen experts.
//
// A slot is one (token, chosen expert) pair. Slots are sorted by expert, so that each routed
// expert's weights are read once and its tokens lie side by side. A token's experts are added in
// the order of their ids, whatever else is in the call. An id equal to the number of experts means
// no expert.
#include <algorithm>
#include <cstring>
#include <vector>

#include "int8_rows.h"
#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "thresholds.h"
#include "weights.h"

namespace shoal {

namespace {

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

// The low and then the high half of every byte, times 16: int8 codes.
void unpack(const uint8_t* packed, int64_t count, uint8_t* codes) {
  const auto widen = [&](int64_t i) {
    codes[2 * i] = static_cast<uint8_t>(packed[i] << 4);
    codes[2 * i + 1] = packed[i] & 0xf0;
  };
  int64_t start = 0;
  for (; start + kUnpackStepBytes <= count; start += kUnpackStepBytes) {
    __builtin_prefetch(packed + start + kUnpackPrefetchBytes, 0, 2);
    for (int64_t i = 0; i < kUnpackStepBytes; ++i) widen(start + i);  // fixed trip count
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
  const int64_t step = tokens < kPackFromTokens ? kUnpackedRowsOfFew : kUnpackedRows;
  for (int64_t n = 0; n < count; n += step) {
    const int64_t rows = std::min(step, count - n);
    unpack(weight.codes + (first + n) * weight.k / 2, rows * weight.k / 2, codes);
    const Int8Weight part{codes, weight.scales + (first + n) * (weight.k / weight.block), weight.k,
                          weight.block, codes};
    g_isa->product(part, 0, rows, x, tokens, y + n, y_stride);
  }
}

// One call: its weights, its sorted slots and its rows in scratch memory.
struct Work {
  Sizes sizes;
  std::vector<int64_t> order;  // of the sorted slots: which slot of the inputs each is
  std::vector<Group> groups;
  Int8Weight gate_up, down;
  Int8Rows x_slots;       // [slots, hidden]: the inputs of each slot
  Int8Rows hidden_slots;  // [slots, width]
};

// Quantizes x once for each token, in `x_rows`, and copies it to the token's slots.
void fill_slots(const Call& call, const Work& work, const float* x, const Int8Rows& x_rows) {
  const Sizes& sizes = work.sizes;
  const int64_t blocks = sizes.hidden_blocks(), step = rows_per_quantize_task(sizes.hidden);
  call.parallel_ranges(sizes.tokens, step, [&](int64_t first, int64_t count) {
    g_isa->quantize(x + first * sizes.hidden, count, sizes.hidden, sizes.block, blocks,
                    rows_from(x_rows, first, blocks, sizes.block));
  });
  call.parallel_ranges(sizes.slots, step, [&](int64_t first, int64_t count) {
    for (int64_t s = first; s < first + count; ++s) {
      const int64_t token = work.order[static_cast<size_t>(s)] / sizes.slots_per_token;
      const Int8Rows from = rows_from(x_rows, token, blocks, sizes.block);
      const Int8Rows to = rows_from(work.x_slots, s, blocks, sizes.block);
      std::memcpy(to.codes, from.codes, static_cast<size_t>(sizes.hidden));
      std::copy(from.scales, from.scales + blocks, to.scales);
      std::copy(from.offsets, from.offsets + blocks, to.offsets);
    }
  });
}

// One block of hidden values of a group: gate and up rows, SwiGLU, quantized for `down`.
void compute_hidden(const Work& work, const Int8Weight& gate_up, const Group& group,
                    int64_t hidden_block) {
  const Sizes& sizes = work.sizes;
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
             rows_from(work.x_slots, slot, sizes.hidden_blocks(), block), count, y, rows);
    g_isa->swiglu(y, count * block, hidden);
    const int64_t at = slot * sizes.width_blocks() + hidden_block;
    g_isa->quantize(hidden, count, block, block, sizes.width_blocks(),
                    rows_from(work.hidden_slots, at, 1, block));
  }
}

// Hidden values of all slots; a task computes one block of one expert.
void compute_all_hidden(const Call& call, const Work& work) {
  const Sizes& sizes = work.sizes;
  const int64_t blocks = sizes.width_blocks();
  const auto num_tasks = static_cast<int64_t>(work.groups.size()) * blocks;
  const auto group_of = [&](int64_t task) -> const Group& {
    return work.groups[static_cast<size_t>(task / blocks)];
  };
  call.parallel(num_tasks, [&](int64_t i) {
    Int8Weight weight = work.gate_up;
    if ((i + 1) % blocks == 0 && i + 1 < num_tasks) {
      weight.next_codes = weight.codes + group_of(i + 1).expert * 2 * sizes.width * sizes.hidden;
    }
    compute_hidden(work, weight, group_of(i), i % blocks);
  });
}

// Outputs first..first+count-1 of all tokens.
void compute_outputs(const Work& work, const float* weights, int64_t first, int64_t count,
                     float* y) {
  const Sizes& sizes = work.sizes;
  Int8Weight down = work.down;
  ScratchLayout layout;
  const size_t place = layout.add<float>(kStripSlots * count);
  layout.allocate(Scratch::kTask);
  auto* products = layout.at<float>(place);
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    std::memset(y + t * sizes.hidden + first, 0, static_cast<size_t>(count) * sizeof(float));
  }
  for (size_t g = 0; g < work.groups.size(); ++g) {
    const Group& group = work.groups[g];
    const bool is_last = g + 1 == work.groups.size();
    down.next_codes =
        is_last ? nullptr
                : down.codes + (work.groups[g + 1].expert * sizes.hidden + first) * down.k;
    for (int64_t s = 0; s < group.count; s += kStripSlots) {
      const int64_t strip = std::min(kStripSlots, group.count - s), slot = group.first + s;
      multiply(down, sizes, group.expert * sizes.hidden + first, count,
               rows_from(work.hidden_slots, slot, sizes.width_blocks(), sizes.block), strip,
               products, count);
      for (int64_t i = 0; i < strip; ++i) {
        const int64_t source = work.order[static_cast<size_t>(slot + i)];
        float* to = y + source / sizes.slots_per_token * sizes.hidden + first;
        g_isa->blend(1.0f, to, weights[source], products + i * count, count);
      }
    }
  }
}

// The op's inputs, checked.
struct ExpertInputs {
  Input<float> x;
  Input<int64_t> ids;
  Input<float> weights;
  Input<uint8_t> gate_up;
  Input<float> gate_up_scales;
  Input<uint8_t> down;
  Input<float> down_scales;
  Sizes sizes{};

  ExpertInputs(const Call& call, int64_t block, int64_t codes_per_byte)
      : x(call.floats(0, 1)),
        ids(call.integers(1, 1)),
        weights(call.floats(2, 1)),
        gate_up(call.codes(3, 3)),
        gate_up_scales(call.floats(4, 3)),
        down(call.codes(5, 3)),
        down_scales(call.floats(6, 3)) {
    sizes.block = block;
    sizes.codes_per_byte = codes_per_byte;
    sizes.tokens = leading_count(x.shape, 1);
    sizes.hidden = x.shape.back();
    sizes.experts = gate_up.shape[0];
    sizes.width = gate_up.shape[1] / 2;
    sizes.slots_per_token = ids.shape.back();
    sizes.slots = sizes.tokens * sizes.slots_per_token;
    check_blocks(call, "gate_up", sizes.hidden, block);
    check_blocks(call, "down", sizes.width, block);
    Shape ids_shape = x.shape;
    ids_shape.back() = sizes.slots_per_token;
    const int64_t experts = sizes.experts, hidden = sizes.hidden, rows = 2 * sizes.width;
    call.expect_shape("expert_ids", ids.shape, ids_shape);
    call.expect_shape("expert_weights", weights.shape, ids_shape);
    call.expect_shape("gate_up", gate_up.shape, {experts, rows, hidden / codes_per_byte});
    call.expect_shape("gate_up_scales", gate_up_scales.shape,
                      {experts, rows, sizes.hidden_blocks()});
    call.expect_shape("down", down.shape, {experts, hidden, sizes.width / codes_per_byte});
    call.expect_shape("down_scales", down_scales.shape, {experts, hidden, sizes.width_blocks()});
  }
};

}  // namespace

SparseExperts::SparseExperts(const Attributes& attributes, int bits)
    : block_(attributes.integer("block_size")), codes_per_byte_(8 / bits) {
  check_block_size(block_);
}

void SparseExperts::compute(const Call& call) const {
  const ExpertInputs inputs(call, block_, codes_per_byte_);
  float* y = call.float_output(0, inputs.x.shape);
  Work work{};
  Sizes& sizes = work.sizes = inputs.sizes;
  if (sizes.tokens == 0) return;
  work.groups = sort_slots(call, inputs.ids.data, sizes, &work.order);
  sizes.slots = static_cast<int64_t>(work.order.size());
  work.gate_up = {inputs.gate_up.data, inputs.gate_up_scales.data, sizes.hidden, block_};
  work.down = {inputs.down.data, inputs.down_scales.data, sizes.width, block_};

  ScratchLayout layout;
  const RowsPlace x_place(&layout, sizes.tokens, sizes.hidden_blocks(), block_);
  const RowsPlace slots_place(&layout, sizes.slots, sizes.hidden_blocks(), block_);
  const RowsPlace hidden_place(&layout, sizes.slots, sizes.width_blocks(), block_);
  layout.allocate(Scratch::kCall);
  work.x_slots = slots_place.at(layout);
  work.hidden_slots = hidden_place.at(layout);

  fill_slots(call, work, inputs.x.data, x_place.at(layout));
  compute_all_hidden(call, work);
  call.parallel_ranges(sizes.hidden, kDownTaskOutputs, [&](int64_t first, int64_t count) {
    compute_outputs(work, inputs.weights.data, first, count, y);
  });
}

}  // namespace shoal
