// How a prefill attention is launched, append first, or why it is refused. Host code, without CUDA.
#pragma once

#include "plan.h"
#include "prefill.h"

namespace edge_awq {

// A PrefillShape as its launches see it.
struct PrefillKernel {
  int head_size;
  const char* name;
  int shared_bytes;
};

constexpr PrefillKernel kPrefillKernels[] = {
    {64, "prefill_attention_64", PrefillShape<64>::kSharedBytes},
    {80, "prefill_attention_80", PrefillShape<80>::kSharedBytes},
    {96, "prefill_attention_96", PrefillShape<96>::kSharedBytes},
    {112, "prefill_attention_112", PrefillShape<112>::kSharedBytes},
    {128, "prefill_attention_128", PrefillShape<128>::kSharedBytes},
    {256, "prefill_attention_256", PrefillShape<256>::kSharedBytes},
};

inline std::string prefill_refusal(const DecodeAttentionArguments& a) {
  if (a.tokens < 1) return refusal("tokens = %d", a.tokens);
  if (a.splits != 1) return refusal("splits = %d, but prefill does not split the cache", a.splits);
  return attention_refusal(a);
}

// The first launch: the new tokens' keys and values join the cache, whatever the head size.
inline Launch plan_append(const DecodeAttentionArguments& a) {
  if (const std::string reason = prefill_refusal(a); !reason.empty()) return {nullptr, 0, 0, reason};
  return {"append_kv", static_cast<unsigned>(a.tokens), kAppendThreads, ""};
}

// The second launch: attention over the cache, which holds the new tokens by then.
inline Launch plan_prefill(const DecodeAttentionArguments& a) {
  if (const std::string reason = prefill_refusal(a); !reason.empty()) return {nullptr, 0, 0, reason};
  if (!is_aligned(a.y)) return refused("y at %p is not aligned to 16 bytes", a.y);
  const int64_t rows = static_cast<int64_t>(a.tokens) * (a.num_heads / a.kv_num_heads);
  const int64_t blocks = ((rows - 1) / kPrefillRows + 1) * a.kv_num_heads;
  if (rows > 0x7fffffff - kPrefillRows || blocks > 0x7fffffff)
    return refused("tokens = %d of %d heads are more than one launch computes", a.tokens, a.num_heads);
  for (const PrefillKernel& kernel : kPrefillKernels)
    if (kernel.head_size == a.head_size)
      return {kernel.name, static_cast<unsigned>(blocks), kPrefillThreads, "",
              static_cast<unsigned>(kernel.shared_bytes)};
  return refused("head_size = %d, not 64, 80, 96, 112, 128 or 256", a.head_size);
}

}  // namespace edge_awq
