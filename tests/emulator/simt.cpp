#include "simt.h"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"
#include "warp_ops.h"

#if SIMT_TSAN
#  include <sanitizer/tsan_interface.h>
// For ThreadSanitizer a barrier is the only thing that orders two threads of a block. This file is
// compiled without its instrumentation: the machine is not what is being tested.
#  define SIMT_RELEASE(address) __tsan_release(address)
#  define SIMT_ACQUIRE(address) __tsan_acquire(address)
#else
#  define SIMT_RELEASE(address) ((void)(address))
#  define SIMT_ACQUIRE(address) ((void)(address))
#endif

namespace simt {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct Random {
  uint64_t state;
  uint32_t next() {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return static_cast<uint32_t>((state * 0x2545f4914f6cdd1dull) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }
};

struct Thread {
  Fiber fiber;
  int index = 0;
  bool done = false;
  bool started = false;
  std::vector<Copy> copies;     // oldest first
  std::vector<int> group_ends;  // committed groups: index into `copies` past their last one
  int copies_taken = 0;
};

// Two alternating addresses per barrier: a lane that has left one barrier and entered the next must
// not add to what a slow lane acquires from the first.
struct BarrierTag {
  char phase[2];
  int64_t generation = 0;
};

struct Warp {
  uint32_t ready = 0, arrived = 0, alive = 0;
  WarpOp op = WarpOp::kNone;
  LaneOperands operands[kWarpLanes];
  LaneResult results[kWarpLanes];
  BarrierTag tag;
};

struct Machine {
  Fiber scheduler;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<char[], void (*)(void*)>> graveyard;
  Thread* running = nullptr;
  const std::function<void()>* body = nullptr;
  int64_t block = 0;
  int count = 0, alive = 0, waiting = 0;  // threads: of the block, unfinished, in the block barrier
  BarrierTag tag;
  char end_of_launch = 0;
  void* shared = nullptr;
  bool busy = false;
  Random random{0x9e3779b97f4a7c15ull};
  Counters counters{};
};

Machine& machine() {
  static Machine instance;
  return instance;
}

void pause() {
  Machine& m = machine();
  m.scheduler.switch_from(m.running->fiber);
}

Warp& warp_of(const Thread& thread) {
  return machine().warps[thread.index / kWarpLanes];
}

void check_block_barrier() {
  Machine& m = machine();
  if (m.waiting == 0 || m.waiting != m.alive) {
    return;
  }
  m.waiting = 0;
  ++m.tag.generation;
  for (Warp& warp : m.warps) {
    warp.ready = warp.alive;
  }
}

void thread_entry() {
  Fiber::entered();
  Machine& m = machine();
  Thread& self = *m.running;
  (*m.body)();
  if (self.copies_taken != static_cast<int>(self.copies.size())) {
    fail("a thread ended before it waited for its asynchronous copies");
  }
  SIMT_RELEASE(&m.end_of_launch);
  self.done = true;
  Warp& warp = warp_of(self);
  warp.alive &= ~(1u << (self.index % kWarpLanes));
  if (warp.arrived != 0) {
    fail("a lane ended while others of its warp wait for it");
  }
  --m.alive;
  check_block_barrier();
  m.scheduler.switch_from(self.fiber, true);
}

void run_block() {
  Machine& m = machine();
  const uint32_t warps = static_cast<uint32_t>(m.warps.size());
  const uint32_t leader = m.random.below(warps);
  m.alive = m.count;
  m.waiting = 0;
  for (uint32_t w = 0; w < warps; ++w) {
    m.warps[w] = Warp{};
    m.warps[w].ready = m.warps[w].alive = kAllLanes;
  }
  for (int i = 0; i < m.count; ++i) {
    Thread& thread = *m.threads[i];
    thread.index = i;
    thread.done = false;
    thread.copies.clear();
    thread.group_ends.clear();
    thread.copies_taken = 0;
    thread.fiber.start(thread_entry);
  }
  while (m.alive > 0) {
    uint32_t w = leader;
    if (m.warps[w].ready == 0) {
      w = m.random.below(warps);
      for (uint32_t tried = 0; m.warps[w].ready == 0; ++tried, w = (w + 1) % warps) {
        if (tried == warps) {
          fail("deadlock: some threads wait at a barrier that others never reach");
        }
      }
    }
    Warp& warp = m.warps[w];
    const uint32_t start = m.random.below(kWarpLanes);
    const uint32_t lane = (std::countr_zero(std::rotr(warp.ready, start)) + start) % kWarpLanes;
    warp.ready &= ~(1u << lane);
    m.running = m.threads[w * kWarpLanes + lane].get();
    m.running->fiber.switch_from(m.scheduler);
  }
  for (int i = 0; i < m.count; ++i) {
    m.threads[i]->fiber.finish();
  }
}

}  // namespace

Counters& counters() {
  return machine().counters;
}

void set_seed(uint64_t seed) {
  machine().random.state = seed * 0x9e3779b97f4a7c15ull + 0x1234567ull;
}

void launch(int64_t grid, int block_threads, size_t shared_bytes,
            const std::function<void()>& body) {
  Machine& m = machine();
  if (m.busy || grid < 1 || block_threads % kWarpLanes != 0 || block_threads > 1024) {
    fail("launch: nested, empty, or with a partial warp");
  }
  m.busy = true;
  m.body = &body;
  m.count = block_threads;
  m.scheduler.adopt_current_thread();
  m.warps.resize(block_threads / kWarpLanes);
  while (static_cast<int>(m.threads.size()) < block_threads) {
    m.threads.push_back(std::make_unique<Thread>());
  }
  ++m.counters.launches;
  m.counters.blocks += grid;
  const int64_t first = m.random.below(static_cast<uint32_t>(grid));
  for (int64_t i = 0; i < grid; ++i) {
    m.block = (first + i) % grid;
    // Not freed before the end under ThreadSanitizer: reusing the addresses would order the blocks.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes > 0 ? shared_bytes : 1) != 0) {
      fail("launch: out of memory");
    }
    m.shared = memory;
    std::memset(memory, 0xff, shared_bytes);
    m.graveyard.emplace_back(static_cast<char*>(memory), std::free);
    run_block();
    if (!SIMT_TSAN) {
      m.graveyard.clear();
    }
  }
  SIMT_ACQUIRE(&m.end_of_launch);
  m.graveyard.clear();
  m.running = nullptr;
  m.busy = false;
}

int thread_index() {
  return machine().running->index;
}
int block_threads() {
  return machine().count;
}
int64_t block_index() {
  return machine().block;
}
void* dynamic_shared() {
  return machine().shared;
}

LaneResult warp_instruction(WarpOp op, const LaneOperands& operands) {
  Machine& m = machine();
  Thread& self = *m.running;
  Warp& warp = warp_of(self);
  const uint32_t lane = self.index % kWarpLanes;
  if (warp.arrived != 0 && warp.op != op) {
    fail("lanes of one warp meet in different warp-wide instructions");
  }
  if (warp.alive != kAllLanes) {
    fail("a warp-wide instruction after a lane has ended");
  }
  char* tag = nullptr;
  if (op == WarpOp::kBarrier) {
    tag = &warp.tag.phase[warp.tag.generation % 2];
    SIMT_RELEASE(tag);
  }
  warp.op = op;
  warp.operands[lane] = operands;
  warp.arrived |= 1u << lane;
  if (warp.arrived == kAllLanes) {
    warp.arrived = 0;
    execute(op, warp.operands, warp.results, m.counters);
    warp.ready = kAllLanes & ~(1u << lane);
    if (op == WarpOp::kBarrier) {
      ++warp.tag.generation;
    }
  } else {
    pause();
  }
  if (tag != nullptr) {
    SIMT_ACQUIRE(tag);
  }
  return warp.results[lane];
}

void block_barrier() {
  Machine& m = machine();
  Thread& self = *m.running;
  if (warp_of(self).arrived != 0) {
    fail("a block barrier while lanes of the warp wait in a warp-wide instruction");
  }
  char* tag = &m.tag.phase[m.tag.generation % 2];
  SIMT_RELEASE(tag);
  ++m.waiting;
  if (m.waiting == m.alive) {
    check_block_barrier();
    warp_of(self).ready &= ~(1u << (self.index % kWarpLanes));
  } else {
    pause();
  }
  SIMT_ACQUIRE(tag);
}

void queue_copy(const Copy& copy) {
  machine().running->copies.push_back(copy);
}

void commit_copies() {
  Thread& self = *machine().running;
  self.group_ends.push_back(static_cast<int>(self.copies.size()));
}

bool take_copy(int groups_left, Copy* copy) {
  Thread& self = *machine().running;
  const int finished = static_cast<int>(self.group_ends.size()) - groups_left;
  if (finished <= 0 || self.copies_taken >= self.group_ends[finished - 1]) {
    return false;
  }
  *copy = self.copies[self.copies_taken++];
  return true;
}

void fail(const char* what) {
  const Machine& m = machine();
  std::fprintf(stderr, "simt: %s (block %lld, thread %d)\n", what, static_cast<long long>(m.block),
               m.running != nullptr ? m.running->index : -1);
  std::abort();
}

}  // namespace simt
