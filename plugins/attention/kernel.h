// CachedAttention as its callers see it: causal, rotary positions or ALiBi, cache in place. Decoding takes 1 to 8 new
// tokens in one launch, prefill (prefill.h) any number in two.
//
//   y = softmax(scale * q @ keys.T) @ values over the cache and the new tokens, as edge_awq/export/ops.py defines it
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value. Head h of q uses KV head h / (num_heads / kv_num_heads).
struct DecodeAttentionArguments {
  const Half* q;                // [tokens, num_heads * head_size], token_stride apart, not yet rotated
  const Half* k;                // [tokens, kv_num_heads * head_size], the same
  const Half* v;                // [tokens, kv_num_heads * head_size], the same
  void* key_cache;              // [kv_num_heads, capacity, head_size], cache.h; rows [past, past + tokens) are written
  void* value_cache;            // [kv_num_heads, capacity, head_size]; the same
  const int64_t* past_length;   // [1], read on the device, so that one CUDA graph serves every step
  const float* cosines;         // [capacity, rotary_size / 2]; null if rotary_size is 0
  const float* sines;           // [capacity, rotary_size / 2]; the same
  const float* slopes;          // [num_heads], ALiBi: slope * (key's position - query's) joins a score; or null
  Half* y;                      // [tokens, num_heads * head_size]
  float* partial;               // decoding: decode_attention_partial_floats() of them
  unsigned* finished;           // decoding: decode_attention_counters() of them, zero before and after each launch
  int tokens, num_heads, kv_num_heads, head_size, rotary_size, capacity;
  int q_stride, kv_stride;      // halves from one token to the next
  int window;                   // a query sees so many positions, itself included; 0: all
  int splits;                   // of the cache, over blocks; 1 for prefill
  float scale;
  float softcap;                // a score becomes softcap * tanh(score / softcap), before the bias; 0: as it is
  float* key_scales;            // [kv_num_heads, capacity], rows as those of key_cache; null if kv_bits is 16
  float* value_scales;          // [kv_num_heads, capacity]; the same
  int kv_bits;                  // of a cached key or value: 16, halves, or 8
};

constexpr int kMostHeadSize = 256;
constexpr int kMaxDecodeTokens = 8;  // of one launch; more are a prompt
constexpr int kQueryTile = 8;   // query rows (token and head) that a warp multiplies with its keys
constexpr int kMinWarps = 4;    // per block

// Query tiles per block: 9 hold the 71 query heads of the most lopsided model, with KV read once; heads beyond 128
// leave shared memory for fewer.
constexpr int kMaxQueryTiles = 9, kMaxWideQueryTiles = 4;

}  // namespace edge_awq
