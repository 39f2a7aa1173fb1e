// One stackful fiber: an assembly switch on x86-64, ucontext elsewhere, and the annotations that
// AddressSanitizer and ThreadSanitizer need to follow it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(VRGA_EMULATOR_ASAN)
#  define SIMT_ASAN 1
#else
#  define SIMT_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || defined(VRGA_EMULATOR_TSAN)
#  define SIMT_TSAN 1
#else
#  define SIMT_TSAN 0
#endif
#if !defined(__x86_64__)
#  include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The fiber of the calling OS thread; it needs no stack of ours.
  void adopt_current_thread();
  void start(void (*entry)());
  // Leaves the running fiber `from` for this one. `from_is_done`: it never comes back.
  void switch_from(Fiber& from, bool from_is_done = false);
  // First statement of an entry function.
  static void entered();
  // Gives the sanitizer's record of a finished fiber back; the stack stays for the next start.
  void finish();

 private:
  void release_stack();

  void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
  [[maybe_unused]] void* fake_stack_ = nullptr;    // AddressSanitizer
  [[maybe_unused]] const void* bottom_ = nullptr;  // of the OS thread's stack, AddressSanitizer
  [[maybe_unused]] size_t bottom_bytes_ = 0;
  [[maybe_unused]] void* tsan_ = nullptr;
};

}  // namespace simt
