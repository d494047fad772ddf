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
};

template <class... Values>
Launch refused(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return {nullptr, 0, 0, text};
}

inline Launch refused(const char* text) { return {nullptr, 0, 0, text}; }

// Whether a kernel may read 16 bytes at once from here.
inline bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace edge_awq
