// A launch as plain data. Host code, without CUDA.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace edge_awq {

struct Launch {
  const char* kernel = nullptr;  // the entry point's name
  unsigned blocks = 0, threads = 0;
  std::string refusal;  // why there is no launch, with the values at fault; empty if there is one
  unsigned shared_bytes = 0;  // of dynamic shared memory, per block
  bool is_dependent = true;  // may begin while the kernel before ends: what it asks for before that does not depend on it
};

template <class... Values>
std::string refusal(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

inline std::string refusal(const char* text) { return text; }

template <class... Values>
Launch refused(const char* format, Values... values) {
  return {nullptr, 0, 0, refusal(format, values...)};
}

// Whether a kernel may read 16 bytes at once from here.
inline bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace edge_awq
