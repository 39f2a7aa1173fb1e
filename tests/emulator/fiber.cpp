#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#if SIMT_ASAN
#  include <sanitizer/asan_interface.h>
#  include <sanitizer/common_interface_defs.h>
#endif
#if SIMT_TSAN
#  include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = SIMT_ASAN ? 256 * 1024 : 64 * 1024;
constexpr size_t kGuardBytes = 4096;

Fiber* previous = nullptr;  // the fiber that was just left

}  // namespace

#if defined(__x86_64__)
// Saves the callee-saved registers on the old stack and takes them from the new one.
asm(R"(
.text
.type simt_switch_stacks,@function
simt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stacks,.-simt_switch_stacks
)");
extern "C" void simt_switch_stacks(void** save, void* load);
#endif

Fiber::~Fiber() {
  finish();
  release_stack();
}

void Fiber::release_stack() {
  if (stack_ != nullptr) {
    munmap(static_cast<char*>(stack_) - kGuardBytes, stack_bytes_ + kGuardBytes);
    stack_ = nullptr;
  }
}

void Fiber::adopt_current_thread() {
#if SIMT_TSAN
  tsan_ = __tsan_get_current_fiber();
#endif
}

void Fiber::start(void (*entry)()) {
#if SIMT_TSAN
  // A used stack carries the access history of its last fiber, which nothing orders before this
  // one; a new mapping has none.
  release_stack();
  tsan_ = __tsan_create_fiber(0);
#endif
  if (stack_ == nullptr) {
    stack_bytes_ = kStackBytes;
    void* mapping = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
      abort();
    }
    mprotect(mapping, kGuardBytes, PROT_NONE);
    stack_ = static_cast<char*>(mapping) + kGuardBytes;
  }
#if SIMT_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);
  fake_stack_ = nullptr;
  bottom_ = stack_;
  bottom_bytes_ = stack_bytes_;
#endif
#if defined(__x86_64__)
  // At its first instruction a function expects rsp = 8 mod 16, as after a call.
  auto top = reinterpret_cast<uintptr_t>(stack_) + stack_bytes_;
  auto* frame = reinterpret_cast<void**>((top & ~uintptr_t{15}) - 16);
  *frame = reinterpret_cast<void*>(entry);
  stack_pointer_ = frame - 6;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::entered() {
#if SIMT_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (previous->stack_ == nullptr) {
    previous->bottom_ = bottom;
    previous->bottom_bytes_ = bytes;
  }
#endif
}

void Fiber::switch_from(Fiber& from, bool from_is_done) {
  (void)from_is_done;
  previous = &from;
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(from_is_done ? nullptr : &from.fake_stack_, bottom_,
                                 bottom_bytes_);
#endif
#if SIMT_TSAN
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  simt_switch_stacks(&from.stack_pointer_, stack_pointer_);
#else
  swapcontext(&from.context_, &context_);
#endif
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::finish() {
#if SIMT_TSAN
  if (tsan_ != nullptr && stack_ != nullptr) {
    __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
  }
#endif
}

}  // namespace simt
