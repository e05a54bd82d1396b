#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace shoal {

const Isa* g_isa = nullptr;

namespace {

// Best first.
std::vector<const Isa*> available() {
  std::vector<const Isa*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    found.push_back(&kAvx512VnniIsa);
  }
  if (has_avx2) found.push_back(&kAvx2Isa);
#endif
  found.push_back(&kPortableIsa);
  return found;
}

}  // namespace

const Isa* choose_isa() {
  const char* wanted = std::getenv("SHOAL_ISA");
  for (const Isa* isa : available()) {
    if (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, isa->name) == 0) return isa;
  }
  return nullptr;
}

const char* isa_names() {
  static const std::string names = [] {
    std::string text;
    for (const Isa* isa : available()) text += (text.empty() ? "" : ",") + std::string(isa->name);
    return text;
  }();
  return names.c_str();
}

}  // namespace shoal
