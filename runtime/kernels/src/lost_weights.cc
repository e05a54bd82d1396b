// What becomes of a process when mapped weights go away. A file that is cut while it is mapped, or a
// disk that fails, makes the next access to its pages a SIGBUS, in whichever thread computes. Nothing
// can be computed without the weights, so the process ends; but it says why.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "ort_api.h"

namespace {

constexpr char kWeights[] = "/weights.bin";
constexpr char kDeleted[] = " (deleted)";  // what Linux adds when the name is gone
constexpr char kStart[] = "error: ";
constexpr char kEnd[] =
    ": was cut or changed while in use, or its disk fails; export or copy the bundle again\n";
constexpr size_t kLongestLine = 4096 + 256;

struct sigaction g_previous;

// Everything below runs in the signal handler: system calls, and no memory but the stack's.

class Lines {
 public:
  explicit Lines(int file) : file_(file) {}

  // The next line without its end; false when there is none. What is too long is cut.
  bool next(char* line) {
    size_t length = 0;
    while (fill()) {
      const char letter = buffer_[used_++];
      if (letter == '\n') {
        line[length] = 0;
        return true;
      }
      if (length < kLongestLine - 1) line[length++] = letter;
    }
    return false;
  }

 private:
  bool fill() {
    if (used_ < count_) return true;
    const ssize_t count = read(file_, buffer_, sizeof buffer_);
    used_ = 0;
    count_ = count > 0 ? static_cast<size_t>(count) : 0;
    return count_ > 0;
  }

  int file_;
  size_t used_ = 0;
  size_t count_ = 0;
  char buffer_[1024];
};

uintptr_t read_hex(const char** text) {
  uintptr_t value = 0;
  for (;; ++*text) {
    const char digit = **text;
    if (digit >= '0' && digit <= '9') {
      value = value * 16 + static_cast<uintptr_t>(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      value = value * 16 + static_cast<uintptr_t>(digit - 'a' + 10);
    } else {
      return value;
    }
  }
}

// The path in a line of /proc/self/maps (proc(5)), null if the line is about another address.
char* path_at(char* line, uintptr_t address) {
  const char* text = line;
  const uintptr_t start = read_hex(&text);
  if (*text++ != '-') return nullptr;
  return start <= address && address < read_hex(&text) ? std::strchr(line, '/') : nullptr;
}

bool drop_end(char* text, const char* end) {
  const size_t length = std::strlen(text);
  const size_t count = std::strlen(end);
  if (length < count || std::strcmp(text + length - count, end) != 0) return false;
  text[length - count] = 0;
  return true;
}

bool is_weights(const char* path) {
  const size_t length = std::strlen(path);
  const size_t count = sizeof kWeights - 1;
  return length >= count && std::strcmp(path + length - count, kWeights) == 0;
}

size_t append(char* target, size_t position, const char* text) {
  const size_t length = std::strlen(text);
  std::memcpy(target + position, text, length);
  return position + length;
}

[[noreturn]] void end_with_a_word(char* path) {
  for (char* letter = path; *letter != 0; ++letter) {
    if (static_cast<unsigned char>(*letter) < ' ' || *letter == 0x7f) *letter = '?';
  }
  char text[kLongestLine + sizeof kStart + sizeof kEnd];
  size_t length = append(text, 0, kStart);
  length = append(text, length, path);
  length = append(text, length, kEnd);
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, length);
  _exit(1);
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const bool is_fault = info->si_code > 0;  // else another process sent it
  const int maps = is_fault ? open("/proc/self/maps", O_RDONLY | O_CLOEXEC) : -1;
  if (maps >= 0) {
    Lines lines(maps);
    char line[kLongestLine];
    while (lines.next(line)) {
      char* path = path_at(line, reinterpret_cast<uintptr_t>(info->si_addr));
      if (path == nullptr) continue;
      drop_end(path, kDeleted);
      if (is_weights(path)) end_with_a_word(path);
    }
    close(maps);
  }
  // Not ours: whoever was asked before is asked now, when the access is tried again.
  sigaction(signal, &g_previous, nullptr);
  if (!is_fault) raise(signal);
}

}  // namespace

// End the process with a line on stderr and status 1 when a mapped weights.bin goes away; a bus error
// elsewhere is handled as before. False if the system does not let us.
SHOAL_EXPORT bool shoal_end_on_lost_weights() {
  static const bool is_done = [] {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &g_previous) == 0;
  }();
  return is_done;
}
