// How a decode attention is launched, and what memory it needs, or why it is refused. Host code, without CUDA.
#pragma once

#include <algorithm>
#include <cmath>

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

struct DecodeKernels {
  int head_size;
  const char* names[2][2];  // of a cache of halves, then of bytes; plain, then with slopes or a soft-cap
};

constexpr DecodeKernels kDecodeKernels[] = {
    {64, {{"decode_attention_64", "decode_attention_64_adjusted"},
      {"decode_attention_64_kv8", "decode_attention_64_adjusted_kv8"}}},
    {80, {{"decode_attention_80", "decode_attention_80_adjusted"},
      {"decode_attention_80_kv8", "decode_attention_80_adjusted_kv8"}}},
    {96, {{"decode_attention_96", "decode_attention_96_adjusted"},
      {"decode_attention_96_kv8", "decode_attention_96_adjusted_kv8"}}},
    {112, {{"decode_attention_112", "decode_attention_112_adjusted"},
      {"decode_attention_112_kv8", "decode_attention_112_adjusted_kv8"}}},
    {128, {{"decode_attention_128", "decode_attention_128_adjusted"},
      {"decode_attention_128_kv8", "decode_attention_128_adjusted_kv8"}}},
    {256, {{"decode_attention_256", "decode_attention_256_adjusted"},
      {"decode_attention_256_kv8", "decode_attention_256_adjusted_kv8"}}},
};

inline const char* decode_attention_kernel(const DecodeAttentionArguments& a) {
  const bool is_adjusted = a.slopes || a.softcap != 0.0f;
  for (const DecodeKernels& kernels : kDecodeKernels)
    if (kernels.head_size == a.head_size) return kernels.names[a.kv_bits == 8][is_adjusted];
  return nullptr;
}

// The most blocks of one split's size that a multiprocessor holds at once, by their registers.
constexpr int kResidentBlocks = 2;
constexpr int kMaxSplits = 64;

// Into how many splits to deal a cache of up to `length` positions, on a GPU with so many multiprocessors: as many as
// are resident at once, so that there is no second wave, but no more than pay off. Of a KV head with `rows` query rows
// in `tiles` tiles, a block reads tiles * length / splits keys, a tile at a time, and the block that merges reads
// splits * rows partial results as wide as a key and value of 16 bits; the sum is least at
// splits^2 = tiles * length / rows * kv_bits / 16.
inline int decode_attention_splits(const DecodeAttentionArguments& a, int multiprocessors, int length) {
  const QueryTiles queries(a);
  const int rows = std::min(a.tokens * (a.num_heads / a.kv_num_heads), queries.per_group * kQueryTile);
  const int slices = std::max(1, kMinWarps / queries.per_group);
  const int resident = kResidentBlocks * multiprocessors / (a.kv_num_heads * queries.groups);
  const int useful = (length - 1) / (16 * slices) + 1;  // each warp has a tile of keys
  const double keys = static_cast<double>(queries.per_group) * length * a.kv_bits / 16;
  const int balanced = static_cast<int>(std::sqrt(keys / rows));
  return std::clamp(std::min({resident, useful, balanced}), 1, kMaxSplits);
}

// Why neither decoding nor prefill computes this, or an empty text.
inline std::string attention_refusal(const DecodeAttentionArguments& a) {
  if (a.kv_num_heads < 1 || a.num_heads < 1 || a.num_heads % a.kv_num_heads != 0)
    return refusal("num_heads = %d, which kv_num_heads = %d do not divide", a.num_heads, a.kv_num_heads);
  if (a.rotary_size < 0 || a.rotary_size > a.head_size || a.rotary_size % 2 != 0)
    return refusal("rotary_size = %d, not an even number up to head_size = %d", a.rotary_size, a.head_size);
  if (a.capacity < a.tokens) return refusal("capacity = %d, less than tokens = %d", a.capacity, a.tokens);
  if (a.kv_bits != 16 && a.kv_bits != 8) return refusal("kv_bits = %d, not 16 or 8", a.kv_bits);
  if (a.window < 0) return refusal("window = %d", a.window);
  if (!(a.softcap >= 0.0f) || std::isinf(a.softcap)) return refusal("softcap = %g", static_cast<double>(a.softcap));
  if (a.rotary_size > 0 && (!a.cosines || !a.sines))
    return refusal("rotary_size = %d without tables of cosines and sines", a.rotary_size);
  if (!is_aligned(a.key_cache) || !is_aligned(a.value_cache))
    return refusal("the caches at %p and %p are not aligned to 16 bytes", a.key_cache, a.value_cache);
  if (a.kv_bits == 8 && (!a.key_scales || !a.value_scales)) return refusal("kv_bits = 8 without scales");
  return "";
}

inline Launch plan(const DecodeAttentionArguments& a) {
  const char* kernel = decode_attention_kernel(a);
  if (!kernel) return refused("head_size = %d, not 64, 80, 96, 112, 128 or 256", a.head_size);
  if (a.tokens < 1 || a.tokens > kMaxDecodeTokens)
    return refused("tokens = %d, not 1 to %d", a.tokens, kMaxDecodeTokens);
  if (const std::string reason = attention_refusal(a); !reason.empty()) return {nullptr, 0, 0, reason};
  if (a.splits < 1 || a.splits > kMaxSplits)
    return refused("splits = %d, not 1 to %d", a.splits, kMaxSplits);
  const QueryTiles queries(a);
  const unsigned blocks = static_cast<unsigned>(a.kv_num_heads * queries.groups * a.splits);
  return {kernel, blocks, static_cast<unsigned>(32 * std::max(kMinWarps, queries.per_group)), ""};
}

}  // namespace edge_awq
