// A GPU's threads on a CPU, a warp at a time: each instruction is executed for all lanes that have come to it together.
// Lanes part at branches and meet again where their next instructions are the same; the schedule says who goes first.
//
// Faults: a register that is read before it was written; a barrier, a shuffle, a product or an ldmatrix that lanes of
// the warp have left, or wait for elsewhere; and what memory.h sees.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <random>

#include "memory.h"

namespace ptx {

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint64_t kParameterSpace = 256;       // address of a launch's parameters
constexpr long kMostSteps = 1L << 28;           // of a warp in a launch: more is a loop without end

struct Warp;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&, uint32_t mask);

// A register, or a constant: where its lanes' values lie, and its number.
struct Slot {
  uint32_t offset = 0, number = 0;
};

enum class Flow { kNext, kBranch, kExit, kBarrier, kShuffle, kAligned };

struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::kNext;
  std::array<Slot, 14> slots{};  // what is written, then what is read
  uint8_t written = 0, used = 0;
  bool is_address_wide = false;  // of 64 bits
  bool guarded = false, guard_is_negated = false, is_target = false;
  Slot guard;
  int64_t number = 0;  // of an address an offset, or what else is fixed
  uint32_t target = 0;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::string> text;  // of each
  size_t parameter_bytes = 0, static_shared = 0, dynamic_begin = 0;
  std::array<unsigned, 3> most_threads{};
  std::vector<unsigned char> registers;   // constants in place, of all lanes; the rest undefined
  std::vector<uint32_t> is_written;       // lanes, by number
  std::map<std::string, Slot> specials;   // %tid.x and the like
};

struct Copy {
  uint64_t to, from;
  size_t bytes;  // of 16; the rest are zeros
};

struct Block;

// Lanes that have the same next instruction. Waiting: for others, to execute it together.
struct Group {
  uint32_t place, mask;
  bool is_waiting = false;
};

struct Warp {
  Block* block = nullptr;
  const Kernel* kernel = nullptr;
  unsigned first = 0;    // thread
  uint32_t lanes = 0;    // that there are
  uint32_t waited = 0;    // at griddepcontrol.wait
  uint32_t unfenced = 0;  // lanes that have written to global memory since their last fence
  uint32_t acquired = 0;  // that have fenced after their block came to a counter
  std::vector<Group> groups;
  std::vector<unsigned char> registers;
  std::vector<uint32_t> is_written;
  std::array<std::vector<Copy>, kWarpSize> uncommitted;
  std::array<std::deque<std::vector<Copy>>, kWarpSize> committed;
  long steps = 0;

  template <class T>
  T* at(Slot slot) {
    return reinterpret_cast<T*>(registers.data() + slot.offset);
  }
  uint32_t& predicate(Slot slot) { return *at<uint32_t>(slot); }
};

// What a launch is, and what all of its blocks share.
struct Launch {
  const Kernel* kernel = nullptr;
  unsigned blocks = 0, threads = 0, dynamic_shared = 0, schedule = 0;
  std::vector<unsigned char> parameters;
  bool is_dependent = false;
  bool rounds_once = false;  // tensor-core products: the sum rounded once, not cut as hardware does
};

struct Block {
  const Launch* launch = nullptr;
  GlobalMemory* global = nullptr;
  SharedMemory shared;
  std::vector<Warp> warps;
  unsigned number = 0;
  bool barrier_or = false;   // bar.red.or, of those that have come
  bool has_arrived = false;  // at a counter
  int lane = 0;       // that is being executed
  std::string where;  // the instruction at fault
};

// Runs launches, one block after another.
class Machine {
 public:
  explicit Machine(GlobalMemory& global) { block_.global = &global; }

  void run(const Launch& launch) {
    random_.seed(launch.schedule);
    block_.launch = &launch;
    block_.global->begin_launch(launch.is_dependent, launch.blocks);
    for (unsigned block : order(launch.blocks)) {
      block_.number = block;
      try {
        run_block();
      } catch (const Fault& fault) {
        throw Fault(launch.kernel->name + ", block " + std::to_string(block) + ", " + block_.where + ": " + fault.what());
      }
    }
  }

 private:
  // Of blocks, of warps: 0 ascending, 1 descending, any other a new shuffle each time, from that seed.
  std::vector<unsigned> order(size_t count) {
    std::vector<unsigned> all(count);
    for (unsigned i = 0; i < count; ++i) all[i] = i;
    if (block_.launch->schedule == 1) std::reverse(all.begin(), all.end());
    if (block_.launch->schedule > 1) std::shuffle(all.begin(), all.end(), random_);
    return all;
  }

  void run_block() {
    const Launch& launch = *block_.launch;
    block_.where = "start";
    block_.has_arrived = block_.barrier_or = false;
    block_.global->begin_block(block_.number);
    block_.shared.begin_block(launch.kernel->dynamic_begin + launch.dynamic_shared);
    block_.warps.resize((launch.threads + kWarpSize - 1) / kWarpSize);
    for (size_t i = 0; i < block_.warps.size(); ++i) start(block_.warps[i], static_cast<unsigned>(i) * kWarpSize);
    while (true) {
      for (unsigned warp : order(block_.warps.size())) run_warp(block_.warps[warp]);
      size_t finished = 0;
      for (const Warp& warp : block_.warps) finished += warp.groups.empty();
      if (finished == block_.warps.size()) return;
      if (finished) throw Fault("waits for threads that have returned");
      release_barrier();
    }
  }

  void start(Warp& warp, unsigned first) {
    const Launch& launch = *block_.launch;
    const Kernel& kernel = *launch.kernel;
    warp.block = &block_;
    warp.first = first;
    if (warp.kernel != &kernel) warp.registers = kernel.registers;  // constants stay, what is undefined is not read
    warp.kernel = &kernel;
    warp.is_written = kernel.is_written;
    warp.steps = 0;
    const unsigned lanes = std::min(launch.threads - first, static_cast<unsigned>(kWarpSize));
    warp.lanes = kAllLanes >> (kWarpSize - lanes);
    warp.waited = launch.is_dependent ? 0 : kAllLanes;
    warp.unfenced = warp.acquired = 0;
    warp.groups = {{0, warp.lanes}};
    for (auto& copies : warp.uncommitted) copies.clear();
    for (auto& copies : warp.committed) copies.clear();
    for (const auto& [name, slot] : kernel.specials)
      for (unsigned lane = 0; lane < kWarpSize; ++lane) warp.at<uint32_t>(slot)[lane] = special(name, first + lane);
  }

  uint32_t special(const std::string& name, unsigned thread) const {
    if (name == "%tid.x") return thread;
    if (name == "%ctaid.x") return block_.number;
    if (name == "%ntid.x") return block_.launch->threads;
    if (name == "%nctaid.x") return block_.launch->blocks;
    throw Fault("no special register is called " + name);
  }

  // Until all lanes have returned or wait at a barrier.
  void run_warp(Warp& warp) {
    while (Group* const group = choose(warp)) run_group(warp, *group);
    block_.where = "threads from " + std::to_string(warp.first) + " on";
    if (warp.groups.size() > 1) {
      std::string text = "lanes wait for each other:";
      for (const Group& group : warp.groups) text += " " + hex(group.mask) + " at " + warp.kernel->text[group.place] + ";";
      throw Fault(text);
    }
    if (!warp.groups.empty() && warp.kernel->code[warp.groups[0].place].flow != Flow::kBarrier)
      throw Fault("lanes have returned that are waited for at " + warp.kernel->text[warp.groups[0].place]);
  }

  Group* choose(Warp& warp) {
    std::vector<Group*> ready;
    for (Group& group : warp.groups)
      if (!group.is_waiting) ready.push_back(&group);
    if (ready.empty()) return nullptr;
    const auto is_before = [](const Group* a, const Group* b) { return a->place < b->place; };
    if (block_.launch->schedule == 0) return *std::min_element(ready.begin(), ready.end(), is_before);
    if (block_.launch->schedule == 1) return *std::max_element(ready.begin(), ready.end(), is_before);
    return ready[random_() % ready.size()];
  }

  // Until its lanes part, wait or return, or may meet others.
  void run_group(Warp& warp, Group& group) {
    const Kernel& kernel = *warp.kernel;
    const bool is_alone = warp.groups.size() == 1;
    for (uint32_t place = group.place;; ++place) {
      const Instruction& instruction = kernel.code[place];
      group.place = place;
      if (++warp.steps > kMostSteps) fail(warp, place, group.mask, "goes on and on");
      if (!is_alone && instruction.is_target && place != entered_ && merge_or_leave(warp, group)) return;
      entered_ = kAllLanes;
      uint32_t mask = group.mask;
      if (instruction.guarded) {
        if (mask & ~warp.is_written[instruction.guard.number]) fail(warp, place, mask, "has a guard that is undefined");
        mask &= warp.predicate(instruction.guard) ^ (instruction.guard_is_negated ? kAllLanes : 0);
      }
      for (int i = instruction.written; i < instruction.used; ++i)
        if (const uint32_t missing = mask & ~warp.is_written[instruction.slots[i].number])
          fail(warp, place, missing, "reads a register that is undefined");
      if (instruction.flow != Flow::kNext) {
        if (change(warp, group, place, mask)) return;
        place = group.place - 1;
        continue;
      }
      execute(warp, instruction, place, mask);
    }
  }

  void execute(Warp& warp, const Instruction& instruction, uint32_t place, uint32_t mask) {
    if (!mask) return;
    block_.lane = first_lane(mask);
    try {
      instruction.execute(warp, instruction, mask);
    } catch (const Fault& fault) {
      fail(warp, place, 1u << block_.lane, fault.what());
    }
    for (int i = 0; i < instruction.written; ++i) warp.is_written[instruction.slots[i].number] |= mask;
  }

  // Where others may come to: joins those that are there; lets others go on that are before.
  bool merge_or_leave(Warp& warp, Group& group) {
    for (Group& other : warp.groups)
      if (&other != &group && other.place == group.place && !other.is_waiting) {
        other.mask |= group.mask;
        remove(warp, group);
        return true;
      }
    entered_ = group.place;
    return true;
  }

  static void remove(Warp& warp, Group& group) { warp.groups.erase(warp.groups.begin() + (&group - warp.groups.data())); }

  // Whether the group is over, or another's turn has come. Otherwise it goes on at its place.
  bool change(Warp& warp, Group& group, uint32_t place, uint32_t mask) {
    const Instruction& instruction = warp.kernel->code[place];
    switch (instruction.flow) {
      case Flow::kBranch:
        return branch(warp, group, mask, instruction.target);
      case Flow::kExit:
        group.mask &= ~mask;
        ++group.place;
        if (group.mask) return false;
        remove(warp, group);
        return true;
      case Flow::kBarrier:
        if (mask != group.mask) fail(warp, place, mask, "is for some lanes only");
        execute(warp, instruction, place, mask);
        wait(warp, group);
        return true;
      default:
        return !together(warp, group, place, mask);
    }
  }

  bool branch(Warp& warp, Group& group, uint32_t mask, uint32_t target) {
    if (mask == group.mask || !mask) {
      group.place = mask ? target : group.place + 1;
      return false;
    }
    const Group leaving{target, mask};
    group.mask &= ~mask;
    ++group.place;
    warp.groups.push_back(leaving);
    return true;
  }

  // Waits where others of its warp may wait; joins them.
  void wait(Warp& warp, Group& group) {
    group.is_waiting = true;
    for (Group& other : warp.groups)
      if (&other != &group && other.place == group.place && other.is_waiting) {
        other.mask |= group.mask;
        remove(warp, group);
        return;
      }
  }

  // An instruction that lanes execute together, once all have come. PTX ISA, "shfl.sync": the lanes of the member mask;
  // "mma", "ldmatrix": with .sync.aligned all lanes of the warp.
  bool together(Warp& warp, Group& group, uint32_t place, uint32_t mask) {
    const Instruction& instruction = warp.kernel->code[place];
    if (mask != group.mask) fail(warp, place, mask, "is for some lanes only");
    for (Group& other : warp.groups)
      if (&other != &group && other.place == place && other.is_waiting) {
        other.mask |= group.mask;
        other.is_waiting = false;  // and looks again
        remove(warp, group);
        return false;
      }
    uint32_t needed = kAllLanes;
    if (instruction.flow == Flow::kShuffle) {
      needed = warp.at<uint32_t>(instruction.slots[instruction.used - 1])[first_lane(mask)];
      for (int lane = 0; lane < kWarpSize; ++lane)
        if (mask >> lane & 1 && warp.at<uint32_t>(instruction.slots[instruction.used - 1])[lane] != needed)
          fail(warp, place, mask, "has several member masks");
      if (mask & ~needed) fail(warp, place, mask & ~needed, "is not in its own member mask");
    }
    if (needed & ~mask) {
      const bool is_in_order = block_.launch->schedule == 0;
      if (instruction.flow == Flow::kAligned && is_in_order)
        fail(warp, place, mask, "is reached by lanes " + hex(mask) + " only, while others are elsewhere");
      group.is_waiting = true;
      return false;
    }
    execute(warp, instruction, place, mask);
    ++group.place;
    return true;
  }

  static int first_lane(uint32_t mask) { return __builtin_ctz(mask); }

  // All threads have come.
  void release_barrier() {
    for (Warp& warp : block_.warps) {
      Group& group = warp.groups[0];
      if (group.mask != warp.lanes) fail(warp, group.place, warp.lanes & ~group.mask, "has returned before this barrier");
      const Instruction& instruction = warp.kernel->code[group.place];
      if (instruction.written) warp.predicate(instruction.slots[0]) = block_.barrier_or ? kAllLanes : 0;
      if (instruction.written) warp.is_written[instruction.slots[0].number] |= group.mask;
      group.is_waiting = false;
      ++group.place;
    }
    block_.barrier_or = false;
    block_.shared.pass_barrier();
    block_.global->pass_barrier();
  }

  [[noreturn]] void fail(const Warp& warp, uint32_t place, uint32_t mask, const std::string& what) {
    block_.where = "thread " + std::to_string(warp.first + first_lane(mask)) + ", \"" + warp.kernel->text[place] + "\"";
    throw Fault(what);
  }

  Block block_;
  std::mt19937 random_;
  uint32_t entered_ = kAllLanes;  // the target that the group that was chosen stands at
};

}  // namespace ptx
