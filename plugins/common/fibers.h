// CUDA threads on a CPU: every thread of a block is a fiber (ucontext), so kernels run here from the very same source.
//
// A fiber runs until it reaches a barrier or a warp exchange that others have not reached, then its neighbour runs; a
// warp runs as far as it can, then the next one. The schedule says in which order; a kernel that lacks a barrier gives
// other results under another schedule, which is how tests find it. Shared memory is filled with NaNs before each
// block. Blocks run one after another, in one OS thread.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include "races.h"
#else
namespace fibers::races {  // nothing is watched
enum class Kind { kRead, kReadOnly, kAtomic, kCopyStarts, kCopyLands };
constexpr bool kWatched = false;
struct Outside {
  Outside() {}
};
using Inside = Outside;
struct Range {
  const char* begin;
  size_t bytes;
};
inline void begin_launch() {}
inline void begin_block(unsigned, Range, Range) {}
inline void pass_barrier() {}
inline void resume(unsigned, const char*, size_t) {}
inline void arrive(const void*, bool) {}
inline void access(const void*, size_t, Kind) {}
inline bool is_there(const void*, const void*, size_t) { return false; }
inline std::string found() { return {}; }
}  // namespace fibers::races
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// What CUDA calls them; the scheduler sets threadIdx whenever it resumes a fiber. Blocks are one-dimensional.
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedBytes = 227 * 1024;  // the most a block may have on any GPU we build for
constexpr size_t kStaticSharedBytes = 48 * 1024;  // of these, the most for block_shared(); the rest is dynamic_shared()
constexpr size_t kSlotBytes = 64;            // the largest value lanes exchange

enum class Outcome { kFinished, kDeadlock, kLanesMissing };

struct Barrier {
  int expected = 0, arrived = 0, releases = 0;
};

// An asynchronous copy to shared memory. It lands at once, or as late as its thread lets it, or either: the schedule
// decides. So a wait that is missing shows, and so does a copy over what is still in use.
struct Copy {
  void* to;
  const void* from;  // or null for zeros
  size_t bytes;

  void land() const {
    if (from) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
};

// A thread's access to shared memory: where, as an offset, and how wide.
struct Access {
  uint32_t offset, bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool finished;
  // Exchanges take turns between two slots: a slot is written again only after the next exchange's barrier, which
  // every reader of this one has reached. So one barrier per exchange is enough.
  int turn;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
  std::vector<Access> accesses;
  alignas(16) unsigned char slots[2][kSlotBytes];
};

struct State {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier block;
  int current = 0, finished = 0;
  bool is_last = false;  // whether the block was the last at the counter that it has come to
  bool lanes_missing = false;  // in a warp that exchanged values or multiplied: on a GPU that is undefined
  long events = 0;  // barriers released and fibers finished; a round without any is a deadlock
  int64_t streamed_bytes = 0;  // of the last launch, counted by what loads them
  bool count_traffic = false;
  std::unordered_set<const void*> read, written, block_read;  // where the last launch did so, the last block
  int64_t read_bytes = 0, written_bytes = 0, block_read_bytes = 0;  // how much lies there; of all blocks, each its own
  unsigned schedule = 0;
  std::mt19937 coin;
  size_t dynamic_bytes = 0, overrun = 0;  // shared memory the launch asks for, and what a kernel uses beyond that
  size_t static_bytes = 0;                // what the last launch had of block_shared()
  bool count_conflicts = false;
  int64_t shared_wavefronts = 0, fewest_wavefronts = 0;  // of the last launch, if counted
  std::function<void()> body;
  alignas(256) unsigned char shared[kSharedBytes];
};

inline State state;

inline Fiber& self() { return state.fibers[state.current]; }

inline void release_if_complete(Barrier& barrier) {
  if (barrier.expected == 0 || barrier.arrived < barrier.expected) return;
  barrier.arrived = 0;
  ++barrier.releases;
  ++state.events;
  if (&barrier == &state.block) races::pass_barrier();
}

inline void wait(Barrier& barrier) {
  const races::Outside outside;
  const int before = barrier.releases;
  ++barrier.arrived;
  release_if_complete(barrier);
  while (barrier.releases == before) swapcontext(&self().context, &state.scheduler);
}

inline void wait_for_block() { wait(state.block); }
inline void wait_for_warp() { wait(state.warps[state.current / kWarpSize]); }

inline void copy(void* to, const void* from, size_t bytes) {
  const races::Outside outside;
  races::access(to, bytes, races::Kind::kCopyStarts);
  if (from) races::access(from, bytes, races::Kind::kRead);
  const bool at_once = !races::kWatched && (state.schedule == 1 || (state.schedule > 1 && state.coin() % 2));
  if (at_once) {
    Copy{to, from, bytes}.land();
  } else {
    self().uncommitted.push_back({to, from, bytes});
  }
}

inline void commit_copies() {
  const races::Outside outside;
  self().groups.push_back(std::move(self().uncommitted));
  self().uncommitted.clear();
}

inline void wait_for_copies(size_t pending) {
  const races::Outside outside;
  for (; self().groups.size() > pending; self().groups.pop_front())
    for (const Copy& each : self().groups.front()) {
      races::access(each.to, each.bytes, races::Kind::kCopyLands);
      each.land();
    }
}

// A word that threads add to one after the other: what `add` does to it is one access.
template <class Add>
auto one_at_a_time(void* address, const Add& add) {
  const races::Outside outside;
  races::access(address, sizeof(uint32_t), races::Kind::kAtomic);
  return add();
}

// This block has come to a counter, and everything that it did before has happened for those who see it there.
inline bool arrive(unsigned* counter, unsigned blocks) {
  const races::Outside outside;
  *counter = (*counter + 1) % blocks;  // blocks run one after another
  races::arrive(counter, *counter == 0);
  return *counter == 0;
}

inline void note_access(const void* address, size_t bytes) {
  const races::Outside outside;
  if (!state.count_conflicts) return;
  const auto offset = static_cast<const unsigned char*>(address) - state.shared;
  self().accesses.push_back({static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes)});
}

// Small tensors that blocks share are in the L2 cache, so every place counts once; of large ones what warps of a block
// share is in its L1, so every place counts once per block.
inline void note_read(const void* address, size_t bytes) {
  const races::Outside outside;
  if (state.count_traffic && state.read.insert(address).second) state.read_bytes += static_cast<int64_t>(bytes);
}

// Through the read-only path.
inline void note_constant(const void* address, size_t bytes) {
  const races::Outside outside;
  races::access(address, bytes, races::Kind::kReadOnly);
}

inline void note_block_read(const void* address, size_t bytes) {
  const races::Outside outside;
  if (state.count_traffic && state.block_read.insert(address).second)
    state.block_read_bytes += static_cast<int64_t>(bytes);
}

inline void note_written(const void* address, size_t bytes) {
  const races::Outside outside;
  if (state.count_traffic && state.written.insert(address).second) state.written_bytes += static_cast<int64_t>(bytes);
}

// Counts, for every access of a warp, how often shared memory has to be read: its 32 banks give 4 bytes each at a time.
// The n-th accesses of a warp's lanes are taken for one, so the count is right where no lane sits one out.
inline void count_wavefronts(int threads) {
  for (int warp = 0; warp < threads; warp += kWarpSize) {
    for (size_t n = 0; n < state.fibers[warp].accesses.size(); ++n) {
      const size_t bytes = state.fibers[warp].accesses[n].bytes, lanes = std::min<size_t>(32, 128 / bytes);
      for (size_t first = 0; first < kWarpSize; first += lanes) {
        std::set<uint32_t> words[32];
        for (size_t lane = first; lane < first + lanes; ++lane) {
          if (n >= state.fibers[warp + lane].accesses.size()) continue;
          const Access access = state.fibers[warp + lane].accesses[n];
          for (uint32_t word = access.offset / 4; word * 4 < access.offset + access.bytes; ++word)
            words[word % 32].insert(word);
        }
        size_t most = 0;
        for (const auto& bank : words) most = std::max(most, bank.size());
        state.shared_wavefronts += static_cast<int64_t>(most);
        ++state.fewest_wavefronts;
      }
    }
  }
}

// What the lanes of this warp passed in, by lane. None may have finished.
template <class T>
class Exchange {
 public:
  explicit Exchange(const T& mine) : turn_(self().turn), warp_(state.current / kWarpSize * kWarpSize) {
    static_assert(sizeof(T) <= kSlotBytes);
    const races::Outside outside;
    if (state.warps[warp_ / kWarpSize].expected < kWarpSize) state.lanes_missing = true;
    self().turn ^= 1;
    std::memcpy(self().slots[turn_], &mine, sizeof(T));
    wait_for_warp();
  }
  T operator[](int lane) const {
    const races::Outside outside;
    T value;
    std::memcpy(&value, state.fibers[warp_ + lane].slots[turn_], sizeof(T));
    return value;
  }

 private:
  int turn_, warp_;
};

inline void run_body() {
  {
    const races::Inside inside;
    state.body();
  }
  self().finished = true;
  ++state.finished;
  ++state.events;
  if (state.warps[state.current / kWarpSize].arrived > 0) state.lanes_missing = true;
  for (Barrier* barrier : {&state.block, &state.warps[state.current / kWarpSize]}) {
    --barrier->expected;  // as on a GPU: nobody waits for a thread that has returned
    release_if_complete(*barrier);
  }
}

inline void start_fibers(int threads) {
  state.finished = 0;
  state.block = {threads};
  state.warps.assign((threads + kWarpSize - 1) / kWarpSize, {});
  if (state.fibers.size() < static_cast<size_t>(threads)) state.fibers.resize(threads);
  for (int thread = 0; thread < threads; ++thread) {
    ++state.warps[thread / kWarpSize].expected;
    Fiber& fiber = state.fibers[thread];
    fiber.finished = false;
    fiber.turn = 0;
    fiber.uncommitted.clear();
    fiber.groups.clear();
    fiber.accesses.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &state.scheduler;
    makecontext(&fiber.context, run_body, 0);
  }
}

// The order of blocks, of warps and of lanes: 0 ascending, 1 descending, any other a new shuffle each time, from that
// seed.
class Schedule {
 public:
  Schedule(unsigned kind, unsigned count) : kind_(kind), random_(kind), order_(count) {
    std::iota(order_.begin(), order_.end(), 0);
    if (kind_ == 1) std::reverse(order_.begin(), order_.end());
  }
  const std::vector<unsigned>& next() {
    if (kind_ > 1) std::shuffle(order_.begin(), order_.end(), random_);
    return order_;
  }

 private:
  unsigned kind_;
  std::mt19937 random_;
  std::vector<unsigned> order_;
};

inline void resume(int thread) {
  if (state.fibers[thread].finished) return;
  state.current = thread;
  races::resume(static_cast<unsigned>(thread), self().stack.get(), kStackBytes);
  threadIdx.x = static_cast<unsigned>(thread);
  swapcontext(&state.scheduler, &self().context);
}

inline void run_warp(int warp, int threads, Schedule& lanes) {
  long events_before;
  do {
    events_before = state.events;
    for (unsigned lane : lanes.next()) {
      const int thread = warp * kWarpSize + static_cast<int>(lane);
      if (thread < threads) resume(thread);
    }
  } while (state.events != events_before);
}

inline Outcome run_block(int threads, Schedule& warps, Schedule& lanes) {
  std::memset(state.shared, 0xff, kSharedBytes);  // NaN as half and as float, -1 as an integer
  start_fibers(threads);
  const auto* const shared = reinterpret_cast<const char*>(state.shared);
  races::begin_block(blockIdx.x, {reinterpret_cast<const char*>(&state), sizeof state}, {shared, kSharedBytes});
  state.block_read.clear();
  while (state.finished < threads) {
    const long events_before = state.events;
    for (unsigned warp : warps.next()) run_warp(static_cast<int>(warp), threads, lanes);
    if (state.events == events_before) return Outcome::kDeadlock;
  }
  if (state.count_conflicts) count_wavefronts(threads);
  return Outcome::kFinished;
}

// Runs body() as every thread of `blocks` blocks of `threads`. On a deadlock the launch is abandoned.
inline Outcome launch(unsigned blocks, unsigned threads, unsigned schedule, std::function<void()> body) {
  state.streamed_bytes = state.shared_wavefronts = state.fewest_wavefronts = 0;
  state.read_bytes = state.written_bytes = state.block_read_bytes = 0;
  state.read.clear();
  state.written.clear();
  state.overrun = state.static_bytes = 0;
  state.lanes_missing = false;
  state.schedule = schedule;
  races::begin_launch();
  state.coin.seed(schedule);
  gridDim = {blocks};
  blockDim = {threads};
  state.body = std::move(body);
  Schedule in_grid(schedule, blocks), lanes(schedule, kWarpSize);
  Schedule warps(schedule, (threads + kWarpSize - 1) / kWarpSize);
  for (unsigned block : in_grid.next()) {
    blockIdx.x = block;
    if (run_block(static_cast<int>(threads), warps, lanes) == Outcome::kDeadlock) return Outcome::kDeadlock;
  }
  return state.lanes_missing ? Outcome::kLanesMissing : Outcome::kFinished;
}

}  // namespace fibers

inline void __syncthreads() { fibers::wait_for_block(); }
