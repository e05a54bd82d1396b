// The table of inner loops, one version for each instruction set, chosen when the library is
// loaded.
//
// Every version gives the same bits for the int8 products: block sums are exact integers, and
// blocks are added in order with fused multiply-adds. A row's result never depends on the rows
// computed beside it, so reading a token alone, in a prompt or as a draft to be verified is equal.
#pragma once

#include <cstdint>

// Old compilers do not know the newest instructions; what they build does without.
#if defined(__clang__)
#define SHOAL_COMPILER_IS(gcc_version, clang_version) (__clang_major__ >= clang_version)
#else
#define SHOAL_COMPILER_IS(gcc_version, clang_version) (__GNUC__ >= gcc_version)
#endif
#if defined(__x86_64__) && SHOAL_COMPILER_IS(11, 12)
#define SHOAL_HAS_AVXVNNI
#endif
// Before 16, clang's arm_neon.h hides what the whole file is not compiled for.
#if defined(__aarch64__) && SHOAL_COMPILER_IS(8, 16)
#define SHOAL_HAS_DOTPROD
#endif
#if defined(__aarch64__) && SHOAL_COMPILER_IS(10, 16)
#define SHOAL_HAS_I8MM
#endif

namespace shoal {

// The code of a weight of 0.
constexpr int kZeroPoint = 128;

// Rows of int8 activations: value = codes * scale, one scale for a block of neighbours.
struct Int8Rows {
  int8_t* codes;     // [rows, k]
  float* scales;     // [rows, k / block]
  int32_t* offsets;  // [rows, k / block]: -kZeroPoint * (sum of the block's codes), see Int8Weight
};

// A weight as it lies in the file: value = (codes - kZeroPoint) * scale. Products use the codes as
// they are, (w - 128) a = w a - 128 a, and start each block's sum at the activations' offset.
struct Int8Weight {
  const uint8_t* codes;  // [rows, k]
  const float* scales;   // [rows, k / block]
  int64_t k;
  int64_t block;  // 16, 32, 64, 128 or 256; divides k

  // The codes that the caller will multiply next, to be prefetched meanwhile; null: the rows that
  // follow. Addresses past the weight do no harm.
  const uint8_t* next_codes = nullptr;
};

// What every instruction set offers; isa_table-inl.h fills one in.
struct Isa {
  const char* name;

  // Quantizes x [rows, k]: scale = max|x| / 127 of the block, codes rounded half to even. A block
  // with NaN or infinity gets the scale NaN, which reaches every output of the row. The rows of
  // `to` start `to_row_blocks` blocks apart (k / block when they are dense).
  void (*quantize)(const float* x, int64_t rows, int64_t k, int64_t block, int64_t to_row_blocks,
                   Int8Rows to);

  // y[t, n] = row first + n of the weight times activation row t, n < count, t < tokens.
  void (*product)(const Int8Weight& weight, int64_t first, int64_t count, const Int8Rows& x,
                  int64_t tokens, float* y, int64_t y_stride);

  // silu(gate) * up of [gate 0, up 0, gate 1, up 1, ...].
  void (*swiglu)(const float* gate_up, int64_t count, float* hidden);

  // floats[i] = (codes[i] - kZeroPoint) * scales[i / block]
  void (*dequantize)(const uint8_t* codes, const float* scales, int64_t count, int64_t block,
                     float* floats);

  // float16 values as floats.
  void (*widen_halves)(const uint16_t* halves, int64_t count, float* floats);

  // out[m, n] = a[m] . b[n] over k values, in an order that depends on k only.
  void (*dot_rows)(const float* a, int64_t a_stride, int64_t m, const float* b, int64_t b_stride,
                   int64_t n, int64_t k, float* out, int64_t out_stride);

  // out[m] += sum over k of p[m, k] * v[k], rows of `width` values, k in order.
  void (*add_weighted_rows)(const float* p, int64_t p_stride, int64_t m, const float* v,
                            int64_t v_stride, int64_t k, int64_t width, float* out,
                            int64_t out_stride);

  // scores -> exp(scores - max), in place; the max and the sum. count > 0.
  void (*softmax_part)(float* scores, int64_t count, float* max, float* sum);

  // out = a * out + b * x
  void (*blend)(float a, float* out, float b, const float* x, int64_t count);
};

extern const Isa kPortableIsa;
#if defined(__x86_64__)
extern const Isa kAvx2Isa;
extern const Isa kAvxVnniIsa;
extern const Isa kAvx512VnniIsa;
#elif defined(__aarch64__)
extern const Isa kNeonIsa;
extern const Isa kDotprodIsa;
extern const Isa kI8mmIsa;
#endif

// The best table this processor can use, or the one SHOAL_ISA names. Null: it names none of those.
const Isa* choose_isa();

// The names SHOAL_ISA can have on this machine, comma-separated.
const char* isa_names();

// The choice of choose_isa() made at registration.
extern const Isa* g_isa;

}  // namespace shoal
