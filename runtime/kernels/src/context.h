// What a kernel sees of ONNX Runtime: attributes, tensors and threads, with errors as exceptions.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_api.h"

namespace shoal {

// The function table, set once when the library is registered.
extern const ort::Api* g_api;

// Turns a failed call into an exception.
void check(ort::Status* status, const char* what);

// A wrong input, attribute or shape. The message is one line: where, what was expected and found.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<int64_t>;

std::string to_text(const Shape& shape);

// Product of all sizes but the last `skipped`.
int64_t leading_count(const Shape& shape, size_t skipped);

// Attributes of a node.
class Attributes {
 public:
  explicit Attributes(const ort::KernelInfo* info) : info_(info) {}
  int64_t integer(const char* name) const;
  float real(const char* name) const;
  std::string text(const char* name) const;

 private:
  const ort::KernelInfo* info_;
};

// An input tensor. The data is where the runtime has it: for weights, in the mapped file.
template <class T>
struct Input {
  const T* data;
  Shape shape;
};

// One call of a kernel.
class Call {
 public:
  Call(const char* op, ort::KernelContext* context) : op_(op), context_(context) {}

  size_t input_count() const;
  Input<float> floats(size_t index, size_t min_rank) const;
  Input<uint8_t> codes(size_t index, size_t min_rank) const;
  Input<uint16_t> halves(size_t index, size_t min_rank) const;
  int element_type(size_t index) const;
  Input<int64_t> integers(size_t index, size_t min_rank) const;
  float* float_output(size_t index, const Shape& shape) const;
  uint8_t* code_output(size_t index, const Shape& shape) const;
  uint16_t* half_output(size_t index, const Shape& shape) const;
  int64_t* integer_output(size_t index, const Shape& shape) const;

  // Throws an InputError unless the shapes are equal; `name` is the input's.
  void expect_shape(const char* name, const Shape& found, const Shape& expected) const;
  [[noreturn]] void fail(const std::string& message) const;

  // Runs task(i) for i in 0..count-1 on the runtime's threads; the caller takes part. The message
  // of a task's first exception is thrown here, after all have ended. (std::exception_ptr would do
  // it for any type, but needs a libstdc++ newer than that of the systems onnxruntime runs on.)
  template <class Task>
  void parallel(int64_t count, const Task& task) const {
    if (count <= 0) return;
    if (count == 1) {
      task(int64_t{0});
      return;
    }
    struct Shared {
      const Task* task;
      std::atomic<bool> has_failed{false};
      char error[256] = {};
    } shared;
    shared.task = &task;
    run_parallel(
        [](void* data, size_t index) {
          auto* all = static_cast<Shared*>(data);
          try {
            (*all->task)(static_cast<int64_t>(index));
          } catch (const std::exception& error) {
            if (all->has_failed.exchange(true)) return;
            std::strncpy(all->error, error.what(), sizeof(all->error) - 1);
          }
        },
        static_cast<size_t>(count), &shared);
    if (shared.has_failed) throw std::runtime_error(shared.error);
  }

  // Cuts 0..total-1 into ranges of `step`, the last of which may be shorter, and runs
  // task(first, count) for each, as `parallel` does.
  template <class Task>
  void parallel_ranges(int64_t total, int64_t step, const Task& task) const {
    parallel((total + step - 1) / step, [&](int64_t i) {
      const int64_t first = i * step;
      task(first, std::min(step, total - first));
    });
  }

 private:
  template <class T>
  Input<T> tensor(size_t index, size_t min_rank, int type) const;
  void* output(size_t index, const Shape& shape) const;
  void run_parallel(void (*task)(void*, size_t), size_t count, void* data) const;

  const char* op_;
  ort::KernelContext* context_;
};

}  // namespace shoal
