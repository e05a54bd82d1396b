// Keeps the library loadable with a libstdc++ as old as onnxruntime itself accepts: headers of GCC
// 11 and newer call this function, and GCC 10 and older do not have it. Hidden: used in here only.
#include <new>

#ifdef __GLIBCXX__
namespace std {
[[noreturn]] __attribute__((visibility("hidden"))) void __throw_bad_array_new_length() {
  throw std::bad_alloc();
}
}  // namespace std
#endif
