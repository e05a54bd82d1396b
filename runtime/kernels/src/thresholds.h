// Every size at which the kernels change what they do, and why it is what it is.
//
// "Measured" means on two cores of an AMD EPYC (Zen 4, AVX512-VNNI: 32 KiB first-level and 1 MiB
// second-level cache a core), with the layer shapes of DeepSeek-V2-Lite; what is not called
// measured follows from cache sizes, numbers of registers or a bound on memory. On ARM nothing has
// been measured yet. None of these changes a result, but for kChunkRows (the order in which parts
// of the cache are added) and kAbsorbedUpToTokens (which form of attention runs).
#pragma once

#include <cstdint>

namespace shoal {

// Memory.

constexpr int64_t kCacheLineBytes = 64;
constexpr int64_t kCacheLineFloats = kCacheLineBytes / int64_t{sizeof(float)};

// How far ahead packing and unpacking ask for bytes. Processors stop prefetching at the end of a
// 4 KiB page, which mapped files have. Measured for int8 products, which ask for the next four
// rows: one token through V2-Lite's experts took 4.6 ms without and 1.7 ms with it.
constexpr int64_t kPackPrefetchBytes = 512;
constexpr int64_t kUnpackPrefetchBytes = 1024;

// Register tiles.

// Outputs that the innermost loops keep in registers, by instruction set.
struct RegisterTiles {
  int dot_rows;        // dot_rows: rows of a, times kDotColumns rows of b
  int sum_rows;        // add_weighted_rows: rows of out,
  int sum_vectors;     //   times vectors of each
  int product_tokens;  // product: activation rows, times kProductRows weight rows
};

// Four, as sum4 and store4 of the vector primitives take four vectors to four outputs.
constexpr int kDotColumns = 4;
constexpr int kProductRows = 4;

// AVX2 has 16 registers, AVX-512 and NEON have 32; operands need some besides the sums. With i8mm a
// sum holds two tokens by two rows, so twice as many tokens fit.
constexpr RegisterTiles kPortableTiles{
    .dot_rows = 2, .sum_rows = 2, .sum_vectors = 2, .product_tokens = 2};
constexpr RegisterTiles kAvx2Tiles{
    .dot_rows = 2, .sum_rows = 3, .sum_vectors = 4, .product_tokens = 2};
constexpr RegisterTiles kAvx512Tiles{
    .dot_rows = 4, .sum_rows = 6, .sum_vectors = 4, .product_tokens = 4};
constexpr RegisterTiles kNeonTiles{
    .dot_rows = 4, .sum_rows = 4, .sum_vectors = 4, .product_tokens = 2};
constexpr RegisterTiles kDotprodTiles{
    .dot_rows = 4, .sum_rows = 4, .sum_vectors = 4, .product_tokens = 4};
constexpr RegisterTiles kI8mmTiles{
    .dot_rows = 4, .sum_rows = 4, .sum_vectors = 4, .product_tokens = 8};

// dot_rows: values of a that stay in the first-level cache while all of b passes by: 20 of 32 KiB.
constexpr int64_t kDotBlockFloats = 5120;

// int8 products.

// AVX-512: weight rows packed at a time, two vectors of outputs; and tokens of a register tile, 12
// sums. Measured: a 3072x2048 weight and 256 tokens, one thread: 180 G multiply-adds/s, without
// packing 77.
constexpr int64_t kPanelRows = 32;
constexpr int kPanelTokens = 6;

// From how many tokens on packing pays. Measured: from 12 on, and from 8 since the next rows are
// prefetched while a panel is computed, which took 8 % off a prompt of 128 tokens.
constexpr int64_t kPackFromTokens = 8;

// 4-bit weights: rows that are int8 codes at a time. Of many tokens, as many as are packed; of few,
// as many as stay in the first-level cache. Measured: decoding 2.55 billion weights with
// int4-experts, 28 tokens/s with 32 rows, as fast as int8 (55) with 8 and pairs of blocks.
constexpr int64_t kUnpackedRows = kPanelRows;
constexpr int64_t kUnpackedRowsOfFew = 8;

// Bytes of 4-bit weights unpacked in one loop of fixed trip count. Measured: 1.5 times as fast as a
// loop over all of them.
constexpr int64_t kUnpackStepBytes = 64;

// Tasks: what one thread is given at a time.

// Linear: weight rows of one task. For few tokens about this many bytes: enough that handing out
// tasks costs nothing, few enough that all threads end together. From kWholePanelTokens activation
// rows on, at least one panel, whose packed form stays in the second-level cache.
constexpr int64_t kTaskBytes = 64 << 10;
constexpr int64_t kMinTaskRows = 16;  // task sizes are multiples of it
constexpr int64_t kMaxTaskRows = 256;
constexpr int64_t kWholePanelTokens = 16;

// Activation values that one task quantizes or copies: 128 KiB of floats.
constexpr int64_t kQuantizeTaskValues = 32768;

// SparseExperts: (token, expert) pairs computed at a time, which bounds a task's scratch memory;
// and outputs of one task of the second product.
constexpr int64_t kStripSlots = 128;
constexpr int64_t kDownTaskOutputs = 64;

// Attention.

// Cached tokens of one chunk: 64 x 576 floats, V2-Lite's and V3's rows, are 144 KiB.
constexpr int64_t kChunkRows = 64;

// Up to so many new tokens the absorbed form runs whatever it costs, so that a token that is
// decoded alone and one that is verified with its neighbours get the same bits; at least
// LONGEST_SHORT_STEP of graphs/ops/spec.py. Above, the form with fewer multiply-adds runs.
// Measured: 512 new tokens, 16 heads, one thread: 42 ms a layer expanded, 80 ms absorbed.
constexpr int64_t kAbsorbedUpToTokens = 16;

// Absorbed form: new tokens computed at a time, and query rows times chunks whose results are kept
// at a time; both bound scratch memory.
constexpr int64_t kAbsorbedGroupTokens = 64;
constexpr int64_t kAbsorbedWaveRows = 2048;
// New tokens of one task, and rows of w_uk or w_uv dequantized at a time: 16 x 512 floats are 32
// KiB of the second-level cache.
constexpr int64_t kAbsorbedTaskTokens = 4;
constexpr int64_t kDequantizedRows = 16;

// Expanded form: query rows of one head that attend to a chunk at a time.
constexpr int64_t kExpandedTileRows = 32;

}  // namespace shoal
