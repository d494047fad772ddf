// The shapes of the tiles that tile.h computes, for kernels and for those who launch them.
#pragma once

namespace edge_awq {

constexpr int kSpan = 64;           // weights of a row that are unpacked with one scale
constexpr int kTileOutputs = 128;   // rows of W per block
constexpr int kOutputWarps = 4;     // that these are dealt to, 32 each
constexpr int kTileGroup = 8;       // tiles along N whose blocks run side by side; see TilePlace

// A block's tile of y, and how the block computes it.
//   Storage: of the weights: kVectors of 16 bytes per row and span; kScaled, whether they have scales and zero points
//   kRowsOfX: columns of the tensor-core products, a multiple of 8 * kRowWarps
//   kRowWarps: warps that share the same weights, for different rows of x
//   kSlices: warps that share the same outputs, for different spans of K; a stage is a span for each
//   kStages: in shared memory, of which all but one are on their way
template <class Storage, int kRowsOfX, int kRowWarps_, int kSlices_, int kStages_>
struct TileShape {
  static constexpr int kRows = kRowsOfX, kRowWarps = kRowWarps_, kSlices = kSlices_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = 32 * kOutputWarps * kRowWarps * kSlices;
  static constexpr int kColumnTiles = kRows / kRowWarps / 8;  // per warp
  static constexpr int kStageK = kSlices * kSpan;

  // Vectors of 16 bytes in a stage.
  static constexpr int kWeightVectors = kSlices * kTileOutputs * Storage::kVectors;
  static constexpr int kXVectors = kSlices * kRows * (kSpan / 8);
  static constexpr int kGridVectors = Storage::kScaled ? kSlices * kTileOutputs / 4 : 0;
  static constexpr int kStageVectors = kWeightVectors + kXVectors + kGridVectors;

  // Results on their way out take the place of the stages: a row of x has 128 of them and 4 to avoid bank conflicts.
  static constexpr int kResultPitch = kTileOutputs + 4;
  static constexpr int kResultBytes = kSlices * kRows * kResultPitch * 4, kPipelineBytes = kStages * kStageVectors * 16;
  static constexpr int kSharedBytes = kPipelineBytes > kResultBytes ? kPipelineBytes : kResultBytes;
  static_assert(kSharedBytes <= 99 * 1024, "the smallest GPUs have no more");
};

}  // namespace edge_awq
