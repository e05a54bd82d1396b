// Checks shared by the ops that have int8 weights.
#pragma once

#include "context.h"
#include "isa.h"

namespace shoal {

inline void check_block_size(int64_t block) {
  if (block == 16 || block == 32 || block == 64 || block == 128 || block == 256) return;
  throw InputError("block_size: expected 16, 32, 64, 128 or 256, found " + std::to_string(block) +
                   "; re-export the bundle");
}

// Throws unless k is a positive multiple of the block size.
inline void check_blocks(const Call& call, const char* name, int64_t k, int64_t block) {
  if (k > 0 && k % block == 0) return;
  call.fail(std::string(name) + ": expected a row of a multiple of " + std::to_string(block) +
            " values, found " + std::to_string(k));
}

}  // namespace shoal
