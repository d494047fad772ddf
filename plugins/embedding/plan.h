// Which kernel gathers an embedding's rows, or why none does. Host code, without CUDA.
#pragma once

#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const EmbeddingArguments& a) {
  if (a.rows < 1) return refused("rows = %d", a.rows);
  if (a.size < 64 || a.size % 64 != 0) return refused("size = %d is not a multiple of 64", a.size);
  if (a.vocabulary < 1) return refused("vocabulary = %d", a.vocabulary);
  if (a.bits != 4 && a.bits != 8 && a.bits != 16) return refused("bits = %d, not 4, 8 or 16", a.bits);
  if (!a.ids && a.rows != a.vocabulary) return refused("rows = %d of %d without ids", a.rows, a.vocabulary);
  if (a.ids && a.id_bytes != 4 && a.id_bytes != 8) return refused("id_bytes = %d, not 4 or 8", a.id_bytes);
  if (!a.table || !a.y) return refused("table or y is null");
  if (!is_aligned(a.table) || !is_aligned(a.y))
    return refused("table at %p or y at %p is not aligned to 16 bytes", a.table, static_cast<const void*>(a.y));
  const unsigned blocks = static_cast<unsigned>(a.rows);
  if (a.bits == 16) return {"embedding_fp16", blocks, kEmbeddingThreads, ""};
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (!a.scales || !a.zero_points) return refused("scales or zero_points is null");
  return {a.bits == 4 ? "embedding_int4" : "embedding_int8", blocks, kEmbeddingThreads, ""};
}

}  // namespace edge_awq
