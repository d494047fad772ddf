// Every kernel on the CPU, behind a C interface for tests: the launch is planned as for a GPU and run by fibers.h.
//
// Functions return 0, or 1 with the reason in `message`. `schedule` orders the threads, see fibers::Schedule.
#include <cstdio>
#include <string>

#include "attention/decode.cu"
#include "attention/plan.h"
#include "fp16_matmul/gemv.cu"
#include "fp16_matmul/plan.h"
#include "include/contract.h"
#include "int4_matmul/gemv.cu"
#include "int4_matmul/plan.h"
#include "int8_matmul/gemv.cu"
#include "int8_matmul/plan.h"
#include "measure/plan.h"
#include "measure/read.cu"
#include "norm/norm.cu"
#include "norm/plan.h"
#include "sampling/argmax.cu"
#include "sampling/plan.h"

namespace {

struct Message {
  char* text;
  size_t size;
};

int fail(Message message, const std::string& reason) {
  std::snprintf(message.text, message.size, "%s", reason.c_str());
  return 1;
}

template <class Arguments>
struct Kernel {
  const char* name;
  void (*run)(Arguments);
};

template <class Arguments, size_t count>
int launch(const Kernel<Arguments> (&kernels)[count], const edge_awq::Launch& planned, const Arguments& arguments,
           unsigned schedule, Message message) {
  if (!planned.refusal.empty()) return fail(message, planned.refusal);
  for (const Kernel<Arguments>& kernel : kernels) {
    if (std::string(kernel.name) != planned.kernel) continue;
    const auto outcome = fibers::launch(planned.blocks, planned.threads, schedule, [&] { kernel.run(arguments); });
    if (outcome == fibers::Outcome::kFinished) return 0;
    return fail(message, std::string(kernel.name) + ": threads wait for others that never come");
  }
  return fail(message, std::string("no kernel is called ") + planned.kernel);
}

// Appends the names to a list that ends where the nulls begin: "(x, y)".
template <size_t count>
void append(std::string& text, const char* const (&names)[count]) {
  const char* separator = "(";
  for (const char* name : names) {
    if (!name) break;
    text += separator;
    text += name;
    separator = ", ";
  }
  text += ")";
}

}  // namespace

extern "C" {

// include/contract.h as text, a line for the domain and its version, then one per op.
const char* edge_awq_contract() {
  static const std::string text = [] {
    std::string lines = edge_awq::kDomain + (" " + std::to_string(edge_awq::kContractVersion)) + "\n";
    for (const edge_awq::OpSignature& op : edge_awq::kOps) {
      lines += op.name;
      append(lines, op.inputs);
      append(lines, op.outputs);
      append(lines, op.attributes);
      lines += "\n";
    }
    return lines;
  }();
  return text.c_str();
}

// What load_streamed() has read in the last launch.
int64_t edge_awq_streamed_bytes() { return fibers::state.streamed_bytes; }

float edge_awq_float_from_half(uint16_t bits) { return edge_awq::float_from_half({bits}); }

uint16_t edge_awq_half_from_float(float value) { return edge_awq::half_from_float(value).bits; }

int edge_awq_decode_attention(const edge_awq::DecodeAttentionArguments* arguments, unsigned schedule, char* message,
                              size_t size) {
  static const Kernel<edge_awq::DecodeAttentionArguments> kernels[] = {
      {"decode_attention_64", decode_attention_64},   {"decode_attention_80", decode_attention_80},
      {"decode_attention_96", decode_attention_96},   {"decode_attention_112", decode_attention_112},
      {"decode_attention_128", decode_attention_128}, {"decode_attention_256", decode_attention_256},
  };
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

int64_t edge_awq_decode_attention_partial_floats(const edge_awq::DecodeAttentionArguments* arguments) {
  return edge_awq::decode_attention_partial_floats(*arguments);
}

int edge_awq_decode_attention_counters(const edge_awq::DecodeAttentionArguments* arguments) {
  return edge_awq::decode_attention_counters(*arguments);
}

int edge_awq_rms_norm(const edge_awq::NormArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::NormArguments> kernels[] = {{"rms_norm", rms_norm}};
  return launch(kernels, plan_rms_norm(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_layer_norm(const edge_awq::NormArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::NormArguments> kernels[] = {{"layer_norm", layer_norm}};
  return launch(kernels, plan_layer_norm(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_argmax(const edge_awq::ArgmaxArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::ArgmaxArguments> kernels[] = {{"argmax", argmax}};
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_read(const edge_awq::ReadArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::ReadArguments> kernels[] = {{"read_sum", read_sum}};
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_fp16_gemv(const edge_awq::Fp16GemvArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::Fp16GemvArguments> kernels[] = {{"fp16_gemv", fp16_gemv}};
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_int4_gemv(const edge_awq::Int4GemvArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::Int4GemvArguments> kernels[] = {
      {"int4_gemv_g128", int4_gemv_g128},
      {"int4_gemv_g64_rows4", int4_gemv_g64_rows4},
      {"int4_gemv_g64_rows8", int4_gemv_g64_rows8},
  };
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

int edge_awq_int8_gemv(const edge_awq::Int8GemvArguments* arguments, unsigned schedule, char* message, size_t size) {
  static const Kernel<edge_awq::Int8GemvArguments> kernels[] = {{"int8_gemv", int8_gemv}};
  return launch(kernels, plan(*arguments), *arguments, schedule, {message, size});
}

}  // extern "C"
