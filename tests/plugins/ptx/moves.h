// Instructions that move data between registers and memory.
#pragma once

#include "decode.h"
#include "numbers.h"

namespace ptx {

enum class Space { kGlobal, kConstant, kShared, kParameter };  // constant: global memory through ld.global.nc

inline uint64_t address_of(Warp& warp, const Instruction& in, Slot slot, int lane) {
  return (in.is_address_wide ? warp.at<uint64_t>(slot)[lane] : warp.at<uint32_t>(slot)[lane]) +
         static_cast<uint64_t>(in.number);
}

inline const void* parameter(const Launch& launch, uint64_t address, size_t bytes) {
  check_aligned(address, bytes);
  if (address < kParameterSpace || address + bytes > kParameterSpace + launch.parameters.size())
    throw Fault("reads outside the parameters, of " + std::to_string(launch.parameters.size()) + " bytes");
  return launch.parameters.data() + (address - kParameterSpace);
}

inline Accessor accessor(const Warp& warp, int lane) {
  return {warp.first + static_cast<unsigned>(lane), (warp.waited >> lane & 1u) != 0, (warp.acquired >> lane & 1u) != 0};
}

template <class Do>
void for_lanes(Warp& warp, uint32_t mask, const Do& act) {
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1u) act(warp.block->lane = lane, accessor(warp, lane));
}

template <Space space, class Value, class Register, int count>
void load(Warp& warp, const Instruction& in, uint32_t mask) {
  constexpr size_t kBytes = sizeof(Value) * count;
  for_lanes(warp, mask, [&](int lane, const Accessor& who) {
    const uint64_t address = address_of(warp, in, in.slots[count], lane);
    const void* from = nullptr;
    if constexpr (space == Space::kShared) from = warp.block->shared.read(address, kBytes, who.thread);
    else if constexpr (space == Space::kParameter) from = parameter(*warp.block->launch, address, kBytes);
    else from = warp.block->global->read(address, kBytes, who, space == Space::kConstant);
    Value values[count];
    std::memcpy(values, from, kBytes);
    for (int i = 0; i < count; ++i) warp.at<Register>(in.slots[static_cast<size_t>(i)])[lane] = values[i];
  });
}

template <Space space, class Value, int count>
void store(Warp& warp, const Instruction& in, uint32_t mask) {
  constexpr size_t kBytes = sizeof(Value) * count;
  for_lanes(warp, mask, [&](int lane, const Accessor& who) {
    Value values[count];
    for (int i = 0; i < count; ++i) values[i] = warp.at<Value>(in.slots[static_cast<size_t>(1 + i)])[lane];
    const uint64_t address = address_of(warp, in, in.slots[0], lane);
    if constexpr (space == Space::kShared) std::memcpy(warp.block->shared.write(address, kBytes, who.thread), values, kBytes);
    else warp.block->global->write(address, kBytes, who, values);
  });
  if constexpr (space == Space::kGlobal) warp.unfenced |= mask;
}

// "ld": into a register that is wider than what is loaded, by its sign if the type has one, else with zeros.
template <Space space, class Value, int count>
void decode_load(Decoder& decoder) {
  decoder.expect_operands(2);
  const auto& names = decoder.names(0, count);
  const int has = decoder.register_bits(names[0]);
  for (const std::string& name : names) decoder.writes(name, has);
  if (has < kBits<Value>) decoder.wrong("the register is too narrow");
  decoder.address(1);
  Execute& execute = decoder.instruction.execute;
  if (has == 64) execute = load<space, Value, uint64_t, count>;
  else if constexpr (sizeof(Value) <= 4) execute = load<space, Value, uint32_t, count>;
  if constexpr (sizeof(Value) <= 2)
    if (has == 16) execute = load<space, Value, uint16_t, count>;
}

template <Space space, class Value, int count>
void decode_store(Decoder& decoder) {
  decoder.expect_operands(2);
  decoder.address(0);
  for (const std::string& name : decoder.names(1, count)) decoder.reads(name, kBits<Value>);
  decoder.instruction.execute = store<space, Value, count>;
}

template <Space space>
void add_loads(Opcodes& table, const std::string& name) {
  table[name + ".u16"] = decode_load<space, uint16_t, 1>;
  table[name + ".u64"] = decode_load<space, uint64_t, 1>;
  table[name + ".v2.u64"] = decode_load<space, uint64_t, 2>;
  table[name + ".s32"] = decode_load<space, int32_t, 1>;
  for (const char* type : {".u32", ".f32"}) {
    table[name + type] = decode_load<space, uint32_t, 1>;
    table[name + ".v2" + type] = decode_load<space, uint32_t, 2>;
    table[name + ".v4" + type] = decode_load<space, uint32_t, 4>;
  }
}

template <Space space>
void add_stores(Opcodes& table, const std::string& name) {
  table[name + ".u16"] = decode_store<space, uint16_t, 1>;
  table[name + ".u64"] = decode_store<space, uint64_t, 1>;
  table[name + ".v2.u64"] = decode_store<space, uint64_t, 2>;
  for (const char* type : {".u32", ".f32"}) {
    table[name + type] = decode_store<space, uint32_t, 1>;
    table[name + ".v4" + type] = decode_store<space, uint32_t, 4>;
  }
}

inline void arrive(Block& block) {
  uint32_t unfenced = 0;
  for (const Warp& warp : block.warps) unfenced |= warp.unfenced;
  block.has_arrived = true;
  block.global->publish(!unfenced);
}

// "membar.gl": what the thread wrote is before what it does next, for all threads of the GPU.
inline void fence(Warp& warp, const Instruction&, uint32_t mask) {
  warp.unfenced &= ~mask;
  if (warp.block->has_arrived) warp.acquired |= mask;
}

// "atom": what was there before is returned.
template <Space space, auto function>
void atomic(Warp& warp, const Instruction& in, uint32_t mask) {
  for_lanes(warp, mask, [&](int lane, const Accessor& who) {
    const uint64_t address = address_of(warp, in, in.slots[1], lane);
    void* const at = space == Space::kShared ? warp.block->shared.write(address, 4, SharedMemory::kAtomic)
                                             : warp.block->global->change(address, 4, who);
    uint32_t old;
    std::memcpy(&old, at, 4);
    const uint32_t fresh = function(old, warp.at<uint32_t>(in.slots[2])[lane]);
    std::memcpy(at, &fresh, 4);
    warp.at<uint32_t>(in.slots[0])[lane] = old;
  });
  if constexpr (space == Space::kGlobal) arrive(*warp.block);
}

template <Space space, auto function>
void decode_atomic(Decoder& decoder) {
  decoder.expect_operands(3);
  decoder.writes(decoder.plain(0), 32);
  decoder.address(1);
  decoder.reads(decoder.plain(2), 32);
  decoder.instruction.execute = atomic<space, function>;
}

// "cp.async": 16 bytes, of which so many are read and the rest is zeros. What it reads has to be there when it is asked
// for; it is read, and written, as late as may be: when its thread waits.
inline void begin_copy(Warp& warp, const Instruction& in, uint32_t mask) {
  for_lanes(warp, mask, [&](int lane, const Accessor& who) {
    const uint64_t to = warp.at<uint32_t>(in.slots[0])[lane], from = warp.at<uint64_t>(in.slots[1])[lane];
    const uint32_t bytes = warp.at<uint32_t>(in.slots[2])[lane];
    if (bytes != 0 && bytes != 16) throw Fault("copies " + std::to_string(bytes) + " of 16 bytes");
    check_aligned(from, 16);
    if (bytes) warp.block->global->read(from, bytes, who);
    warp.block->shared.begin_copy(to, 16, who.thread);
    warp.uncommitted[static_cast<size_t>(lane)].push_back({to, from, bytes});
  });
}

inline void commit_copies(Warp& warp, const Instruction&, uint32_t mask) {
  for_lanes(warp, mask, [&](int lane, const Accessor&) {
    auto& copies = warp.uncommitted[static_cast<size_t>(lane)];
    warp.committed[static_cast<size_t>(lane)].push_back(std::move(copies));
    copies.clear();
  });
}

// "cp.async.wait_group N": for all but the N latest groups of the thread.
inline void wait_for_copies(Warp& warp, const Instruction& in, uint32_t mask) {
  for_lanes(warp, mask, [&](int lane, const Accessor& who) {
    auto& groups = warp.committed[static_cast<size_t>(lane)];
    for (; groups.size() > static_cast<size_t>(in.number); groups.pop_front())
      for (const Copy& copy : groups.front()) {
        unsigned char bytes[16] = {};
        if (copy.bytes) std::memcpy(bytes, reinterpret_cast<const void*>(copy.from), copy.bytes);
        std::memcpy(warp.block->shared.end_copy(copy.to, 16, who.thread), bytes, 16);
      }
  });
}

inline void decode_copy(Decoder& decoder) {
  decoder.expect_operands(4);
  decoder.address(0);
  if (decoder.instruction.is_address_wide || decoder.instruction.number) decoder.wrong("the address has not 32 bits");
  decoder.address(1);
  if (decoder.instruction.number) decoder.wrong("an offset");
  if (decoder.number(2) != 16) decoder.wrong("another size than 16");
  decoder.reads(decoder.plain(3), 32);
  decoder.instruction.execute = begin_copy;
}

inline void add_moves(Opcodes& table) {
  add_loads<Space::kGlobal>(table, "ld.global");
  add_loads<Space::kConstant>(table, "ld.global.nc");
  add_loads<Space::kShared>(table, "ld.shared");
  add_loads<Space::kParameter>(table, "ld.param");
  add_stores<Space::kGlobal>(table, "st.global");
  add_stores<Space::kShared>(table, "st.shared");
  // What caches are told changes no value.
  table["ld.global.nc.L1::no_allocate.L2::128B.v4.u32"] = decode_load<Space::kConstant, uint32_t, 4>;
  table["ld.global.nc.L2::128B.u16"] = decode_load<Space::kConstant, uint16_t, 1>;
  table["ld.global.nc.L2::128B.u8"] = table["ld.global.nc.u8"] = decode_load<Space::kConstant, uint8_t, 1>;
  table["atom.global.inc.u32"] = decode_atomic<Space::kGlobal, incremented>;
  table["atom.shared.add.u32"] = decode_atomic<Space::kShared, increased>;
  table["cp.async.cg.shared.global.L2::128B"] = decode_copy;
  table["cp.async.commit_group"] = [](Decoder& decoder) {
    decoder.expect_operands(0);
    decoder.instruction.execute = commit_copies;
  };
  table["cp.async.wait_group"] = [](Decoder& decoder) {
    decoder.expect_operands(1);
    decoder.instruction.number = decoder.number(0);
    decoder.instruction.execute = wait_for_copies;
  };
  table["membar.gl"] = [](Decoder& decoder) {
    decoder.expect_operands(0);
    decoder.instruction.execute = fence;
  };
  table["griddepcontrol.launch_dependents"] = [](Decoder& decoder) {  // launches follow one another anyway
    decoder.expect_operands(0);
    decoder.instruction.execute = +[](Warp&, const Instruction&, uint32_t) {};
  };
  table["griddepcontrol.wait"] = [](Decoder& decoder) {
    decoder.expect_operands(0);
    decoder.instruction.execute = +[](Warp& warp, const Instruction&, uint32_t mask) { warp.waited |= mask; };
  };
}

}  // namespace ptx
