// The ops of the domain "shoal" that have a native kernel.
#pragma once

#include "isa.h"
#include "register_op.h"

namespace shoal {

// shoal::Linear, meaning in graphs/ops/linear.py.
class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr std::array<ort::ElementType, 3> kInputs{ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr std::array<ort::ElementType, 1> kOutputs{ort::kFloat};
  static constexpr size_t kRequiredInputs = 3;
  static constexpr std::array<InPlace, 0> kInPlace{};

  explicit Linear(const Attributes& attributes) : Linear(attributes, 1) {}
  void compute(const Call& call) const;

 protected:
  Linear(const Attributes& attributes, int terms);

 private:
  // Row t of `rows` becomes token t of x; with two terms, row tokens + t what that has lost.
  void quantize_terms(const Call& call, const float* x, int64_t tokens, const Int8Rows& rows) const;

  int64_t k_, n_, block_, terms_;
};

// shoal::PreciseLinear: the same with x as the sum of two int8 terms, the second of which is what
// rounding took from the first.
class PreciseLinear : public Linear {
 public:
  static constexpr const char* kName = "PreciseLinear";

  explicit PreciseLinear(const Attributes& attributes) : Linear(attributes, 2) {}
};

// shoal::SparseExperts, meaning in graphs/ops/sparse_experts.py.
class SparseExperts {
 public:
  static constexpr const char* kName = "SparseExperts";
  static constexpr std::array<ort::ElementType, 7> kInputs{
      ort::kFloat, ort::kInt64, ort::kFloat, ort::kUint8, ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr std::array<ort::ElementType, 1> kOutputs{ort::kFloat};
  static constexpr size_t kRequiredInputs = 7;
  static constexpr std::array<InPlace, 0> kInPlace{};

  explicit SparseExperts(const Attributes& attributes) : SparseExperts(attributes, 8) {}
  void compute(const Call& call) const;

 protected:
  SparseExperts(const Attributes& attributes, int bits);

 private:
  int64_t block_, codes_per_byte_;
};

// shoal::Int4SparseExperts: the same with two weights in a byte.
class Int4SparseExperts : public SparseExperts {
 public:
  static constexpr const char* kName = "Int4SparseExperts";

  explicit Int4SparseExperts(const Attributes& attributes) : SparseExperts(attributes, 4) {}
};

// shoal::LatentAttention, meaning in graphs/ops/latent_attention.py; a float32 or float16 cache.
class LatentAttention {
 public:
  static constexpr const char* kName = "LatentAttention";
  static constexpr std::array<ort::ElementType, 9> kInputs{ort::kFloat, ort::kFloat, ort::kFloat,
                                                           ort::kFloat, ort::kAny,   ort::kUint8,
                                                           ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr std::array<ort::ElementType, 2> kOutputs{ort::kFloat, ort::kAny};
  static constexpr size_t kRequiredInputs = 9;
  static constexpr std::array<InPlace, 1> kInPlace{{{4, 1}}};  // the cache

  explicit LatentAttention(const Attributes& attributes);
  void compute(const Call& call) const;

 private:
  float scale_;
  int64_t block_;
};

// shoal::LatentAttentionInt8Cache, meaning in graphs/ops/int8_cache.py.
class LatentAttentionInt8Cache {
 public:
  static constexpr const char* kName = "LatentAttentionInt8Cache";
  static constexpr std::array<ort::ElementType, 11> kInputs{
      ort::kFloat,   ort::kFloat, ort::kFloat, ort::kFloat, ort::kUint8, ort::kFloat,
      ort::kFloat16, ort::kUint8, ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr std::array<ort::ElementType, 4> kOutputs{ort::kFloat, ort::kUint8, ort::kFloat,
                                                            ort::kFloat16};
  static constexpr size_t kRequiredInputs = 11;
  static constexpr std::array<InPlace, 3> kInPlace{{{4, 1}, {5, 2}, {6, 3}}};  // the cache

  explicit LatentAttentionInt8Cache(const Attributes& attributes);
  void compute(const Call& call) const;

 private:
  float scale_;
  int64_t block_, cache_block_;
};

}  // namespace shoal
