// The contract between exported graphs and this library: edge_awq/export/ops.py in C++. A test compares the two.
#pragma once

namespace edge_awq {

constexpr const char* kDomain = "edge_awq";
constexpr int kContractVersion = 2;  // grows with every change of an op's signature or meaning

// Names in the order of the ONNX node; unused places are null.
struct OpSignature {
  const char* name;
  const char* inputs[9];
  const char* outputs[3];
  const char* attributes[6];
};

constexpr OpSignature kOps[] = {
    {"Int4MatMul", {"x", "qweight", "scales", "zero_points"}, {"y"}, {"K", "N", "group_size"}},
    {"Int8MatMul", {"x", "qweight", "scales", "zero_points"}, {"y"}, {"K", "N", "group_size"}},
    {"CachedAttention",
     {"q", "k", "v", "past_key", "past_value", "past_length", "cos", "sin", "slopes"},
     {"y", "present_key", "present_value"},
     {"num_heads", "kv_num_heads", "head_size", "scale", "window", "softcap"}},
};

// How a weight matrix lies in memory. The kernels read the bytes of the weights file as they are, so there is one.
enum class WeightLayout {
  kRowMajor = 0,  // [N, K], 4-bit values two a byte along K with the low nibble first, each row from a byte of its own
};

}  // namespace edge_awq
