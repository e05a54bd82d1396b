// What the shared library exports: the registration of its ops, and their names and the instruction
// set's for Python.
#include <mutex>
#include <string>

#include "isa.h"
#include "ops.h"

namespace {

using shoal::ort::Api;
using shoal::ort::ApiBase;
using shoal::ort::CustomOp;
using shoal::ort::CustomOpDomain;
using shoal::ort::SessionOptions;
using shoal::ort::Status;

constexpr const char* kDomain = "shoal";

const CustomOp* const* all_ops(size_t* count) {
  static const CustomOp* const ops[] = {
      shoal::custom_op<shoal::Linear>(),
      shoal::custom_op<shoal::PreciseLinear>(),
      shoal::custom_op<shoal::SparseExperts>(),
      shoal::custom_op<shoal::Int4SparseExperts>(),
      shoal::custom_op<shoal::LatentAttention>(),
      shoal::custom_op<shoal::LatentAttentionInt8Cache>(),
  };
  *count = sizeof ops / sizeof *ops;
  return ops;
}

Status* add_ops(const Api* api, SessionOptions* options) {
  // Sessions refer to the domain as long as they live, so it is made once and kept.
  static CustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    if (Status* failed = shoal::ort::create_domain(api)(kDomain, &domain)) return failed;
    size_t count = 0;
    const CustomOp* const* ops = all_ops(&count);
    for (size_t i = 0; i < count; ++i) {
      if (Status* failed = shoal::ort::add_op(api)(domain, ops[i])) return failed;
    }
  }
  return shoal::ort::add_domain(api)(options, domain);
}

}  // namespace

// Called by onnxruntime when the library is registered with a session's options.
SHOAL_EXPORT Status* SHOAL_ORT_CALL RegisterCustomOps(SessionOptions* options,
                                                      const ApiBase* base) {
  static std::mutex mutex;  // sessions may be made in several threads
  const std::lock_guard<std::mutex> lock(mutex);
  const Api* api = base->get_api(shoal::ort::kApiVersion);
  if (api == nullptr) {
    const Api* oldest = base->get_api(1);  // every runtime has it, and it can make an error
    const std::string text = "onnxruntime " + std::string(base->get_version_string()) +
                             " is too old for the shoal kernels: expected interface version " +
                             std::to_string(shoal::ort::kApiVersion) +
                             "; upgrade onnxruntime or use kernels portable";
    return shoal::ort::create_status(oldest)(shoal::ort::kFail, text.c_str());
  }
  shoal::g_api = api;
  shoal::g_isa = shoal::choose_isa();
  if (shoal::g_isa == nullptr) {
    const std::string names = shoal::isa_names();
    const std::string text = "SHOAL_ISA: expected one of " + names + "; unset it to take the best";
    return shoal::ort::create_status(api)(shoal::ort::kInvalidArgument, text.c_str());
  }
  return add_ops(api, options);
}

// Names of the ops with a kernel, comma-separated.
SHOAL_EXPORT const char* shoal_op_names() {
  static const std::string names = [] {
    std::string text;
    size_t count = 0;
    const CustomOp* const* ops = all_ops(&count);
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) text += ",";
      text += ops[i]->get_name(ops[i]);
    }
    return text;
  }();
  return names.c_str();
}

// Name of the instruction set that is used, null if SHOAL_ISA asks for one that is not there.
SHOAL_EXPORT const char* shoal_isa_name() {
  const shoal::Isa* isa = shoal::choose_isa();
  return isa == nullptr ? nullptr : isa->name;
}

// Names of the instruction sets this processor can use, comma-separated, best first.
SHOAL_EXPORT const char* shoal_isa_names() { return shoal::isa_names(); }
