// Memory that a thread keeps for intermediate values, so that a call allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "thresholds.h"

namespace shoal {

enum class Scratch { kCall, kTask, kUnpacked, kPanel, kCount };

// At least `bytes` bytes, aligned to a cache line, for this thread. Valid until the same thread
// asks for the same slot again. A kernel's calling thread uses kCall and shares it with its tasks,
// a task uses kTask and kUnpacked, the inner loops kPanel. Throws std::bad_alloc.
void* scratch_bytes(Scratch slot, size_t bytes);

// Hands out arrays of a scratch slot one after another.
class ScratchLayout {
 public:
  // Reserves room for `count` values of T; returns its place.
  template <class T>
  size_t add(int64_t count) {
    const size_t place = size_;
    constexpr size_t kLine = kCacheLineBytes;
    size_ += (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
    return place;
  }
  // Allocates what was reserved.
  void allocate(Scratch slot) { base_ = static_cast<char*>(scratch_bytes(slot, size_)); }
  template <class T>
  T* at(size_t place) const {
    return reinterpret_cast<T*>(base_ + place);
  }

 private:
  size_t size_ = 0;
  char* base_ = nullptr;
};

}  // namespace shoal
