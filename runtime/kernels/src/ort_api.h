// The part of ONNX Runtime's C interface that the kernels use.
//
// onnxruntime's Python packages come without headers. What is needed is small and stable: the
// runtime hands out one table of function pointers to which entries are only ever appended, so an
// entry is known by its place. Places and signatures below are facts of that binary interface;
// tests/kernels runs all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define SHOAL_ORT_CALL __stdcall
#define SHOAL_EXPORT extern "C" __declspec(dllexport)
#else
#define SHOAL_ORT_CALL
#define SHOAL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace shoal::ort {

// Version of the interface asked for: the first that has everything used here is 18, and newer
// runtimes still offer it.
constexpr uint32_t kApiVersion = 18;

// Opaque objects of the runtime.
struct Api;
struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct TensorInfo;
struct ShapeInferContext;

struct ApiBase {
  const Api*(SHOAL_ORT_CALL* get_api)(uint32_t version);  // null: the runtime is too old
  const char*(SHOAL_ORT_CALL* get_version_string)();
};

// kAny: of whatever type the graph has there; at most one input and the output that has its type.
enum ElementType : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// Description of a custom op: what the runtime reads and calls. The order is fixed.
struct CustomOp {
  uint32_t version;
  void*(SHOAL_ORT_CALL* create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(SHOAL_ORT_CALL* get_name)(const CustomOp*);
  const char*(SHOAL_ORT_CALL* get_execution_provider)(const CustomOp*);
  ElementType(SHOAL_ORT_CALL* get_input_type)(const CustomOp*, size_t index);
  size_t(SHOAL_ORT_CALL* get_input_count)(const CustomOp*);
  ElementType(SHOAL_ORT_CALL* get_output_type)(const CustomOp*, size_t index);
  size_t(SHOAL_ORT_CALL* get_output_count)(const CustomOp*);
  void(SHOAL_ORT_CALL* compute)(void* kernel, KernelContext*);
  void(SHOAL_ORT_CALL* destroy_kernel)(void* kernel);
  Characteristic(SHOAL_ORT_CALL* get_input_characteristic)(const CustomOp*, size_t index);
  Characteristic(SHOAL_ORT_CALL* get_output_characteristic)(const CustomOp*, size_t index);
  int(SHOAL_ORT_CALL* get_input_memory_type)(const CustomOp*, size_t index);
  int(SHOAL_ORT_CALL* get_variadic_input_min)(const CustomOp*);
  int(SHOAL_ORT_CALL* get_variadic_input_homogeneous)(const CustomOp*);
  int(SHOAL_ORT_CALL* get_variadic_output_min)(const CustomOp*);
  int(SHOAL_ORT_CALL* get_variadic_output_homogeneous)(const CustomOp*);
  Status*(SHOAL_ORT_CALL* create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*,
                                            void** kernel);
  Status*(SHOAL_ORT_CALL* compute_v2)(void* kernel, KernelContext*);
  Status*(SHOAL_ORT_CALL* infer_output_shape)(const CustomOp*, ShapeInferContext*);
  int(SHOAL_ORT_CALL* get_start_version)(const CustomOp*);
  int(SHOAL_ORT_CALL* get_end_version)(const CustomOp*);
  // Pairs of an input and an output that may share one buffer.
  size_t(SHOAL_ORT_CALL* get_may_inplace)(int** inputs, int** outputs);
  void(SHOAL_ORT_CALL* release_may_inplace)(int* inputs, int* outputs);
  size_t(SHOAL_ORT_CALL* get_alias_map)(int** inputs, int** outputs);
  void(SHOAL_ORT_CALL* release_alias_map)(int* inputs, int* outputs);
};

// One entry of the function table: its place and its type.
template <size_t Place, class Function>
struct Entry {
  Function operator()(const Api* api) const {
    return reinterpret_cast<Function>(reinterpret_cast<void* const*>(api)[Place]);
  }
};

inline constexpr Entry<0, Status*(SHOAL_ORT_CALL*)(int, const char*)> create_status;
inline constexpr Entry<26, Status*(SHOAL_ORT_CALL*)(const char*, CustomOpDomain**)> create_domain;
inline constexpr Entry<27, Status*(SHOAL_ORT_CALL*)(CustomOpDomain*, const CustomOp*)> add_op;
inline constexpr Entry<28, Status*(SHOAL_ORT_CALL*)(SessionOptions*, CustomOpDomain*)> add_domain;
inline constexpr Entry<51, Status*(SHOAL_ORT_CALL*)(const Value*, void**)> tensor_data;
inline constexpr Entry<60, Status*(SHOAL_ORT_CALL*)(const TensorInfo*, int*)> element_type;
inline constexpr Entry<61, Status*(SHOAL_ORT_CALL*)(const TensorInfo*, size_t*)> dimensions_count;
inline constexpr Entry<62, Status*(SHOAL_ORT_CALL*)(const TensorInfo*, int64_t*, size_t)>
    dimensions;
inline constexpr Entry<65, Status*(SHOAL_ORT_CALL*)(const Value*, TensorInfo**)> tensor_info;
inline constexpr Entry<85, Status*(SHOAL_ORT_CALL*)(const KernelInfo*, const char*, float*)>
    float_attribute;
inline constexpr Entry<86, Status*(SHOAL_ORT_CALL*)(const KernelInfo*, const char*, int64_t*)>
    int_attribute;
inline constexpr Entry<87, Status*(SHOAL_ORT_CALL*)(const KernelInfo*, const char*, char*, size_t*)>
    string_attribute;
inline constexpr Entry<88, Status*(SHOAL_ORT_CALL*)(const KernelContext*, size_t*)> input_count;
inline constexpr Entry<90, Status*(SHOAL_ORT_CALL*)(const KernelContext*, size_t, const Value**)>
    input;
inline constexpr Entry<91, Status*(SHOAL_ORT_CALL*)(KernelContext*, size_t, const int64_t*, size_t,
                                                    Value**)>
    output;
inline constexpr Entry<93, void(SHOAL_ORT_CALL*)(Status*)> release_status;
inline constexpr Entry<99, void(SHOAL_ORT_CALL*)(TensorInfo*)> release_tensor_info;
inline constexpr Entry<101, void(SHOAL_ORT_CALL*)(CustomOpDomain*)> release_domain;
inline constexpr Entry<274, Status*(SHOAL_ORT_CALL*)(const KernelContext*, void (*)(void*, size_t),
                                                     size_t, size_t, void*)>
    parallel_for;

}  // namespace shoal::ort
