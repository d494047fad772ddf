// TokenEmbedding as an op: tokens int64 [..] and a table -> y fp16 [.., size], the tokens' rows of it.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

// The table is weight fp16 [vocabulary, size]; with bits 4 or 8 qweight, scales and zero_points as those of a matmul
// of as many outputs. A token outside the vocabulary gives a row of NaNs.
class TokenEmbeddingOp final : public Op {
 public:
  enum Value { kVocabulary, kSize, kBits, kGroupSize };  // the order of attributes()
  using Int4 = GroupedFormat<EmbeddingArguments, 4>;
  using Int8 = GroupedFormat<EmbeddingArguments, 8>;

  static std::vector<Attribute> attributes() {
    return {{"vocabulary"}, {"size"}, {"bits", false, false, 16}, {"group_size", false, false, 128}};
  }

  const char* name() const override { return "TokenEmbedding"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<TokenEmbeddingOp>(*this); }

  std::vector<InputSpec> inputs() const override {
    std::vector<InputSpec> all = {{"tokens", Type::kInt64}};
    if (!is_packed()) all.push_back({"weight", Type::kFloat16});
    if (is_packed())
      for (const InputSpec& input : Int4::weight_inputs()) all.push_back(input);
    return all;
  }

  std::vector<OutputSpec> outputs() const override {
    OutputSpec y{"y", Type::kFloat16, 0, integer(kSize)};
    y.adds_last = true;
    return {y};
  }

  std::string check() const override {
    const void* const somewhere[] = {some_address<void>(), some_address<void>(), some_address<void>()};
    EmbeddingArguments a = shaped(1, somewhere);
    a.ids = some_address<void>();
    a.y = some_address<Half>();
    return plan(a).refusal;
  }

  std::string check(const Shape* shapes) const override {
    if (shapes[0].rank < 1 || shapes[0].rank > 7) return mismatch("tokens", shapes[0], "[.., rows]");
    const int N = integer(kVocabulary), K = integer(kSize);
    if (integer(kBits) == 4) return Int4::check_weight(shapes + 1, N, K, integer(kGroupSize));
    if (integer(kBits) == 8) return Int8::check_weight(shapes + 1, N, K, integer(kGroupSize));
    const Shape& weight = shapes[1];
    return weight.rank == 2 && is_size(weight.dims[0], N) && is_size(weight.dims[1], K)
               ? ""
               : mismatch("weight", weight, "[%d, %d]", N, K);
  }

 protected:
  std::string launch(const Call& call) const override {
    EmbeddingArguments a = shaped(static_cast<int>(call.shapes[0].elements()), call.inputs + 1);
    a.ids = call.inputs[0];
    a.y = static_cast<Half*>(call.outputs[0]);
    return edge_awq::launch(plan(a), a, call.stream);
  }

 private:
  int integer(Value value) const { return static_cast<int>(values[value]); }
  bool is_packed() const { return integer(kBits) != 16; }

  EmbeddingArguments shaped(int rows, const void* const* table) const {
    EmbeddingArguments a{};
    a.table = table[0];
    if (is_packed()) a.scales = static_cast<const Half*>(table[1]);
    if (is_packed()) a.zero_points = static_cast<const uint8_t*>(table[2]);
    a.rows = rows;
    a.size = integer(kSize);
    a.vocabulary = integer(kVocabulary);
    a.bits = integer(kBits);
    a.group_size = integer(kGroupSize);
    a.id_bytes = sizeof(int64_t);
    return a;
  }
};

}  // namespace

OpType token_embedding_op() { return op_type<TokenEmbeddingOp>("TokenEmbedding"); }

}  // namespace edge_awq
