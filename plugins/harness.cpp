// Every kernel on the CPU, behind a C interface for tests.
#include <string>

#include "attention/harness.inc"
#include "embedding/harness.inc"
#include "fp16_matmul/harness.inc"
#include "include/contract.h"
#include "int4_matmul/harness.inc"
#include "int8_matmul/harness.inc"
#include "measure/harness.inc"
#include "norm/harness.inc"
#include "sampling/harness.inc"

namespace {

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

// What load_streamed(), load_vector() and copy_streamed_to_shared() have read in the last launch, each time.
int64_t edge_awq_streamed_bytes() { return fibers::state.streamed_bytes; }

// From here on launches count what load_global() reads and store_global() writes, each place once, and what
// load_vector() reads, each place once per block; or no longer do.
void edge_awq_count_traffic(int count) { fibers::state.count_traffic = count != 0; }
int64_t edge_awq_read_bytes() { return fibers::state.read_bytes; }
int64_t edge_awq_block_read_bytes() { return fibers::state.block_read_bytes; }
int64_t edge_awq_written_bytes() { return fibers::state.written_bytes; }

// From here on launches count bank conflicts, or no longer do.
void edge_awq_count_conflicts(int count) { fibers::state.count_conflicts = count != 0; }

// How often shared memory was read or written in the last launch beyond what the widths of the accesses ask for, and
// how often that is.
int64_t edge_awq_bank_conflicts() { return fibers::state.shared_wavefronts - fibers::state.fewest_wavefronts; }
int64_t edge_awq_shared_wavefronts() { return fibers::state.fewest_wavefronts; }

float edge_awq_float_from_half(uint16_t bits) { return edge_awq::float_from_half({bits}); }

uint16_t edge_awq_half_from_float(float value) { return edge_awq::half_from_float(value).bits; }

}  // extern "C"
