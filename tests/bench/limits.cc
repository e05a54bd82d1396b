// What this machine can do at most: bytes read from memory per second, and int8 multiply-adds per
// second by a loop that stays in registers. Prints one JSON object.
//   c++ -O3 -march=native -pthread limits.cc -o limits && ./limits THREADS MEGABYTES
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kPasses = 5;
constexpr int kSums = 12;  // independent sums: more than latency times instructions per cycle
constexpr int64_t kSteps = 20'000'000;

// Sums: independent accumulators of the widest int8 dot product the compiler may use here. `step`
// adds to one of them; kMultiplyAdds is the work of a step.
#if defined(__AVX512VNNI__)
using Sum = __m512i;
constexpr int kMultiplyAdds = 64;
constexpr const char* kInstructions = "vpdpbusd, 512 bits";
Sum step(Sum sum, Sum a, Sum b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
using Sum = __m256i;
constexpr int kMultiplyAdds = 32;
constexpr const char* kInstructions = "vpdpbusd, 256 bits";
Sum step(Sum sum, Sum a, Sum b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#elif defined(__AVX2__)
using Sum = __m256i;
constexpr int kMultiplyAdds = 32;
constexpr const char* kInstructions = "vpmaddubsw, vpmaddwd, vpaddd, 256 bits";
Sum step(Sum sum, Sum a, Sum b) {
  const Sum pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
using Sum = int32x4_t;
constexpr int kMultiplyAdds = 32;
constexpr const char* kInstructions = "smmla";
Sum step(Sum sum, Sum a, Sum b) {
  return vmmlaq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#elif defined(__ARM_FEATURE_DOTPROD)
using Sum = int32x4_t;
constexpr int kMultiplyAdds = 16;
constexpr const char* kInstructions = "sdot";
Sum step(Sum sum, Sum a, Sum b) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#elif defined(__ARM_NEON)
using Sum = int32x4_t;
constexpr int kMultiplyAdds = 8;
constexpr const char* kInstructions = "smull, sadalp";
Sum step(Sum sum, Sum a, Sum b) {
  return vpadalq_s16(
      sum, vmull_s8(vget_low_s8(vreinterpretq_s8_s32(a)), vget_low_s8(vreinterpretq_s8_s32(b))));
}
#else
using Sum = int32_t;
constexpr int kMultiplyAdds = 1;
constexpr const char* kInstructions = "scalar";
Sum step(Sum sum, Sum a, Sum b) { return sum + a * b; }
#endif

// The compiler must neither drop a value nor know it.
template <class T>
void keep(T* value) {
  __asm__ volatile("" : : "g"(value) : "memory");
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of the fastest of some passes of task(thread) on all threads at once.
template <class Task>
double fastest(int threads, const Task& task) {
  double best = 1e30;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(task, i);
    task(0);
    for (auto& each : others) each.join();
    best = std::min(best, seconds_since(start));
  }
  return best;
}

void multiply_add() {
  Sum sums[kSums], a, b;
  std::memset(sums, 0, sizeof sums);
  std::memset(&a, 3, sizeof a);
  std::memset(&b, 5, sizeof b);
  keep(&a);
  keep(&b);
  const Sum left = a, right = b;
  Sum s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], s4 = sums[4], s5 = sums[5];
  Sum s6 = sums[6], s7 = sums[7], s8 = sums[8], s9 = sums[9], s10 = sums[10], s11 = sums[11];
  for (int64_t i = 0; i < kSteps; ++i) {
    s0 = step(s0, left, right), s1 = step(s1, left, right), s2 = step(s2, left, right);
    s3 = step(s3, left, right), s4 = step(s4, left, right), s5 = step(s5, left, right);
    s6 = step(s6, left, right), s7 = step(s7, left, right), s8 = step(s8, left, right);
    s9 = step(s9, left, right), s10 = step(s10, left, right), s11 = step(s11, left, right);
    // Otherwise sums of equal steps become one multiplication.
    __asm__ volatile("" : : : "memory");
  }
  Sum all[] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11};
  keep(&all);
}

uint64_t sum_of(const uint64_t* words, size_t count) {
  uint64_t sums[32] = {};
  for (size_t i = 0; i + 32 <= count; i += 32) {
    for (size_t j = 0; j < 32; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t each : sums) total += each;
  return total;
}

// Words in large pages where the system has them: at the end of a small one processors stop
// fetching ahead.
uint64_t* new_words(size_t count) {
  constexpr size_t kPage = 2 << 20;
  const size_t bytes = (count * sizeof(uint64_t) + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, bytes);
  if (memory == nullptr) std::abort();
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  auto* words = static_cast<uint64_t*>(memory);
  std::fill_n(words, count, uint64_t{1});
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const long megabytes = argc > 2 ? std::atol(argv[2]) : 1024;
  if (threads < 1 || threads > 1024 || megabytes < 1) {
    std::fprintf(stderr, "usage: limits THREADS MEGABYTES\n");
    return 2;
  }
  const auto part =
      static_cast<size_t>(megabytes) * 1'000'000 / sizeof(uint64_t) / static_cast<size_t>(threads);
  std::vector<uint64_t*> parts(static_cast<size_t>(threads));
  for (auto& each : parts) each = new_words(part);
  const double read_s = fastest(threads, [&](int thread) {
    uint64_t total = sum_of(parts[static_cast<size_t>(thread)], part);
    keep(&total);
  });
  const double compute_s = fastest(threads, [](int) { multiply_add(); });
  const double bytes = static_cast<double>(part) * sizeof(uint64_t) * threads;
  const double work = static_cast<double>(kSteps) * kSums * kMultiplyAdds * threads;
  std::printf(
      "{\"threads\": %d, \"read_bytes_per_s\": %.4e, \"multiply_adds_per_s\": %.4e, "
      "\"instructions\": \"%s\"}\n",
      threads, bytes / read_s, work / compute_s, kInstructions);
  return 0;
}
