// The memory behind scratch.h: one buffer for each slot and thread, which grows and is kept.
#include "scratch.h"

#include <new>

#include "thresholds.h"

namespace shoal {

namespace {

constexpr std::align_val_t kCacheLine{kCacheLineBytes};

struct Buffers {
  void* data[static_cast<size_t>(Scratch::kCount)] = {};
  size_t sizes[static_cast<size_t>(Scratch::kCount)] = {};
  ~Buffers() {
    for (void* each : data) ::operator delete(each, kCacheLine);
  }
};

thread_local Buffers t_buffers;

}  // namespace

void* scratch_bytes(Scratch slot, size_t bytes) {
  const auto index = static_cast<size_t>(slot);
  Buffers& all = t_buffers;
  if (bytes > all.sizes[index] || all.data[index] == nullptr) {
    ::operator delete(all.data[index], kCacheLine);
    all.data[index] = nullptr;
    all.sizes[index] = 0;
    all.data[index] = ::operator new(bytes + kCacheLineBytes, kCacheLine);
    all.sizes[index] = bytes;
  }
  return all.data[index];
}

}  // namespace shoal
