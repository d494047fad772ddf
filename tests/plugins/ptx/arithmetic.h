// Instructions that every lane executes by itself, on registers: numbers.h over all lanes of a warp.
#pragma once

#include <tuple>

#include "decode.h"
#include "numbers.h"

namespace ptx {

template <class T>
struct Lanes {
  const T* values;
  T operator[](int lane) const { return values[lane]; }
};

template <>
struct Lanes<bool> {  // a predicate
  uint32_t values;
  bool operator[](int lane) const { return values >> lane & 1u; }
};

template <class T>
Lanes<T> lanes_of(Warp& warp, Slot slot) {
  if constexpr (std::is_same_v<T, bool>) return {warp.predicate(slot)};
  else return {warp.at<T>(slot)};
}

// A function of one lane's values, for all lanes.
template <class Function, class Result, class... Values>
struct Elementwise {
  template <size_t... n>
  static void all(Warp& warp, const Instruction& in, uint32_t mask, std::index_sequence<n...>) {
    const std::tuple<Lanes<Values>...> from{lanes_of<Values>(warp, in.slots[1 + n])...};
    if constexpr (std::is_same_v<Result, bool>) {
      uint32_t bits = 0;
      for (int lane = 0; lane < kWarpSize; ++lane)
        bits |= static_cast<uint32_t>(Function()(std::get<n>(from)[lane]...)) << lane;
      uint32_t& to = warp.predicate(in.slots[0]);
      to = (to & ~mask) | (bits & mask);
    } else if (Result* const to = warp.at<Result>(in.slots[0]); mask == kAllLanes) {
#pragma GCC ivdep
      for (int lane = 0; lane < kWarpSize; ++lane) to[lane] = Function()(std::get<n>(from)[lane]...);
    } else {
      for (int lane = 0; lane < kWarpSize; ++lane)
        if (mask >> lane & 1u) to[lane] = Function()(std::get<n>(from)[lane]...);
    }
  }

  static void execute(Warp& warp, const Instruction& in, uint32_t mask) {
    all(warp, in, mask, std::index_sequence_for<Values...>());
  }

  static void decode(Decoder& decoder) {
    decoder.expect_operands(1 + sizeof...(Values));
    decoder.writes(decoder.plain(0), kBits<Result>);
    size_t operand = 0;
    (decoder.reads(decoder.plain(++operand), kBits<Values>), ...);
    decoder.instruction.execute = execute;
  }
};

template <class Function, class Result, class... Values>
Decode elementwise(Result (Function::*)(Values...) const) {
  return Elementwise<Function, Result, Values...>::decode;
}

// A lambda without state; its signature says what types it is for.
template <class Function>
Decode each(Function) {
  return elementwise<Function>(&Function::operator());
}

template <class T>
void add_integers(Opcodes& table, const std::string& type) {
  using Unsigned = std::make_unsigned_t<T>;
  table["add." + type] = each([](Unsigned a, Unsigned b) -> Unsigned { return a + b; });
  table["sub." + type] = each([](Unsigned a, Unsigned b) -> Unsigned { return a - b; });
  table["mul.lo." + type] = each([](Unsigned a, Unsigned b) -> Unsigned { return a * b; });
  table["mad.lo." + type] = each([](Unsigned a, Unsigned b, Unsigned c) -> Unsigned { return a * b + c; });
  table["div." + type] = each([](T a, T b) -> T { return quotient(a, b); });
  table["rem." + type] = each([](T a, T b) -> T { return remainder(a, b); });
  table["min." + type] = each([](T a, T b) -> T { return a < b ? a : b; });
  table["max." + type] = each([](T a, T b) -> T { return a > b ? a : b; });
  table["shr." + type] = each([](T a, uint32_t by) -> T { return shifted_right(a, by); });
  table["setp.lt." + type] = each([](T a, T b) -> bool { return a < b; });
  table["setp.le." + type] = each([](T a, T b) -> bool { return a <= b; });
  table["setp.gt." + type] = each([](T a, T b) -> bool { return a > b; });
  table["setp.ge." + type] = each([](T a, T b) -> bool { return a >= b; });
  table["setp.eq." + type] = each([](T a, T b) -> bool { return a == b; });
  table["setp.ne." + type] = each([](T a, T b) -> bool { return a != b; });
}

// "sub", "mul", "add", "fma", without a rounding mode to the nearest.
template <class T>
void add_floats(Opcodes& table, const std::string& type) {
  table["add." + type] = each([](T a, T b) -> T { return canonical(a + b); });
  table["sub." + type] = each([](T a, T b) -> T { return canonical(a - b); });
  table["mul." + type] = each([](T a, T b) -> T { return canonical(a * b); });
  table["fma.rn." + type] = each([](T a, T b, T c) -> T { return canonical(std::fma(a, b, c)); });
  table["neg." + type] = each([](T a) -> T { return -a; });
  table["setp.lt." + type] = each([](T a, T b) -> bool { return a < b; });
  table["setp.gt." + type] = each([](T a, T b) -> bool { return a > b; });
  table["setp.ge." + type] = each([](T a, T b) -> bool { return a >= b; });
  table["setp.eq." + type] = each([](T a, T b) -> bool { return a == b; });
  table["setp.ltu." + type] = each([](T a, T b) -> bool { return !(a >= b); });
  table["setp.leu." + type] = each([](T a, T b) -> bool { return !(a > b); });
  table["setp.geu." + type] = each([](T a, T b) -> bool { return !(a < b); });
  table["setp.nan." + type] = each([](T a, T b) -> bool { return std::isnan(a) || std::isnan(b); });
}

// Of any kind of value with so many bits.
template <class T>
void add_bits(Opcodes& table, const std::string& bits) {
  table["and.b" + bits] = each([](T a, T b) -> T { return a & b; });
  table["or.b" + bits] = each([](T a, T b) -> T { return a | b; });
  table["xor.b" + bits] = each([](T a, T b) -> T { return a ^ b; });
  table["not.b" + bits] = each([](T a) -> T { return ~a; });
  table["shl.b" + bits] = each([](T a, uint32_t by) -> T { return shifted_left(a, by); });
  table["bfi.b" + bits] = each([](T a, T b, uint32_t c, uint32_t d) -> T { return inserted(a, b, c, d); });
  table["setp.eq.b" + bits] = each([](T a, T b) -> bool { return a == b; });
  for (const char* kind : {"b", "u", "s", "f"})
    table["selp." + (kind + bits)] = each([](T a, T b, bool c) -> T { return c ? a : b; });
}

inline void add_conversions(Opcodes& table) {
  table["cvt.u16.u32"] = each([](uint32_t a) -> uint16_t { return static_cast<uint16_t>(a); });
  table["cvt.u32.u16"] = each([](uint16_t a) -> uint32_t { return a; });
  table["cvt.u32.u64"] = each([](uint64_t a) -> uint32_t { return static_cast<uint32_t>(a); });
  table["cvt.u64.u32"] = each([](uint32_t a) -> uint64_t { return a; });
  // A wider register than what is converted gives its lower bits ("Operand Size Exceeding Instruction-Type Size").
  const Decode narrow = each([](int32_t a) -> int64_t { return a; });
  const Decode wide = each([](uint64_t a) -> int64_t { return static_cast<int32_t>(a); });
  table["cvt.s64.s32"] = [=](Decoder& decoder) {
    (decoder.register_bits(decoder.plain(1)) == 64 ? wide : narrow)(decoder);
  };
  table["cvt.f32.f16"] = each([](uint16_t a) -> float { return canonical(float_of(a)); });
  table["cvt.rn.f16.f32"] = each([](float a) -> uint16_t { return half_of(a); });
  table["cvt.rn.f32.u32"] = each([](uint32_t a) -> float { return static_cast<float>(a); });
  table["cvt.rn.f32.s32"] = each([](int32_t a) -> float { return static_cast<float>(a); });
  table["cvt.rn.f64.u64"] = each([](uint64_t a) -> double { return static_cast<double>(a); });
  table["cvt.f64.f32"] = each([](float a) -> double { return a; });
  table["cvt.rn.f32.f64"] = each([](double a) -> float { return canonical(static_cast<float>(a)); });
  table["cvt.rzi.s32.f32"] = each([](float a) -> int32_t { return whole<int32_t>(a); });
  table["cvt.rzi.u32.f32"] = each([](float a) -> uint32_t { return whole<uint32_t>(a); });
  table["cvt.rzi.u64.f32"] = each([](float a) -> uint64_t { return whole<uint64_t>(a); });
  table["cvt.rzi.u64.f64"] = each([](double a) -> uint64_t { return whole<uint64_t>(a); });
}

template <class T>
void move(Warp& warp, const Instruction& in, uint32_t mask) {
  const auto same = [](T a) -> T { return a; };
  Elementwise<decltype(same), T, T>::execute(warp, in, mask);
}

// "mov": {a, b} has a in its lower half.
template <class Whole, class Half>
void pack(Warp& warp, const Instruction& in, uint32_t mask) {
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1u)
      warp.at<Whole>(in.slots[0])[lane] = static_cast<Whole>(
          warp.at<Half>(in.slots[1])[lane] | static_cast<Whole>(warp.at<Half>(in.slots[2])[lane]) << kBits<Half>);
}

template <class Whole, class Half>
void unpack(Warp& warp, const Instruction& in, uint32_t mask) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    const Whole value = warp.at<Whole>(in.slots[2])[lane];
    warp.at<Half>(in.slots[0])[lane] = static_cast<Half>(value);
    warp.at<Half>(in.slots[1])[lane] = static_cast<Half>(value >> kBits<Half>);
  }
}

template <class Whole, class Half>
void decode_move(Decoder& decoder) {
  decoder.expect_operands(2);
  const auto is_vector = [&](size_t i) { return decoder.operand(i).kind == Operand::Kind::kVector; };
  Instruction& in = decoder.instruction;
  in.execute = is_vector(0) ? unpack<Whole, Half> : is_vector(1) ? pack<Whole, Half> : move<Whole>;
  for (const std::string& name : decoder.names(0, is_vector(0) ? 2 : 1))
    decoder.writes(name, is_vector(0) ? kBits<Half> : kBits<Whole>);
  for (const std::string& name : decoder.names(1, is_vector(1) ? 2 : 1))
    decoder.reads(name, is_vector(1) ? kBits<Half> : kBits<Whole>);
}

inline void add_arithmetic(Opcodes& table) {
  add_integers<uint32_t>(table, "u32");
  add_integers<int32_t>(table, "s32");
  add_integers<uint64_t>(table, "u64");
  add_integers<int64_t>(table, "s64");
  add_floats<float>(table, "f32");
  add_floats<double>(table, "f64");
  add_bits<uint32_t>(table, "32");
  add_bits<uint64_t>(table, "64");
  add_conversions(table);
  table["neg.s32"] = each([](uint32_t a) -> uint32_t { return 0u - a; });
  table["mul.wide.u32"] = each([](uint32_t a, uint32_t b) -> uint64_t { return static_cast<uint64_t>(a) * b; });
  table["mul.wide.s32"] = each([](int32_t a, int32_t b) -> int64_t { return static_cast<int64_t>(a) * b; });
  table["mul.hi.s32"] = each([](int32_t a, int32_t b) -> int32_t {
    return static_cast<int32_t>(static_cast<int64_t>(a) * b >> 32);
  });
  table["mul.hi.u64"] = each([](uint64_t a, uint64_t b) -> uint64_t {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
  });
  table["max.f32"] = each([](float a, float b) -> float { return larger(a, b); });
  table["min.f32"] = each([](float a, float b) -> float { return smaller(a, b); });
  table["abs.f32"] = each([](float a) -> float { return std::fabs(a); });
  table["div.rn.f32"] = each([](float a, float b) -> float { return canonical(a / b); });
  table["rcp.rn.f32"] = each([](float a) -> float { return canonical(1.0f / a); });
  table["sqrt.rn.f32"] = each([](float a) -> float { return canonical(std::sqrt(a)); });
  table["ex2.approx.ftz.f32"] = each([](float a) -> float { return power_of_two(a); });
  table["rcp.approx.ftz.f32"] = each([](float a) -> float { return reciprocal(a); });
  table["rcp.approx.ftz.f64"] = each([](double a) -> double { return reciprocal_upper(a); });
  table["sub.rn.f16x2"] = each([](uint32_t a, uint32_t b) -> uint32_t { return in_both_halves(subtract, a, b); });
  table["fma.rn.f16x2"] = each([](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
    return in_both_halves(multiply_add, a, b, c);
  });
  table["prmt.b32"] = each([](uint32_t a, uint32_t b, uint32_t c) -> uint32_t { return permuted(a, b, c); });
  table["lop3.b32"] = each([](uint32_t a, uint32_t b, uint32_t c, uint32_t d) -> uint32_t {
    return looked_up(a, b, c, d);
  });
  table["and.pred"] = each([](bool a, bool b) -> bool { return a && b; });
  table["or.pred"] = each([](bool a, bool b) -> bool { return a || b; });
  table["not.pred"] = each([](bool a) -> bool { return !a; });
  table["mov.pred"] = each([](bool a) -> bool { return a; });
  table["mov.u16"] = each([](uint16_t a) -> uint16_t { return a; });
  for (const char* type : {"b32", "u32", "f32"}) table[std::string("mov.") + type] = decode_move<uint32_t, uint16_t>;
  for (const char* type : {"b64", "u64", "f64"}) table[std::string("mov.") + type] = decode_move<uint64_t, uint32_t>;
  // "cvta.to": a generic address of global memory is that address; there is none of shared memory here.
  table["cvta.to.global.u64"] = each([](uint64_t a) -> uint64_t { return a; });
}

}  // namespace ptx
