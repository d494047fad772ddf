// The memories that PTX addresses, stricter than a GPU's: an access that is misaligned, or out of what was allocated, is
// a fault, and so is what a GPU does not define.
//
// Shared memory: what nobody has written; two threads at one place, one of them writing, with no barrier between; a
// place that an asynchronous copy has yet to write. Global memory: what another thread has written, with no barrier
// between or, of another block, no fence, counter and fence (which counter is not asked); ld.global.nc of what this
// launch has written; in a launch that may begin before the last one ends, whatever that one wrote, and any write,
// before griddepcontrol.wait.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// What a kernel did that it may not do.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

inline void check_aligned(uint64_t address, size_t bytes) {
  if (address % bytes) throw Fault(hex(address) + " is not a multiple of " + std::to_string(bytes));
}

// Who writes or reads global memory.
struct Accessor {
  unsigned thread;
  bool has_waited;    // at griddepcontrol.wait, or need not
  bool has_acquired;  // fenced after its block came to a counter: sees what blocks wrote that had come before
};

class GlobalMemory {
 public:
  void allocate(uint64_t begin, size_t bytes) { allocations_[begin] = {bytes, {}}, last_ = nullptr; }
  void free(uint64_t begin) { allocations_.erase(begin), last_ = nullptr; }

  // What launches before have written is there, unless this one may have begun before they ended.
  void begin_launch(bool is_dependent, unsigned blocks) {
    is_published_.assign(blocks, false);
    for (auto& [begin, allocation] : allocations_)
      for (uint64_t& stamp : allocation.stamps) stamp = is_dependent && stamp ? kWrittenBefore : 0;
  }

  // From the host, once all launches have ended.
  void synchronize() { begin_launch(false, 0); }

  void begin_block(unsigned block) { block_ = block, time_ = 0; }
  void pass_barrier() { ++time_; }

  // The block has come to a counter. `fenced`: all that its threads wrote is seen by who comes later.
  void publish(bool fenced) { is_published_[block_] = fenced; }

  const void* read(uint64_t address, size_t bytes, const Accessor& who, bool is_constant = false) {
    const uint64_t* const stamps = find(address, bytes, "reads").second;
    for (size_t i = 0; stamps && i < bytes; ++i) {
      if (!stamps[i]) continue;
      const bool is_earlier = stamps[i] == kWrittenBefore;
      if (is_earlier && !who.has_waited)
        throw Fault("reads, before griddepcontrol.wait, what an earlier kernel writes at " + hex(address));
      if (is_earlier) continue;
      if (is_constant) throw Fault("reads, as if it were constant, what this kernel wrote at " + hex(address));
      if (!is_before(stamps[i], who)) throw Fault("reads what " + writer(stamps[i]) + " writes at " + hex(address));
    }
    return reinterpret_cast<const void*>(address);
  }

  // Two threads may write the same value.
  void write(uint64_t address, size_t bytes, const Accessor& who, const void* value) {
    uint64_t* const stamps = stamps_to_write(address, bytes, who);
    const bool is_there = std::memcmp(reinterpret_cast<const void*>(address), value, bytes) == 0;
    for (size_t i = 0; i < bytes; ++i) {
      const bool is_new = !stamps[i] || stamps[i] == kWrittenBefore;
      if (!is_new && !is_there && !is_before(stamps[i], who))
        throw Fault("writes what " + writer(stamps[i]) + " writes at " + hex(address));
      stamps[i] = stamp(who.thread);
    }
    is_published_[block_] = false;
    std::memcpy(reinterpret_cast<void*>(address), value, bytes);
  }

  // An atomic addition is of no thread.
  void* change(uint64_t address, size_t bytes, const Accessor& who) {
    uint64_t* const stamps = stamps_to_write(address, bytes, who);
    for (size_t i = 0; i < bytes; ++i) stamps[i] = stamp(kAtomic);
    return reinterpret_cast<void*>(address);
  }

 private:
  static constexpr uint64_t kWrittenBefore = ~uint64_t{0};
  static constexpr unsigned kAtomic = 1022;

  struct Allocation {
    size_t bytes;
    std::vector<uint64_t> stamps;  // who wrote each byte, and when; empty until something is written
  };

  uint64_t stamp(unsigned thread) const { return static_cast<uint64_t>(block_ + 1) << 32 | time_ << 10 | thread; }

  // Whether it was written by the thread itself, before a barrier, or by a block that has published it.
  bool is_before(uint64_t stamp, const Accessor& who) const {
    const auto block = static_cast<unsigned>(stamp >> 32) - 1;
    if (block != block_) return is_published_[block] && who.has_acquired;
    return (stamp >> 10 & 0x3fffffu) < time_ || stamp % 1024 == who.thread;
  }

  static std::string writer(uint64_t stamp) {
    return "thread " + std::to_string(stamp % 1024) + " of block " + std::to_string((stamp >> 32) - 1) + " unordered";
  }

  uint64_t* stamps_to_write(uint64_t address, size_t bytes, const Accessor& who) {
    auto [allocation, stamps] = find(address, bytes, "writes");
    if (!who.has_waited) throw Fault("writes before griddepcontrol.wait at " + hex(address));
    if (stamps) return stamps;
    allocation->stamps.resize(allocation->bytes);
    return find(address, bytes, "writes").second;
  }

  std::pair<Allocation*, uint64_t*> find(uint64_t address, size_t bytes, const char* does) {
    check_aligned(address, bytes);
    if (!last_ || address < begin_ || address + bytes > begin_ + last_->bytes) look_up(address, bytes, does);
    return {last_, last_->stamps.empty() ? nullptr : last_->stamps.data() + (address - begin_)};
  }

  void look_up(uint64_t address, size_t bytes, const char* does) {
    const auto after = allocations_.upper_bound(address);
    const auto found = after == allocations_.begin() ? after : std::prev(after);
    if (found == allocations_.end() || address < found->first || address + bytes > found->first + found->second.bytes)
      throw Fault(outside(address, does, found));
    begin_ = found->first;
    last_ = &found->second;
  }

  std::string outside(uint64_t address, const char* does, std::map<uint64_t, Allocation>::iterator near) const {
    std::string text = std::string(does) + " outside all allocations at " + hex(address);
    if (near == allocations_.end()) return text;
    const auto distance = static_cast<long long>(address - near->first);
    return text + ", byte " + std::to_string(distance) + " of one of " + std::to_string(near->second.bytes);
  }

  std::map<uint64_t, Allocation> allocations_;
  Allocation* last_ = nullptr;  // that was looked up, and where it begins
  uint64_t begin_ = 0;
  unsigned block_ = 0;
  uint64_t time_ = 0;  // barriers of the block so far
  std::vector<bool> is_published_;
};

class SharedMemory {
 public:
  static constexpr size_t kFirst = 1024;  // address of the first byte: none is near zero
  static constexpr size_t kMostBytes = 227 * 1024;
  static constexpr unsigned kSeveral = 1023, kAtomic = 1022;  // no thread has such a number

  void begin_block(size_t bytes) {
    bytes_ = bytes;
    if (time_ > 1u << 21) time_ = 0, marks_.assign(marks_.size(), {});  // stamps have 22 bits for it
    if (data_.empty()) data_.resize(kMostBytes), pending_.resize(kMostBytes / 16), marks_.resize(kMostBytes / 2);
    std::memset(data_.data(), 0xff, bytes_);  // NaN as half and as float, -1 as an integer
    std::memset(pending_.data(), 0, (bytes_ + 15) / 16);
    pass_barrier();
    block_ = time_ << 10;
  }

  // What was done before is before all that follows.
  void pass_barrier() {
    ++time_;
  }

  void* read(uint64_t address, size_t bytes, unsigned thread) {
    const size_t at = place(address, bytes, "reads");
    for (size_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
      Mark& mark = marks_[i];
      if (mark.written < block_) throw Fault("reads byte " + std::to_string(at) + " of shared memory, which nobody has written");
      if (is_now(mark.written) && mark.written % 1024 != thread) throw Fault(race("reads what", mark.written, "wrote", at));
      mark.read = is_now(mark.read) && mark.read % 1024 != thread ? stamp(kSeveral) : stamp(thread);
    }
    return data_.data() + at;
  }

  void* write(uint64_t address, size_t bytes, unsigned thread) {
    const size_t at = place(address, bytes, "writes");
    for (size_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
      Mark& mark = marks_[i];
      if (is_now(mark.written) && mark.written % 1024 != thread) throw Fault(race("writes what", mark.written, "wrote", at));
      if (is_now(mark.read) && mark.read % 1024 != thread && thread != kAtomic)
        throw Fault(race("writes what", mark.read, "reads", at));
      mark.written = stamp(thread);
    }
    return data_.data() + at;
  }

  // A copy begins: its thread writes from now on until it has waited.
  void begin_copy(uint64_t address, size_t bytes, unsigned thread) {
    write(address, bytes, thread);
    ++pending_[(address - kFirst) / 16];
  }

  void* end_copy(uint64_t address, size_t bytes, unsigned thread) {
    --pending_[(address - kFirst) / 16];
    return write(address, bytes, thread);
  }

 private:
  // When and by whom a place of two bytes was last written and read: barriers and blocks are counted.
  struct Mark {
    uint32_t written = 0, read = 0;
  };

  uint32_t stamp(unsigned thread) const { return time_ << 10 | thread; }
  bool is_now(uint32_t stamp) const { return stamp >> 10 == time_; }

  size_t place(uint64_t address, size_t bytes, const char* does) const {
    check_aligned(address, bytes);
    if (address < kFirst || address + bytes > kFirst + bytes_)
      throw Fault(std::string(does) + " byte " + std::to_string(static_cast<int64_t>(address - kFirst)) +
                  " of shared memory of " + std::to_string(bytes_));
    const size_t at = address - kFirst;
    if (pending_[at / 16])
      throw Fault(std::string(does) + " byte " + std::to_string(at) + " of shared memory, where a copy has yet to land");
    return at;
  }

  std::string race(const char* does, uint32_t other, const char* did, size_t at) const {
    const unsigned thread = other % 1024;
    const std::string who = thread == kSeveral ? "other threads" : thread == kAtomic ? "an addition" : "thread " + std::to_string(thread);
    return std::string(does) + " " + who + " " + did + " since the last barrier, byte " + std::to_string(at) + " of shared memory";
  }

  size_t bytes_ = 0;
  uint32_t time_ = 0, block_ = 0;  // barriers so far; the block's first stamp
  std::vector<unsigned char> data_, pending_;  // the latter: copies under way, by 16 bytes
  std::vector<Mark> marks_;
};

}  // namespace ptx
