// How a decode attention is launched, and what memory it needs, or why it is refused. Host code, without CUDA.
#pragma once

#include <algorithm>

#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

// How the query rows that share a KV head are dealt to blocks.
struct QueryTiles {
  int tiles, groups;  // tiles of kQueryTile rows in all; blocks they are dealt to
  int per_group;      // at most

  explicit QueryTiles(const DecodeAttentionArguments& a) {
    const int most = a.head_size <= 128 ? kMaxQueryTiles : kMaxWideQueryTiles;
    tiles = (a.tokens * (a.num_heads / a.kv_num_heads) + kQueryTile - 1) / kQueryTile;
    groups = (tiles + most - 1) / most;
    per_group = (tiles + groups - 1) / groups;
  }
};

inline int64_t decode_attention_partial_floats(const DecodeAttentionArguments& a) {
  return static_cast<int64_t>(a.splits) * a.tokens * a.num_heads * (a.head_size + 2);
}

inline int decode_attention_counters(const DecodeAttentionArguments& a) {
  return a.kv_num_heads * QueryTiles(a).groups;
}

inline const char* decode_attention_kernel(int head_size) {
  switch (head_size) {
    case 64: return "decode_attention_64";
    case 80: return "decode_attention_80";
    case 96: return "decode_attention_96";
    case 112: return "decode_attention_112";
    case 128: return "decode_attention_128";
    case 256: return "decode_attention_256";
    default: return nullptr;
  }
}

inline Launch plan(const DecodeAttentionArguments& a) {
  const char* kernel = decode_attention_kernel(a.head_size);
  if (!kernel) return refused("head_size = %d, not 64, 80, 96, 112, 128 or 256", a.head_size);
  if (a.tokens < 1 || a.tokens > 8) return refused("tokens = %d, not 1 to 8", a.tokens);
  if (a.kv_num_heads < 1 || a.num_heads < 1 || a.num_heads % a.kv_num_heads != 0)
    return refused("num_heads = %d, which kv_num_heads = %d do not divide", a.num_heads, a.kv_num_heads);
  if (a.rotary_size < 0 || a.rotary_size > a.head_size || a.rotary_size % 2 != 0)
    return refused("rotary_size = %d, not an even number up to head_size = %d", a.rotary_size, a.head_size);
  if (a.capacity < a.tokens) return refused("capacity = %d, less than tokens = %d", a.capacity, a.tokens);
  if (a.window < 0) return refused("window = %d", a.window);
  if (a.splits < 1 || a.splits > 64) return refused("splits = %d, not 1 to 64", a.splits);
  if (!is_aligned(a.key_cache) || !is_aligned(a.value_cache))
    return refused("the caches at %p and %p are not aligned to 16 bytes", a.key_cache, a.value_cache);
  const QueryTiles queries(a);
  const unsigned blocks = static_cast<unsigned>(a.kv_num_heads * queries.groups * a.splits);
  return {kernel, blocks, static_cast<unsigned>(32 * std::max(kMinWarps, queries.per_group)), ""};
}

}  // namespace edge_awq
