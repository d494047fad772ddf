// CachedAttention as an op: q, k, v (or qkv), past_key, past_value[, past_key_scale, past_value_scale], past_length,
// cos, sin[, slopes] -> y, present_key, present_value[, present_key_scale, present_value_scale]. The cache is
// overwritten in place: present_* are past_*'s memory. Up to 8 tokens are decoded in one launch, more are a prompt and
// take two.
#include <algorithm>

#include "../library/launch.h"
#include "../library/modules.h"
#include "../library/ops.h"
#include "prefill_plan.h"

namespace edge_awq {
namespace {

// q, k, v fp16 [1, tokens, heads * head_size], or with packed_qkv one tensor [1, tokens, all heads * head_size];
// past_key, past_value fp16 [1, kv_num_heads, capacity, head_size], or if kv_bits is 8 bytes and, besides,
// past_key_scale, past_value_scale fp32 [1, kv_num_heads, capacity] (cache.h); past_length int64 [1]; cos, sin fp32
// [capacity or more, half], half 0 where nothing is rotated; slopes fp32 [num_heads], unless has_slopes is 0: then there
// is no ALiBi, and the plain kernels run where there is no soft-cap either; y fp16 [1, tokens, num_heads * head_size].
class CachedAttentionOp final : public Op {
 public:
  // The order of attributes().
  enum Value { kNumHeads, kKvNumHeads, kHeadSize, kScale, kWindow, kSoftcap, kPackedQkv, kHasSlopes, kKvBits };

  static std::vector<Attribute> attributes() {
    return {{"num_heads"}, {"kv_num_heads"}, {"head_size"}, {"scale", true}, {"window"},
            {"softcap", true}, {"packed_qkv", false, false}, {"has_slopes", false, false, 1},
            {"kv_bits", false, false, 16}};
  }

  const char* name() const override { return "CachedAttention"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<CachedAttentionOp>(*this); }

  std::vector<InputSpec> inputs() const override {
    std::vector<InputSpec> all = {{is_packed() ? "qkv" : "q", Type::kFloat16}};
    if (!is_packed()) all.insert(all.end(), {{"k", Type::kFloat16}, {"v", Type::kFloat16}});
    all.insert(all.end(), {{"past_key", cache_type()}, {"past_value", cache_type()}});
    if (is_scaled()) all.insert(all.end(), {{"past_key_scale", Type::kFloat32}, {"past_value_scale", Type::kFloat32}});
    all.insert(all.end(), {{"past_length", Type::kInt64}, {"cos", Type::kFloat32}, {"sin", Type::kFloat32}});
    if (has_slopes()) all.push_back({"slopes", Type::kFloat32});
    return all;
  }

  std::vector<OutputSpec> outputs() const override {
    const int key = cache_input();
    std::vector<OutputSpec> all = {{"y", Type::kFloat16, 0, is_packed() ? q_size() : 0},
                                   {"present_key", cache_type(), key, 0, key},
                                   {"present_value", cache_type(), key + 1, 0, key + 1}};
    if (is_scaled())
      all.insert(all.end(), {{"present_key_scale", Type::kFloat32, key + 2, 0, key + 2},
                             {"present_value_scale", Type::kFloat32, key + 3, 0, key + 3}});
    return all;
  }

  std::string check() const override { return refusal_of(shaped(1, 1, 0)); }

  std::string check(const Shape* shapes) const override {
    const int64_t kv_size = values[kKvNumHeads] * values[kHeadSize];
    const int64_t widths[] = {is_packed() ? q_size() + 2 * kv_size : q_size(), kv_size, kv_size};
    for (int i = 0; i < cache_input(); ++i)
      if (shapes[i].rank != 3 || !is_size(shapes[i].dims[0], 1) || !is_size(shapes[i].last(), widths[i]))
        return mismatch(inputs()[i].name, shapes[i], "[1, tokens, %lld]", static_cast<long long>(widths[i]));
    const Shape* const cache = shapes + cache_input();
    for (int i = 0; i < 2; ++i)
      if (cache[i].rank != 4 || !is_size(cache[i].dims[0], 1) || !is_size(cache[i].dims[1], integer(kKvNumHeads)) ||
          !is_size(cache[i].dims[3], integer(kHeadSize)) || cache[i].dims[2] != cache[0].dims[2])
        return mismatch(i ? "past_value" : "past_key", cache[i], "[1, %d, capacity, %d]", integer(kKvNumHeads),
                        integer(kHeadSize));
    const long long capacity = static_cast<long long>(cache[0].dims[2]);
    for (int i = 2; i < cache_inputs(); ++i)
      if (cache[i].rank != 3 || !is_size(cache[i].dims[0], 1) || !is_size(cache[i].dims[1], integer(kKvNumHeads)) ||
          cache[i].dims[2] != capacity)
        return mismatch(i == 2 ? "past_key_scale" : "past_value_scale", cache[i], "[1, %d, %lld]", integer(kKvNumHeads),
                        capacity);
    const Shape* const tables = shapes + length_input() + 1;
    for (int i = 0; i < 2; ++i)
      if (tables[i].rank != 2 || tables[i].dims[1] != tables[0].dims[1] ||
          (tables[i].dims[0] > 0 && tables[i].dims[0] < capacity))
        return mismatch(i ? "sin" : "cos", tables[i], "[%lld or more, rotary_size / 2]", capacity);
    if (has_slopes() && (tables[2].rank != 1 || !is_size(tables[2].dims[0], integer(kNumHeads))))
      return mismatch("slopes", tables[2], "[%d]", integer(kNumHeads));
    const bool is_known = shapes[0].dims[1] > 0 && capacity > 0 && tables[0].dims[1] >= 0;
    return is_known ? refusal_of(shaped(shapes)) : "";
  }

  size_t workspace_bytes(const Shape* shapes) const override {
    int64_t floats = 0;  // fewer tokens may be split more, and in another power mode; a prompt needs none
    for (const int multiprocessors : device_or_any().all_multiprocessors())
      for (int tokens = 1; tokens <= most_decoded(shapes); ++tokens) {
        const DecodeAttentionArguments a = split(shaped(tokens, capacity(shapes), 0), multiprocessors);
        floats = std::max(floats, decode_attention_partial_floats(a));
      }
    return floats * sizeof(float);
  }

  size_t zeroed_bytes(const Shape* shapes) const override {
    return decode_attention_counters(shaped(most_decoded(shapes), capacity(shapes), 0)) * sizeof(unsigned);
  }

 protected:
  std::string launch(const Call& call) const override {
    const int key = cache_input(), length = length_input();
    for (int i = 0; i < cache_inputs(); ++i)
      if (call.inputs[key + i] != call.outputs[1 + i])
        return std::string(outputs()[1 + i].name) + " is not the memory of " + inputs()[key + i].name +
               ": bind both to one address";
    DecodeAttentionArguments a = shaped(call.shapes);
    a.q = static_cast<const Half*>(call.inputs[0]);
    const int kv_size = integer(kKvNumHeads) * integer(kHeadSize);
    a.k = is_packed() ? a.q + q_size() : static_cast<const Half*>(call.inputs[1]);
    a.v = is_packed() ? a.k + kv_size : static_cast<const Half*>(call.inputs[2]);
    a.q_stride = q_size() + (is_packed() ? 2 * kv_size : 0);
    a.kv_stride = is_packed() ? a.q_stride : kv_size;
    a.key_cache = call.outputs[1];
    a.value_cache = call.outputs[2];
    a.key_scales = is_scaled() ? static_cast<float*>(call.outputs[3]) : nullptr;
    a.value_scales = is_scaled() ? static_cast<float*>(call.outputs[4]) : nullptr;
    a.past_length = static_cast<const int64_t*>(call.inputs[length]);
    a.cosines = static_cast<const float*>(call.inputs[length + 1]);
    a.sines = static_cast<const float*>(call.inputs[length + 2]);
    a.slopes = has_slopes() ? static_cast<const float*>(call.inputs[length + 3]) : nullptr;
    a.y = static_cast<Half*>(call.outputs[0]);
    if (a.tokens > kMaxDecodeTokens) return launch_prompt(a, call.stream);
    a = split(a, device_or_any().multiprocessors);
    a.partial = static_cast<float*>(call.workspace);
    a.finished = zeroed_.get();
    return edge_awq::launch(plan(a), a, call.stream);
  }

 private:
  // Both launches or, if one is refused, neither: the cache stays as it was.
  static std::string launch_prompt(const DecodeAttentionArguments& a, void* stream) {
    const Launch attention = plan_prefill(a);
    if (!attention.refusal.empty()) return attention.refusal;
    std::string reason = edge_awq::launch(plan_append(a), a, stream);
    return reason.empty() ? edge_awq::launch(attention, a, stream) : reason;
  }

  // Why there would be no launch if all tensors were where they should be.
  static std::string refusal_of(DecodeAttentionArguments a) {
    a.key_cache = a.value_cache = a.y = reinterpret_cast<Half*>(16);
    a.key_scales = a.value_scales = reinterpret_cast<float*>(16);
    a.cosines = a.sines = reinterpret_cast<const float*>(16);
    return (a.tokens > kMaxDecodeTokens ? plan_prefill(a) : plan(a)).refusal;
  }

  int integer(Value value) const { return static_cast<int>(values[value]); }
  bool is_packed() const { return values[kPackedQkv] != 0; }
  bool has_slopes() const { return values[kHasSlopes] != 0; }
  bool is_scaled() const { return values[kKvBits] == 8; }
  Type cache_type() const { return is_scaled() ? Type::kInt8 : Type::kFloat16; }
  int q_size() const { return integer(kNumHeads) * integer(kHeadSize); }
  int cache_input() const { return is_packed() ? 1 : 3; }
  int cache_inputs() const { return is_scaled() ? 4 : 2; }
  int length_input() const { return cache_input() + cache_inputs(); }
  int capacity(const Shape* shapes) const { return static_cast<int>(shapes[cache_input()].dims[2]); }

  // Up to so many of the call's tokens there may be in a call that needs memory.
  static int most_decoded(const Shape* shapes) {
    return static_cast<int>(std::clamp<int64_t>(shapes[0].dims[1], 1, kMaxDecodeTokens));
  }

  DecodeAttentionArguments shaped(const Shape* shapes) const {
    return shaped(static_cast<int>(shapes[0].dims[1]), capacity(shapes),
                  static_cast<int>(2 * shapes[length_input() + 1].dims[1]));
  }

  DecodeAttentionArguments shaped(int tokens, int capacity, int rotary_size) const {
    DecodeAttentionArguments a{};
    a.tokens = tokens;
    a.num_heads = integer(kNumHeads);
    a.kv_num_heads = integer(kKvNumHeads);
    a.head_size = integer(kHeadSize);
    a.rotary_size = rotary_size;
    a.capacity = capacity;
    a.window = integer(kWindow);
    a.scale = static_cast<float>(values[kScale]);
    a.softcap = static_cast<float>(values[kSoftcap]);
    a.kv_bits = integer(kKvBits);
    a.splits = 1;
    return a;
  }

  // With the splits that suit a full cache.
  static DecodeAttentionArguments split(DecodeAttentionArguments a, int multiprocessors) {
    a.splits = decode_attention_splits(a, multiprocessors, a.capacity);
    return a;
  }
};

}  // namespace

OpType cached_attention_op() { return op_type<CachedAttentionOp>("CachedAttention"); }

}  // namespace edge_awq
