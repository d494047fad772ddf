// Draws each row's next token by temperature, top-k, top-p and min-p; edge_awq/runner/sampling.py has their meaning.
//
// The largest logit is found by `splits` blocks (argmax.h). The one that finishes last goes on, or is done if that is the
// token: so a greedy pass costs what argmax does, and needs no other kernel.
//
// The bound it chases: what one multiprocessor reads from L2 and computes. That block reads its row again and again:
// twice for each of top-k and top-p, once to draw; 128 k logits in fp32 are half a megabyte. How many tokens top-k keeps
// does not matter, and nothing is sorted.
//
// By the instructions of its loops (28 to 50 per logit where weights are added, half of that elsewhere) that is 25 us on
// an Orin at 1.3 GHz for 152 k logits without filters, 90 us with top-k and top-p: not measured. More blocks would need
// a launch for each reading, which greedy passes would have to make, too.
//
// What is kept are the tokens from some place on in this order, so each filter gives a place, and the last one counts:
//
//   63           32 31                0
//   |  logit's key | index           |     the larger, the larger the logit; of equal ones the last
//
// A key (find_key) is found by sums over 2048 bins: first of logits 1/64 apart from the largest down, which spreads a
// vocabulary over many; then of 11, 11 and 10 bits of the keys in the bin where the sum is reached. These few are kept
// in shared memory, if they fit.
//
// A weight exp((logit - largest) / temperature) is a whole number, 2^43 for the best: sums have one value, whoever adds
// first. The token is the first with more than r below and at it, of all that is kept, in the order of indices
// (find_index): r is a random fraction of their sum. A block's warps add up a sixteenth of the row each, then of the
// sixteenth where r is, and so on.
#include "argmax.h"
#include "kernel.h"
#include "philox.h"

namespace edge_awq {

struct Sample {
  using Sum = unsigned long long;
  static constexpr int kWarps = kSampleThreads / kWarpSize;
  static constexpr int kBins = 2048, kBinsPerThread = kBins / kSampleThreads, kKeyBits = 11;
  static constexpr int kCoarse = 64;       // bins per unit of a logit
  static constexpr unsigned kListed = 4096;
  static constexpr float kBestWeight = 0x1p43f, kSmallestTemperature = 0x1p-100f;

  // Where a sum is reached: in this bin; the sum of those before it, and its own.
  struct Place {
    int bin;
    Sum before, own;
  };

  struct Shared {
    uint32_t low[kBins], high[kBins];  // the words of a bin's sum
    uint32_t listed[kListed];          // keys
    uint32_t count;                    // of those that are listed, or would be if there was room
    uint32_t min_p_key;
    Sum warps[kWarps];
    Sum best;  // as argmax.h has it
    Place place;
  };

  const SampleArguments& a;
  Shared& shared;
  const int row = blockIdx.x / a.splits, lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const float* const logits = a.logits + static_cast<int64_t>(row) * a.size;
  float largest = 0, log2_per_unit = 0;  // how much a weight's logarithm grows with a logit

  // ---- what a logit counts ----

  __device__ __forceinline__ Sum weight_of(float logit) const {
    return whole(power_of_two((logit - largest) * log2_per_unit) * kBestWeight);
  }

  // A number from 0 to below 2^64, cut, word by word, each exact: by NVIDIA's table a multiprocessor of sm_86 to sm_89
  // converts 64 numbers a clock to 32 bits, but 2 to 64.
  __device__ __forceinline__ static Sum whole(float value) {
    const uint32_t high = static_cast<uint32_t>(value * 0x1p-32f);
    const uint32_t low = static_cast<uint32_t>(value - static_cast<float>(high) * 0x1p32f);
    return static_cast<Sum>(high) << 32 | low;
  }

  __device__ __forceinline__ int coarse_bin(float logit) const {
    return static_cast<int>(fminf((largest - logit) * kCoarse, kBins - 1.0f));
  }

  __device__ __forceinline__ static Sum place_of(uint32_t key, int index) {
    return static_cast<Sum>(key) << 32 | static_cast<uint32_t>(index);
  }

  __device__ __forceinline__ static int smaller(int a, int b) { return a < b ? a : b; }

  // ---- reading ----

  // visit(logit, index) for begin <= index < end, by so many threads.
  template <class Visit>
  __device__ __forceinline__ void read(int begin, int end, int thread, int threads, Visit visit) const {
    const int misplaced = static_cast<int>(reinterpret_cast<size_t>(logits + begin) / sizeof(float) % 4);
    const int head = smaller(end - begin, (4 - misplaced) % 4), vectors = (end - begin - head) / 4;
    const int aligned = begin + head, tail = end - aligned - 4 * vectors;
    if (thread < head + tail) {
      const int index = thread < head ? begin + thread : aligned + 4 * vectors + thread - head;
      visit(logits[index], index);
    }
    const Vector* const fours = reinterpret_cast<const Vector*>(logits + aligned);
    Vector next{};
    if (thread < vectors) next = fours[thread];
    for (int i = thread; i < vectors; i += threads) {
      const Vector four = next;
      if (i + threads < vectors) next = fours[i + threads];  // on its way while this one is visited
      for (int j = 0; j < 4; ++j) visit(as_float(four.word[j]), aligned + 4 * i + j);
    }
  }

  template <class Visit>
  __device__ __forceinline__ void read_row(Visit visit) const {
    read(0, a.size, threadIdx.x, kSampleThreads, visit);
  }

  // ---- sums ----

  __device__ __forceinline__ static Sum sum_of_warp(Sum value) {
    for (int mask = kWarpSize / 2; mask; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }

  // Every warp's sum in shared.warps.
  __device__ __forceinline__ void share_sums(Sum value) const {
    value = sum_of_warp(value);
    if (lane == 0) shared.warps[warp] = value;
    __syncthreads();
  }

  __device__ __forceinline__ Sum sum_of_block(Sum value) const {
    share_sums(value);
    Sum sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += shared.warps[i];
    __syncthreads();
    return sum;
  }

  __device__ __forceinline__ void clear_bins() const {
    for (int i = threadIdx.x; i < kBins; i += kSampleThreads) shared.low[i] = shared.high[i] = 0;
    __syncthreads();
  }

  // 64 bits as two words, since shared memory adds no more at once.
  __device__ __forceinline__ void add(int bin, Sum weight) const {
    const uint32_t low = static_cast<uint32_t>(weight), before = add_shared(&shared.low[bin], low);
    const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
    if (high) add_shared(&shared.high[bin], high);
  }

  // The first bin with which the sum reaches the target; the last one if none does.
  __device__ __forceinline__ Place find_place(Sum target) const {
    Sum bins[kBinsPerThread], own = 0;
    for (int i = 0; i < kBinsPerThread; ++i) {
      const int bin = threadIdx.x * kBinsPerThread + i;
      own += bins[i] = static_cast<Sum>(shared.high[bin]) << 32 | shared.low[bin];
    }
    Sum through = own;  // this thread's bins and those of lower lanes
    for (int step = 1; step < kWarpSize; step *= 2) {
      const Sum other = shuffle(through, (lane - step) & (kWarpSize - 1));
      if (lane >= step) through += other;
    }
    if (lane == kWarpSize - 1) shared.warps[warp] = through;
    __syncthreads();
    Sum before = through - own;
    for (int i = 0; i < kWarps; ++i) before += i < warp ? shared.warps[i] : 0;
    for (int i = 0; i < kBinsPerThread; ++i) {
      const int bin = threadIdx.x * kBinsPerThread + i;
      const bool is_reached = before < target && before + bins[i] >= target;
      const bool is_last = bin == kBins - 1 && before + bins[i] < target;
      if (is_reached || is_last) shared.place = {bin, before, bins[i]};
      before += bins[i];
    }
    __syncthreads();
    return shared.place;
  }

  // ---- finding ----

  // What a filter counts: every token as one, or by its weight; those below a key not at all.
  struct Count {
    bool by_weight;
    uint32_t lowest_key;
  };

  __device__ __forceinline__ Sum counted(Count count, float logit) const {
    if (key_of(logit) < count.lowest_key) return 0;
    return count.by_weight ? weight_of(logit) : 1;
  }

  struct Cut {
    uint32_t key;
    Sum above, own;  // the sums of those with larger keys, and of those with this one
  };

  // The largest key such that those that have it or a larger one count `target` or more; there is one, and it is in
  // this coarse bin.
  __device__ __forceinline__ Cut find_key(Count count, Sum target, Place coarse) const {
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    read_row([&](float logit, int) {
      if (coarse_bin(logit) != coarse.bin || !counted(count, logit)) return;
      const uint32_t place = add_shared(&shared.count, 1);
      if (place < kListed) shared.listed[place] = key_of(logit);
    });
    __syncthreads();
    Cut cut{0, coarse.before, 0};
    for (int shift = 32; shift > 0;) {
      const int bits = smaller(shift, kKeyBits), known = shift;
      shift -= bits;
      const uint32_t last = (1u << bits) - 1;
      const auto add_key = [&](uint32_t key) {
        const bool is_here = (static_cast<Sum>(key) >> known) == (static_cast<Sum>(cut.key) >> known);
        if (is_here) add(static_cast<int>(last - (key >> shift & last)), counted(count, logit_of(key)));
      };
      clear_bins();
      if (shared.count <= kListed) {
        for (unsigned i = threadIdx.x; i < shared.count; i += kSampleThreads) add_key(shared.listed[i]);
      } else {
        read_row([&](float logit, int) {
          if (coarse_bin(logit) == coarse.bin && counted(count, logit)) add_key(key_of(logit));
        });
      }
      __syncthreads();
      const Place place = find_place(target - cut.above);
      cut.key |= (last - static_cast<uint32_t>(place.bin)) << shift;
      cut.above += place.before;
      cut.own = place.own;
    }
    return cut;
  }

  // The sum of all that count, and in the bins all but those of the last.
  __device__ __forceinline__ Sum fill_coarse_bins(Count count) const {
    clear_bins();
    Sum sum = 0;
    read_row([&](float logit, int) {
      const Sum weight = counted(count, logit);
      const int bin = coarse_bin(logit);
      sum += weight;
      if (weight && bin < kBins - 1) add(bin, weight);
    });
    return sum_of_block(sum);
  }

  // The first index such that all up to it count more than r, which choose(sum of all) gives.
  template <class CountOf, class Choose>
  __device__ __forceinline__ int find_index(CountOf count_of, Choose choose) const {
    int begin = 0, end = a.size;
    Sum r = 0;
    for (bool is_first = true; is_first || end - begin > 1; is_first = false) {
      const int part = (end - begin + kWarps - 1) / kWarps;
      const int first = smaller(end, begin + warp * part);
      Sum sum = 0;
      read(first, smaller(end, first + part), lane, kWarpSize,
           [&](float logit, int index) { sum += count_of(logit, index); });
      share_sums(sum);
      if (is_first) {
        Sum all = 0;
        for (int i = 0; i < kWarps; ++i) all += shared.warps[i];
        r = choose(all);
      }
      int chosen = 0;
      for (; chosen < kWarps - 1 && r >= shared.warps[chosen]; ++chosen) r -= shared.warps[chosen];
      begin = smaller(end, begin + chosen * part);
      end = smaller(end, begin + part);
      __syncthreads();
    }
    return begin;
  }

  // ---- filters ----

  // The key of the k-th largest logit; `lowest_key` if there are fewer.
  __device__ __forceinline__ uint32_t top_k_key(float top_k, uint32_t lowest_key) const {
    const Count count{false, lowest_key};
    const Sum target = static_cast<Sum>(top_k);
    if (fill_coarse_bins(count) < target) return lowest_key;
    return find_key(count, target, find_place(target)).key;
  }

  // Where the most probable tokens end that reach top_p; of equal ones the last stay.
  __device__ __forceinline__ Sum top_p_place(float top_p, uint32_t lowest_key) const {
    const Count count{true, lowest_key};
    const double wanted = static_cast<double>(top_p) * static_cast<double>(fill_coarse_bins(count));
    Sum target = wanted > 0 ? static_cast<Sum>(wanted) : 0;
    if (static_cast<double>(target) < wanted || target == 0) ++target;
    const Cut cut = find_key(count, target, find_place(target));
    const Sum weight = weight_of(logit_of(cut.key));
    if (cut.own - weight < target - cut.above) return place_of(cut.key, 0);  // all of the equal ones
    const Sum kept = (target - cut.above + weight - 1) / weight;
    const auto is_equal = [&](float logit, int) -> Sum { return key_of(logit) == cut.key; };
    return place_of(cut.key, find_index(is_equal, [&](Sum all) { return all - kept; }));
  }

  // The least key of a token that is min_p times as probable as the best.
  __device__ __forceinline__ uint32_t min_p_key(float min_p, float temperature) const {
    if (threadIdx.x == 0) {
      const double share = static_cast<double>(fminf(min_p, 1.0f));
      const double least = static_cast<double>(largest) + natural_logarithm(share) * static_cast<double>(temperature);
      const float rounded = static_cast<float>(least);
      shared.min_p_key = key_of(rounded) + (static_cast<double>(rounded) < least ? 1 : 0);
    }
    __syncthreads();
    return shared.min_p_key;
  }

  // The last token that may be drawn.
  __device__ __forceinline__ Sum lowest_place(float temperature) const {
    const float top_k = a.settings[kTopK], top_p = a.settings[kTopP], min_p = a.settings[kMinP];
    uint32_t lowest_key = kKeyOfMinusInfinity + 1;
    if (top_k >= 1.0f && top_k < static_cast<float>(a.size)) lowest_key = top_k_key(top_k, lowest_key);
    Sum lowest = place_of(lowest_key, 0);
    if (top_p < 1.0f) lowest = top_p_place(top_p, lowest_key);
    if (min_p > 0.0f) {
      const Sum place = place_of(min_p_key(min_p, temperature), 0);
      lowest = place > lowest ? place : lowest;
    }
    return lowest;
  }

  __device__ __forceinline__ int draw(Sum lowest) const {
    const Sum seed = static_cast<Sum>(*a.seed), step = static_cast<Sum>(*a.step) + static_cast<Sum>(row);
    const Vector words = philox({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0},
                                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    const Sum fraction = static_cast<Sum>(words.word[1]) << 32 | words.word[0];  // of 2^64
    const auto weight = [&](float logit, int index) {
      return place_of(key_of(logit), index) >= lowest ? weight_of(logit) : 0;
    };
    return find_index(weight, [&](Sum all) { return high_product(all, fraction); });
  }

  // The row's token, for its last block.
  __device__ __forceinline__ void run() {
    using Rows = Argmax<kSampleThreads>;
    const int split = blockIdx.x % a.splits;
    Sum best;
    if (!Rows{shared.warps}.find(logits, a.size, split, a.splits, a.best + static_cast<int64_t>(row) * a.splits,
                                 a.finished + row, best))
      return;
    if (threadIdx.x == 0) shared.best = best;
    __syncthreads();
    const int64_t token = choose(Rows::token_of(shared.best));
    if (threadIdx.x == 0) a.tokens[row] = token;
  }

  __device__ __forceinline__ int64_t choose(int64_t likeliest) {
    const bool is_finite = likeliest >> 32 == 0;
    float temperature = a.settings[kTemperature];
    if (!is_finite || !(temperature >= kSmallestTemperature)) return likeliest;
    temperature = fminf(temperature, 1 / kSmallestTemperature);
    largest = logits[likeliest];
    log2_per_unit = 1.44269504f / temperature;
    const Sum lowest = lowest_place(temperature);
    if (a.lowest && threadIdx.x == 0) a.lowest[row] = lowest;
    return draw(lowest);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kSampleThreads) sample(const edge_awq::SampleArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Sample{a, edge_awq::block_shared<edge_awq::Sample::Shared>()}.run();
  edge_awq::let_next_kernel_start();
}
