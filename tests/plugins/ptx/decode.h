// Statements become instructions: which registers and constants they name, and what executes them. A table has every
// opcode with all its modifiers, as instructions.h and collective.h fill it; no other is known.
#pragma once

#include <set>

#include "machine.h"
#include "text.h"

namespace ptx {

class Decoder;
using Decode = std::function<void(Decoder&)>;
using Opcodes = std::map<std::string, Decode>;

// Of a lane's value in a register.
template <class T>
constexpr int kBits = std::is_same_v<T, bool> ? 1 : 8 * static_cast<int>(sizeof(T));

constexpr size_t kLaneBytes[] = {4, 64, 128, 256};  // of all lanes: predicates as bits, then 16, 32 and 64 bits each

// One statement at a time. A table's entries say what operands there must be, and set `instruction`.
class Decoder {
 public:
  Decoder(const Module& module, const Entry& entry, Kernel& kernel) : module_(module), entry_(entry), kernel_(kernel) {}

  Instruction instruction;

  void decode(const Opcodes& opcodes, const Statement& statement) {
    instruction = {};
    statement_ = &statement;
    const auto known = opcodes.find(statement.opcode);
    if (known == opcodes.end()) throw Unknown("the instruction is not known: " + statement.text);
    if (!statement.guard.empty()) {
      instruction.guarded = true;
      instruction.guard_is_negated = statement.guard_is_negated;
      instruction.guard = slot(statement.guard, 1);
    }
    known->second(*this);
  }

  const Operand& operand(size_t i) const {
    if (i >= statement_->operands.size()) wrong("operands are missing");
    return statement_->operands[i];
  }

  void expect_operands(size_t count) const {
    if (statement_->operands.size() != count) wrong("has not " + std::to_string(count) + " operands");
  }

  // What is written comes before what is read. `bits`: that the register has.
  void writes(const std::string& name, int bits) {
    if (!entry_.registers.count(name)) wrong(name + " is no register");
    instruction.slots.at(instruction.used) = slot(name, bits);
    instruction.written = ++instruction.used;
  }

  void reads(const std::string& name, int bits) {
    instruction.slots.at(instruction.used) = slot(name, bits);
    ++instruction.used;
  }

  const std::string& plain(size_t i) const {
    if (operand(i).kind != Operand::Kind::kPlain) wrong("operand " + std::to_string(i) + " is not one name");
    return operand(i).names[0];
  }

  // All of a vector, or one register.
  const std::vector<std::string>& names(size_t i, size_t count) const {
    const Operand& given = operand(i);
    if (given.kind == Operand::Kind::kAddress || given.names.size() != count)
      wrong("operand " + std::to_string(i) + " has not " + std::to_string(count) + " registers");
    return given.names;
  }

  // The register of an address is read, its offset the instruction's number.
  void address(size_t i) {
    const Operand& given = operand(i);
    if (given.kind != Operand::Kind::kAddress) wrong("operand " + std::to_string(i) + " is no address");
    const auto found = entry_.registers.find(given.names[0]);
    instruction.is_address_wide = found == entry_.registers.end() || found->second == 64;
    reads(given.names[0], instruction.is_address_wide ? 64 : 32);
    instruction.number = given.offset;
  }

  int64_t number(size_t i) const {
    uint64_t value = 0;
    if (!is_number(plain(i), value)) wrong(plain(i) + " is no number");
    return static_cast<int64_t>(value);
  }

  int register_bits(const std::string& name) const {
    const auto found = entry_.registers.find(name);
    return found == entry_.registers.end() ? 0 : found->second;
  }

  void target(size_t i) {
    const auto found = entry_.labels.find(plain(i));
    if (found == entry_.labels.end()) wrong("there is no such label");
    instruction.target = static_cast<uint32_t>(found->second);
  }

  [[noreturn]] void wrong(const std::string& what) const { throw Unknown(statement_->text + ": " + what); }

 private:
  static size_t lane_bytes(int bits) { return kLaneBytes[bits == 1 ? 0 : bits == 16 ? 1 : bits == 32 ? 2 : 3]; }

  Slot slot(const std::string& name, int bits) {
    const auto declared = entry_.registers.find(name);
    if (declared == entry_.registers.end()) return constant(name, bits);
    const int has = declared->second;
    if (has != bits) wrong(name + " has " + std::to_string(has) + " bits");
    const auto [place, is_new] = slots_.try_emplace(name);
    if (is_new) place->second = allocate(lane_bytes(has), 0);
    return place->second;
  }

  Slot allocate(size_t bytes, uint32_t is_written) {
    const Slot slot{static_cast<uint32_t>(kernel_.registers.size()), static_cast<uint32_t>(kernel_.is_written.size())};
    kernel_.registers.resize(kernel_.registers.size() + (bytes + 63) / 64 * 64, 0xff);
    kernel_.is_written.push_back(is_written);
    return slot;
  }

  Slot constant(const std::string& name, int bits) {
    if (name[0] == '%') {
      static const std::set<std::string> known = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x"};
      if (!known.count(name)) wrong(name + " is not known");
      const auto [place, is_new] = kernel_.specials.try_emplace(name);
      if (bits != 32) wrong(name + " has 32 bits");
      if (is_new) place->second = allocate(lane_bytes(32), kAllLanes);
      return place->second;
    }
    uint64_t value = 0;
    if (!is_number(name, value) && !is_symbol(name, value)) wrong(name + " is not known");
    const auto [place, is_new] = constants_.try_emplace({bits, value});
    if (!is_new) return place->second;
    const size_t bytes = lane_bytes(bits);
    place->second = allocate(bytes, kAllLanes);
    unsigned char* const to = kernel_.registers.data() + place->second.offset;
    if (bits == 1) value = value ? kAllLanes : 0;
    const size_t each = bits == 1 ? 4 : static_cast<size_t>(bits) / 8;
    for (size_t at = 0; at < bytes; at += each) std::memcpy(to + at, &value, each);
    return place->second;
  }

  // "Constants": whole numbers, 0f and 8 or 0d and 16 hexadecimal digits.
  static bool is_number(const std::string& name, uint64_t& value) {
    char* end = nullptr;
    const bool is_float = name.size() > 2 && name[0] == '0' && std::strchr("fd", name[1]);
    value = is_float ? std::strtoull(name.c_str() + 2, &end, 16)
                     : name[0] == '-' ? static_cast<uint64_t>(std::strtoll(name.c_str(), &end, 0))
                                      : std::strtoull(name.c_str(), &end, 0);
    return end != name.c_str() && *end == 0;
  }

  bool is_symbol(const std::string& name, uint64_t& value) {
    if (name == entry_.parameter) return value = kParameterSpace, true;
    const auto found = module_.shared.find(name);
    if (found == module_.shared.end()) return false;
    const Variable& variable = found->second;
    if (variable.is_extern) return value = SharedMemory::kFirst + kernel_.dynamic_begin, true;
    value = SharedMemory::kFirst + static_places_.at(name);
    return true;
  }

 public:
  // Static shared memory: what the entry names, and no more. Dynamic memory follows it.
  void place_shared() {
    size_t end = 0;
    for (const Statement& statement : entry_.statements)
      for (const Operand& operand : statement.operands)
        for (const std::string& name : operand.names)
          if (const auto found = module_.shared.find(name); found != module_.shared.end() && !found->second.is_extern &&
                                                            !static_places_.count(name)) {
            const Variable& variable = found->second;
            end = (end + variable.alignment - 1) / variable.alignment * variable.alignment;
            static_places_[name] = end;
            end += variable.bytes;
          }
    kernel_.static_shared = end;
    kernel_.dynamic_begin = (end + 15) / 16 * 16;
  }

 private:
  const Module& module_;
  const Entry& entry_;
  Kernel& kernel_;
  const Statement* statement_ = nullptr;
  std::map<std::string, Slot> slots_;
  std::map<std::pair<int, uint64_t>, Slot> constants_;
  std::map<std::string, size_t> static_places_;
};

inline Kernel decoded(const Module& module, const Entry& entry, const Opcodes& opcodes) {
  Kernel kernel;
  kernel.name = entry.name;
  kernel.parameter_bytes = entry.parameter_type.bytes;
  kernel.most_threads = entry.most_threads;
  Decoder decoder(module, entry, kernel);
  decoder.place_shared();
  for (const Statement& statement : entry.statements) {
    decoder.decode(opcodes, statement);
    kernel.code.push_back(decoder.instruction);
    kernel.text.push_back(statement.text);
  }
  if (kernel.code.empty() || kernel.code.back().flow != Flow::kExit) throw Unknown(entry.name + " does not end with ret");
  for (const auto& [label, place] : entry.labels) kernel.code.at(place).is_target = true;
  return kernel;
}

}  // namespace ptx
