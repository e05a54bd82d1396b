#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace shoal {

const Isa* g_isa = nullptr;

namespace {

#if defined(SHOAL_HAS_AVXVNNI)
bool has_avxvnni() {
#if defined(SHOAL_VNNI_AS_AVX512VL)
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return __builtin_cpu_supports("avxvnni");
#endif
}
#endif

#if defined(__aarch64__)
// Whether the system says that the processor has the instructions; NEON itself is always there.
// Only Linux is asked: the bits are those of its interface (asm/hwcap.h).
bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & (1UL << 20)) != 0;
#else
  return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  return has_dotprod() && (getauxval(AT_HWCAP2) & (1UL << 13)) != 0;
#else
  return false;
#endif
}
#endif

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
#if defined(SHOAL_HAS_AVXVNNI)
  if (has_avx2 && has_avxvnni()) found.push_back(&kAvxVnniIsa);
#endif
  if (has_avx2) found.push_back(&kAvx2Isa);
#elif defined(__aarch64__)
#if defined(SHOAL_HAS_I8MM)
  if (has_i8mm()) found.push_back(&kI8mmIsa);
#endif
  if (has_dotprod()) found.push_back(&kDotprodIsa);
  found.push_back(&kNeonIsa);
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
