// The ops of the domain "shoal" that have a native kernel.
#pragma once

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

  explicit Linear(const Attributes& attributes);
  void compute(const Call& call) const;

 private:
  int64_t k_, n_, block_;
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

// shoal::LatentAttention, meaning in graphs/ops/latent_attention.py.
class LatentAttention {
 public:
  static constexpr const char* kName = "LatentAttention";
  static constexpr std::array<ort::ElementType, 9> kInputs{ort::kFloat, ort::kFloat, ort::kFloat,
                                                           ort::kFloat, ort::kFloat, ort::kUint8,
                                                           ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr std::array<ort::ElementType, 2> kOutputs{ort::kFloat, ort::kFloat};
  static constexpr size_t kRequiredInputs = 9;
  static constexpr std::array<InPlace, 1> kInPlace{{{4, 1}}};  // the cache

  explicit LatentAttention(const Attributes& attributes);
  void compute(const Call& call) const;

 private:
  float scale_;
  int64_t block_;
};

}  // namespace shoal
