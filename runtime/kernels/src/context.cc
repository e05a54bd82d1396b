// Calls of onnxruntime's C interface behind context.h, their failures as exceptions.
#include "context.h"

namespace shoal {

const ort::Api* g_api = nullptr;

void check(ort::Status* status, const char* what) {
  if (status == nullptr) return;
  ort::release_status(g_api)(status);
  throw std::runtime_error(std::string("onnxruntime refused: ") + what);
}

std::string to_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ",";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

int64_t leading_count(const Shape& shape, size_t skipped) {
  int64_t count = 1;
  for (size_t i = 0; i + skipped < shape.size(); ++i) count *= shape[i];
  return count;
}

int64_t Attributes::integer(const char* name) const {
  int64_t value = 0;
  check(ort::int_attribute(g_api)(info_, name, &value), name);
  return value;
}

float Attributes::real(const char* name) const {
  float value = 0;
  check(ort::float_attribute(g_api)(info_, name, &value), name);
  return value;
}

std::string Attributes::text(const char* name) const {
  size_t size = 0;  // of the text and its closing zero; a call without a buffer asks for it
  check(ort::string_attribute(g_api)(info_, name, nullptr, &size), name);
  std::string value(size, '\0');
  check(ort::string_attribute(g_api)(info_, name, value.data(), &size), name);
  value.resize(size ? size - 1 : 0);
  return value;
}

size_t Call::input_count() const {
  size_t count = 0;
  check(ort::input_count(g_api)(context_, &count), "input count");
  return count;
}

template <class T>
Input<T> Call::tensor(size_t index, size_t min_rank, int type) const {
  const ort::Value* value = nullptr;
  check(ort::input(g_api)(context_, index, &value), "input");
  ort::TensorInfo* info = nullptr;
  check(ort::tensor_info(g_api)(value, &info), "tensor info");
  int found_type = 0;
  size_t rank = 0;
  void* data = nullptr;
  check(ort::element_type(g_api)(info, &found_type), "element type");
  check(ort::dimensions_count(g_api)(info, &rank), "rank");
  Shape shape(rank);
  check(ort::dimensions(g_api)(info, shape.data(), rank), "shape");
  ort::release_tensor_info(g_api)(info);
  check(ort::tensor_data(g_api)(value, &data), "data");
  const std::string where = "input " + std::to_string(index);
  if (found_type != type) {
    fail(where + ": expected element type " + std::to_string(type) + ", found " +
         std::to_string(found_type));
  }
  if (rank < min_rank) {
    fail(where + ": expected at least " + std::to_string(min_rank) + " dimensions, found " +
         to_text(shape));
  }
  return {static_cast<const T*>(data), std::move(shape)};
}

Input<float> Call::floats(size_t index, size_t min_rank) const {
  return tensor<float>(index, min_rank, ort::kFloat);
}

Input<uint8_t> Call::codes(size_t index, size_t min_rank) const {
  return tensor<uint8_t>(index, min_rank, ort::kUint8);
}

Input<uint16_t> Call::halves(size_t index, size_t min_rank) const {
  return tensor<uint16_t>(index, min_rank, ort::kFloat16);
}

int Call::element_type(size_t index) const {
  const ort::Value* value = nullptr;
  check(ort::input(g_api)(context_, index, &value), "input");
  ort::TensorInfo* info = nullptr;
  check(ort::tensor_info(g_api)(value, &info), "tensor info");
  int type = 0;
  check(ort::element_type(g_api)(info, &type), "element type");
  ort::release_tensor_info(g_api)(info);
  return type;
}

Input<int64_t> Call::integers(size_t index, size_t min_rank) const {
  return tensor<int64_t>(index, min_rank, ort::kInt64);
}

float* Call::float_output(size_t index, const Shape& shape) const {
  return static_cast<float*>(output(index, shape));
}

uint8_t* Call::code_output(size_t index, const Shape& shape) const {
  return static_cast<uint8_t*>(output(index, shape));
}

uint16_t* Call::half_output(size_t index, const Shape& shape) const {
  return static_cast<uint16_t*>(output(index, shape));
}

int64_t* Call::integer_output(size_t index, const Shape& shape) const {
  return static_cast<int64_t*>(output(index, shape));
}

void* Call::output(size_t index, const Shape& shape) const {
  ort::Value* value = nullptr;
  check(ort::output(g_api)(context_, index, shape.data(), shape.size(), &value), "output");
  void* data = nullptr;
  check(ort::tensor_data(g_api)(value, &data), "output data");
  return data;
}

void Call::expect_shape(const char* name, const Shape& found, const Shape& expected) const {
  if (found == expected) return;
  fail(std::string(name) + ": expected shape " + to_text(expected) + ", found " + to_text(found));
}

void Call::fail(const std::string& message) const {
  throw InputError(std::string("shoal::") + op_ + " " + message + "; re-export the bundle");
}

void Call::run_parallel(void (*task)(void*, size_t), size_t count, void* data) const {
  check(ort::parallel_for(g_api)(context_, task, count, 0, data), "parallel loop");
}

}  // namespace shoal
