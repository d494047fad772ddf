// In what grid memory is read. Host code, without CUDA.
#pragma once

#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const ReadArguments& a) {
  if (a.blocks < 1) return refused("blocks = %d", a.blocks);
  if (a.vectors < 1) return refused("vectors = %lld", static_cast<long long>(a.vectors));
  if (!a.data || !a.sums) return refused("data or sums is null");
  if (!is_aligned(a.data)) return refused("data at %p is not aligned to 16 bytes", static_cast<const void*>(a.data));
  Launch planned{"read_sum", static_cast<unsigned>(a.blocks), kReadThreads, ""};
  planned.is_dependent = false;  // it waits for nothing
  return planned;
}

}  // namespace edge_awq
