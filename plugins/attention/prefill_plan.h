// How a prefill attention is launched, append first, or why it is refused. Host code, without CUDA.
#pragma once

#include "plan.h"
#include "prefill.h"

namespace edge_awq {

// The PrefillShapes of a head size as their launches see them: for a cache of halves, then of bytes.
struct PrefillKernels {
  int head_size;
  const char* names[2];
  int shared_bytes[2];
};

constexpr PrefillKernels kPrefillKernels[] = {
    {64, {"prefill_attention_64", "prefill_attention_64_kv8"},
     {PrefillShape<64>::kSharedBytes, PrefillShape<64, true>::kSharedBytes}},
    {80, {"prefill_attention_80", "prefill_attention_80_kv8"},
     {PrefillShape<80>::kSharedBytes, PrefillShape<80, true>::kSharedBytes}},
    {96, {"prefill_attention_96", "prefill_attention_96_kv8"},
     {PrefillShape<96>::kSharedBytes, PrefillShape<96, true>::kSharedBytes}},
    {112, {"prefill_attention_112", "prefill_attention_112_kv8"},
     {PrefillShape<112>::kSharedBytes, PrefillShape<112, true>::kSharedBytes}},
    {128, {"prefill_attention_128", "prefill_attention_128_kv8"},
     {PrefillShape<128>::kSharedBytes, PrefillShape<128, true>::kSharedBytes}},
    {256, {"prefill_attention_256", "prefill_attention_256_kv8"},
     {PrefillShape<256>::kSharedBytes, PrefillShape<256, true>::kSharedBytes}},
};

inline std::string prefill_refusal(const DecodeAttentionArguments& a) {
  if (a.tokens < 1) return refusal("tokens = %d", a.tokens);
  if (a.splits != 1) return refusal("splits = %d, but prefill does not split the cache", a.splits);
  return attention_refusal(a);
}

// The first launch: the new tokens' keys and values join the cache, whatever the head size.
inline Launch plan_append(const DecodeAttentionArguments& a) {
  if (const std::string reason = prefill_refusal(a); !reason.empty()) return {nullptr, 0, 0, reason};
  return {a.kv_bits == 8 ? "append_kv8" : "append_kv", static_cast<unsigned>(a.tokens), kAppendThreads, ""};
}

// The second launch: attention over the cache, which holds the new tokens by then.
inline Launch plan_prefill(const DecodeAttentionArguments& a) {
  if (const std::string reason = prefill_refusal(a); !reason.empty()) return {nullptr, 0, 0, reason};
  if (!is_aligned(a.y)) return refused("y at %p is not aligned to 16 bytes", a.y);
  const int64_t rows = static_cast<int64_t>(a.tokens) * (a.num_heads / a.kv_num_heads);
  const int64_t blocks = ((rows - 1) / kPrefillRows + 1) * a.kv_num_heads;
  if (rows > 0x7fffffff - kPrefillRows || blocks > 0x7fffffff)
    return refused("tokens = %d of %d heads are more than one launch computes", a.tokens, a.num_heads);
  const bool is_bytes = a.kv_bits == 8;
  for (const PrefillKernels& kernels : kPrefillKernels)
    if (kernels.head_size == a.head_size)
      return {kernels.names[is_bytes], static_cast<unsigned>(blocks), kPrefillThreads, "",
              static_cast<unsigned>(kernels.shared_bytes[is_bytes])};
  return refused("head_size = %d, not 64, 80, 96, 112, 128 or 256", a.head_size);
}

}  // namespace edge_awq
