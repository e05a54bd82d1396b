// Which instruction sets this processor has, and the choice among them.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace shoal {

const Isa* g_isa = nullptr;

namespace {

#if defined(__x86_64__)
// cpuid is asked where clang 14's __builtin_cpu_supports does not know the name; that the system
// saves the registers is known from AVX2 then.
bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}

bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

#if defined(SHOAL_HAS_AVXVNNI)
bool has_avxvnni() {
#if defined(SHOAL_VNNI_AS_AVX512VL)
  return has_avx2() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  constexpr unsigned kAvxVnni = 1u << 4;  // of eax in leaf 7, subleaf 1
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni) != 0;
#endif
}
#endif
#endif

#if defined(__aarch64__)
// Whether the system says that the processor has the instructions; NEON itself is always there.
// Only Linux is asked: the bits are those of its interface, HWCAP_ASIMDDP and HWCAP2_I8MM of
// asm/hwcap.h, which old headers lack.
constexpr unsigned long kHwcapDotprod = 1UL << 20;
constexpr unsigned long kHwcap2I8mm = 1UL << 13;

bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & kHwcapDotprod) != 0;
#else
  return false;
#endif
}

[[maybe_unused]] bool has_i8mm() {
#if defined(__linux__)
  return has_dotprod() && (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0;
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
  if (has_avx512vnni()) found.push_back(&kAvx512VnniIsa);
#if defined(SHOAL_HAS_AVXVNNI)
  if (has_avxvnni()) found.push_back(&kAvxVnniIsa);
#endif
  if (has_avx2()) found.push_back(&kAvx2Isa);
#elif defined(__aarch64__)
#if defined(SHOAL_HAS_I8MM)
  if (has_i8mm()) found.push_back(&kI8mmIsa);
#endif
#if defined(SHOAL_HAS_DOTPROD)
  if (has_dotprod()) found.push_back(&kDotprodIsa);
#endif
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
    for (const Isa* isa : available()) {
      if (!text.empty()) text += ",";
      text += isa->name;
    }
    return text;
  }();
  return names.c_str();
}

}  // namespace shoal
