// A block copies one token's row of the embedding, unpacked to halves; or, without tokens, a row of a matrix.
//
// The bound it chases: latency, of the id and then of the row: a row of 4096 is 2 to 8 KiB. A thread has every 256th
// vector of 8 values; as the row of W in README.md they are 4, 8 or 16 bytes in the table, and 16 in y.
//
// A value is (q - zero) * scale in fp32, rounded once.
#include "../common/row_norm.h"
#include "kernel.h"

namespace edge_awq {

// The packed values of one vector.
template <int kBits>
struct alignas(kBits) PackedVector {
  uint32_t word[kBits / 4];
};

template <int kBits>
struct Embedding {
  using Packed = PackedVector<kBits>;

  const EmbeddingArguments& a;
  const int vectors = a.size / kVectorHalves;

  __device__ __forceinline__ int64_t id() const {
    if (!a.ids) return blockIdx.x;
    if (a.id_bytes == 8) return static_cast<const int64_t*>(a.ids)[blockIdx.x];
    return static_cast<const int*>(a.ids)[blockIdx.x];
  }

  __device__ __forceinline__ Vector unpack(Packed packed, int64_t row, int vector) const {
    if constexpr (kBits == 16) {
      return {packed.word[0], packed.word[1], packed.word[2], packed.word[3]};
    } else {
      constexpr int kInWord = 32 / kBits;  // values
      const int groups = (a.size + a.group_size - 1) / a.group_size, group = vector * kVectorHalves / a.group_size;
      const int64_t zero_row = row * (kBits == 4 ? (groups + 1) / 2 : groups);
      const int zeros = load_constant(a.zero_points + zero_row + (kBits == 4 ? group / 2 : group));
      const int zero = kBits == 4 ? zeros >> group % 2 * 4 & 15 : zeros;
      const float scale = to_float(load_constant(a.scales + row * groups + group));
      float values[kVectorHalves];
      for (int i = 0; i < kVectorHalves; ++i) {
        const int q = static_cast<int>(packed.word[i / kInWord] >> i % kInWord * kBits & ((1u << kBits) - 1));
        values[i] = static_cast<float>(q - zero) * scale;
      }
      return pack_halves(values);
    }
  }

  __device__ __forceinline__ void run() const {
    const int64_t row = id();
    const bool exists = row >= 0 && row < a.vocabulary;
    const Packed* const source = static_cast<const Packed*>(a.table) + (exists ? row : 0) * vectors;
    Vector* const y = reinterpret_cast<Vector*>(a.y) + static_cast<int64_t>(blockIdx.x) * vectors;
    for (int vector = threadIdx.x; vector < vectors; vector += kEmbeddingThreads) {
      constexpr HalfPair kNaNs = 0x7fff7fffu;
      y[vector] = exists ? unpack(source[vector], row, vector) : Vector{kNaNs, kNaNs, kNaNs, kNaNs};
    }
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kEmbeddingThreads)
embedding_fp16(const edge_awq::EmbeddingArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Embedding<16>{a}.run();
  edge_awq::let_next_kernel_start();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kEmbeddingThreads)
embedding_int4(const edge_awq::EmbeddingArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Embedding<4>{a}.run();
  edge_awq::let_next_kernel_start();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kEmbeddingThreads)
embedding_int8(const edge_awq::EmbeddingArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Embedding<8>{a}.run();
  edge_awq::let_next_kernel_start();
}
