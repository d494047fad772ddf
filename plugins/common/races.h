// Races that a GPU may lose and that fibers hide, since one runs at a time: two threads at one byte, one of them
// writing, with nothing between that makes the other wait. A build for this has -fsanitize=thread, for the compiler's
// calls at every load and store; their bodies are here, and no library of that name is linked.
//
// What orders two accesses: in a block a barrier of all its threads; from block to block arrival at a counter, for the
// one that is last. Shuffles and tensor-core products order nothing, as on a GPU. An asynchronous copy writes from the
// moment it is asked for until its thread has waited for it. What the kernel itself has written is not to be read
// through the read-only path at all. Included by fibers.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#define EDGE_AWQ_UNWATCHED __attribute__((no_sanitize("thread")))

namespace fibers::races {

enum class Kind { kRead, kReadOnly, kWrite, kRepeats, kAtomic, kCopyStarts, kCopyLands };
constexpr bool kWatched = true;
constexpr unsigned kAtomic = 1023;  // who adds, whichever thread: no block has so many
constexpr size_t kPageBytes = 4096;

// A thread of a block, and when: barriers and blocks are counted.
struct Who {
  unsigned block, thread, time;
};

// A byte's last write and read. `several`: other threads have read it at that time, too.
struct Byte {
  Who write{~0u, 0, 0}, read{~0u, 0, 0};
  bool several = false, is_pending = false;
};

struct Range {
  const char* begin;
  size_t bytes;

  bool has(const char* address) const { return address >= begin && address < begin + bytes; }
};

struct Watch {
  bool is_on = false;  // in a kernel's own code
  Who now{};
  Range stack{}, machinery{}, shared{};
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages;
  std::map<unsigned, std::pair<const void*, unsigned>> arrivals;  // of blocks: where and when
  const void* passed = nullptr;  // the counter at which this block was the last
  std::string found;             // the first race
};

inline Watch watch;

inline std::string found() { return watch.found; }

// While one lives, accesses are of no kernel.
class Outside {
 public:
  EDGE_AWQ_UNWATCHED Outside() : before_(watch.is_on) { watch.is_on = false; }
  EDGE_AWQ_UNWATCHED ~Outside() { watch.is_on = before_; }

 private:
  const bool before_;
};

// ... and of one again.
class Inside {
 public:
  Inside() { watch.is_on = true; }
  EDGE_AWQ_UNWATCHED ~Inside() { watch.is_on = false; }
};

inline void begin_launch() {
  watch.pages.clear();
  watch.arrivals.clear();
  watch.found.clear();
}

// Shared memory lies in what else belongs to the machinery, which is not looked at.
inline void begin_block(unsigned block, Range machinery, Range shared) {
  watch.now = {block, 0, watch.now.time + 1};
  watch.machinery = machinery;
  watch.shared = shared;
  watch.passed = nullptr;
}

inline void pass_barrier() { ++watch.now.time; }

inline void resume(unsigned thread, const char* stack, size_t bytes) {
  watch.now.thread = thread;
  watch.stack = {stack, bytes};
}

// From here on what this block has written, and what it has read, lies before what the last block does.
inline void arrive(const void* counter, bool is_last) {
  watch.arrivals[watch.now.block] = {counter, watch.now.time};
  if (is_last) watch.passed = counter;
}

inline bool lies_before(const Who& then, const Who& now, bool is_shared) {
  if (then.block == ~0u) return true;
  if (then.block == now.block) return then.time != now.time || then.thread == now.thread;
  const auto arrival = watch.arrivals.find(then.block);
  return is_shared || (watch.passed && arrival != watch.arrivals.end() && arrival->second.first == watch.passed &&
                       then.time <= arrival->second.second);
}

inline void report(const char* what, const Who& then, const Who& now, const char* address, bool is_shared) {
  if (!watch.found.empty()) return;
  const auto name = [](const Who& who) {
    return (who.thread == kAtomic ? "an addition" : "thread " + std::to_string(who.thread)) + " of block " +
           std::to_string(who.block);
  };
  watch.found = name(now) + " " + what + " " + name(then) + (is_shared ? ", byte " : ", address ") +
                std::to_string(is_shared ? address - watch.shared.begin : reinterpret_cast<intptr_t>(address)) +
                (is_shared ? " of shared memory" : "");
}

inline void touch(Byte& byte, const char* address, Kind kind, bool is_shared) {
  const Who now{watch.now.block, kind == Kind::kAtomic ? kAtomic : watch.now.thread, watch.now.time};
  if (kind == Kind::kReadOnly && byte.write.block != ~0u)
    report("reads, past what keeps caches in step, what was written by", byte.write, now, address, is_shared);
  if (kind == Kind::kReadOnly) kind = Kind::kRead;
  if (kind == Kind::kRepeats) byte.write = now;
  if (kind == Kind::kRepeats) return;
  if (is_shared && byte.write.block != now.block) byte.is_pending = false;
  if (byte.is_pending && kind != Kind::kCopyLands)
    report("is at what is being copied for", byte.write, now, address, is_shared);
  if (!byte.is_pending && !lies_before(byte.write, now, is_shared))
    report(kind == Kind::kRead ? "reads what was written by" : "writes what was written by", byte.write, now, address,
           is_shared);
  if (kind == Kind::kRead) {
    const bool is_together = byte.read.block == now.block && byte.read.time == now.time;
    byte.several = is_together && (byte.several || byte.read.thread != now.thread);
    byte.read = now;
    return;
  }
  const bool is_read_now = byte.several && byte.read.block == now.block && byte.read.time == now.time;
  if (is_read_now || !lies_before(byte.read, now, is_shared))
    report("writes what was read by", byte.read, now, address, is_shared);
  byte.write = now;
  byte.is_pending = kind == Kind::kCopyStarts;
}

inline void access(const void* place, size_t bytes, Kind kind) {
  const char* const first = static_cast<const char*>(place);
  const bool is_shared = watch.shared.has(first);
  if (watch.stack.has(first) || (watch.machinery.has(first) && !is_shared)) return;
  for (const char* address = first; address < first + bytes; ++address) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    auto& page = watch.pages[at / kPageBytes];
    if (!page) page.reset(new Byte[kPageBytes]);
    touch(page[at % kPageBytes], address, kind, is_shared);
  }
}

EDGE_AWQ_UNWATCHED inline void access_if_on(const void* place, size_t bytes, Kind kind) {
  if (!watch.is_on) return;
  const Outside outside;
  access(place, bytes, kind);
}

// Whether a place has these bytes already: then a thread may write them, and read what it has written, whoever else
// does.
inline bool is_there(const void* place, const void* value, size_t bytes) {
  const Outside outside;
  const bool is = std::memcmp(place, value, bytes) == 0;
  if (is) access(place, bytes, Kind::kRepeats);
  return is;
}

}  // namespace fibers::races

// What the compiler calls. A build is one source, so they are defined once.
#define EDGE_AWQ_ACCESS(bytes)                                                                             \
  EDGE_AWQ_UNWATCHED void __tsan_read##bytes(void* place) {                                                \
    fibers::races::access_if_on(place, bytes, fibers::races::Kind::kRead);                                 \
  }                                                                                                        \
  EDGE_AWQ_UNWATCHED void __tsan_write##bytes(void* place) {                                               \
    fibers::races::access_if_on(place, bytes, fibers::races::Kind::kWrite);                                \
  }

extern "C" {
EDGE_AWQ_ACCESS(1)
EDGE_AWQ_ACCESS(2)
EDGE_AWQ_ACCESS(4)
EDGE_AWQ_ACCESS(8)
EDGE_AWQ_ACCESS(16)
EDGE_AWQ_UNWATCHED void __tsan_read_range(void* place, size_t bytes) {
  fibers::races::access_if_on(place, bytes, fibers::races::Kind::kRead);
}
EDGE_AWQ_UNWATCHED void __tsan_write_range(void* place, size_t bytes) {
  fibers::races::access_if_on(place, bytes, fibers::races::Kind::kWrite);
}
EDGE_AWQ_UNWATCHED void __tsan_init() {}
EDGE_AWQ_UNWATCHED void __tsan_func_entry(void*) {}
EDGE_AWQ_UNWATCHED void __tsan_func_exit(void*) {}
EDGE_AWQ_UNWATCHED void __tsan_vptr_update(void**, void*) {}
EDGE_AWQ_UNWATCHED char __tsan_atomic8_load(const volatile char* place, int) { return *place; }
}  // extern "C"
