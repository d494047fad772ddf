// Every plan by name, for callers that have a kernel's arguments as bytes: a new kernel adds its line here.
#pragma once

#include "../attention/prefill_plan.h"
#include "../embedding/plan.h"
#include "../fp16_matmul/plan.h"
#include "../int4_matmul/plan.h"
#include "../int8_matmul/plan.h"
#include "../measure/plan.h"
#include "../norm/plan.h"
#include "../sampling/plan.h"

namespace edge_awq {

struct Plan {
  const char* name;
  size_t argument_bytes;
  Launch (*make)(const void* arguments);
};

template <class Arguments, Launch (*function)(const Arguments&)>
constexpr Plan plan_entry(const char* name) {
  return {name, sizeof(Arguments),
          [](const void* arguments) { return function(*static_cast<const Arguments*>(arguments)); }};
}

constexpr Plan kPlans[] = {
    plan_entry<Int4MatMulArguments, plan>("int4_matmul"),
    plan_entry<Int8MatMulArguments, plan>("int8_matmul"),
    plan_entry<Fp16MatMulArguments, plan>("fp16_matmul"),
    plan_entry<DecodeAttentionArguments, plan>("decode_attention"),
    plan_entry<DecodeAttentionArguments, plan_append>("append_kv"),
    plan_entry<DecodeAttentionArguments, plan_prefill>("prefill_attention"),
    plan_entry<EmbeddingArguments, plan>("embedding"),
    plan_entry<NormArguments, plan_rms_norm>("rms_norm"),
    plan_entry<NormArguments, plan_layer_norm>("layer_norm"),
    plan_entry<ArgmaxArguments, plan>("argmax"),
    plan_entry<SampleArguments, plan>("sample"),
    plan_entry<ReadArguments, plan>("read"),
};

}  // namespace edge_awq
