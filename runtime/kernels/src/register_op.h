// Makes an onnxruntime custom op of a class that has
//   static constexpr const char* kName;
//   static constexpr std::array<ort::ElementType, n> kInputs, kOutputs;
//   static constexpr size_t kRequiredInputs;          // the others are optional
//   static constexpr std::array<InPlace, n> kInPlace;  // outputs that may share an input's buffer
//   explicit Class(const Attributes&);
//   void compute(const Call&) const;                   // called by several threads at once
#pragma once

#include <array>
#include <climits>
#include <cstdlib>
#include <exception>

#include "context.h"

namespace shoal {

struct InPlace {
  int input;
  int output;
};

// Runs an action; its exception becomes the runtime's error object.
template <class Action>
ort::Status* as_status(const Action& action) noexcept {
  try {
    action();
    return nullptr;
  } catch (const InputError& error) {
    return ort::create_status(g_api)(ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ort::create_status(g_api)(ort::kFail, error.what());
  }
}

template <class Kernel>
size_t may_inplace(int** inputs, int** outputs) {
  constexpr size_t count = Kernel::kInPlace.size();
  *inputs = *outputs = nullptr;
  if constexpr (count > 0) {
    *inputs = static_cast<int*>(std::malloc(count * sizeof(int)));
    *outputs = static_cast<int*>(std::malloc(count * sizeof(int)));
    if (*inputs == nullptr || *outputs == nullptr) return 0;
    for (size_t i = 0; i < count; ++i) {
      (*inputs)[i] = Kernel::kInPlace[i].input;
      (*outputs)[i] = Kernel::kInPlace[i].output;
    }
  }
  return count;
}

// The description of one op; the runtime keeps the pointer as long as the library is loaded.
template <class Kernel>
const ort::CustomOp* custom_op() {
  static const ort::CustomOp op = [] {
    using Op = const ort::CustomOp*;
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.get_name = [](Op) { return Kernel::kName; };
    made.get_execution_provider = [](Op) { return "CPUExecutionProvider"; };
    made.get_input_type = [](Op, size_t i) { return Kernel::kInputs[i]; };
    made.get_input_count = [](Op) { return Kernel::kInputs.size(); };
    made.get_output_type = [](Op, size_t i) { return Kernel::kOutputs[i]; };
    made.get_output_count = [](Op) { return Kernel::kOutputs.size(); };
    made.get_input_characteristic = [](Op, size_t i) {
      return i < Kernel::kRequiredInputs ? ort::kRequired : ort::kOptional;
    };
    made.get_output_characteristic = [](Op, size_t) { return ort::kRequired; };
    made.get_input_memory_type = [](Op, size_t) { return 0; };
    made.get_variadic_input_min = made.get_variadic_output_min = [](Op) { return 1; };
    made.get_variadic_input_homogeneous = [](Op) { return 1; };
    made.get_variadic_output_homogeneous = [](Op) { return 1; };
    made.get_start_version = [](Op) { return 1; };
    made.get_end_version = [](Op) { return INT_MAX; };
    made.create_kernel_v2 = [](Op, const ort::Api*, const ort::KernelInfo* info, void** kernel) {
      return as_status([&] { *kernel = new Kernel(Attributes(info)); });
    };
    made.compute_v2 = [](void* kernel, ort::KernelContext* context) {
      return as_status(
          [&] { static_cast<const Kernel*>(kernel)->compute(Call(Kernel::kName, context)); });
    };
    made.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    made.get_may_inplace = may_inplace<Kernel>;
    made.release_may_inplace = [](int* inputs, int* outputs) {
      std::free(inputs);
      std::free(outputs);
    };
    made.get_alias_map = [](int** inputs, int** outputs) {
      *inputs = *outputs = nullptr;
      return size_t{0};
    };
    made.release_alias_map = [](int*, int*) {};
    return made;
  }();
  return &op;
}

}  // namespace shoal
