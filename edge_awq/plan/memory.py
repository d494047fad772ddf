"""Memory while running and while building, against what the target has."""

from __future__ import annotations

from dataclasses import dataclass

from edge_awq.plan.sizes import Sizes
from edge_awq.plan.speed import pick_kv_bits
from edge_awq.target import Reserve, Target

MIB = 1 << 20
ACTIVATION_BYTES = {"onnxruntime": 4, "tensorrt": 2}  # float32 on the CPU, float16 on a GPU
UNKNOWN_RESERVE = Reserve(system_mib=1024, runtime_mib=300, page_cache_mib=0, build_mib=512)


@dataclass(frozen=True)
class Memory:
    """Bytes, by what takes them.

    Attributes:
        available: what the target has; None: not known.
        workspace: one pass over a prompt, and logits; an upper estimate.
        build_peak: compiling the engine on the target; the weights are not in memory then.
    """

    available: int | None
    weights: int
    kv_cache: int
    workspace: int
    runtime: int
    page_cache: int
    system: int
    build_peak: int

    @property
    def run_peak(self) -> int:
        """All that is in memory at once while the model runs."""
        return self.weights + self.kv_cache + self.workspace + self.runtime + self.page_cache + self.system

    @property
    def needed(self) -> int:
        """The larger of both peaks."""
        return max(self.run_peak, self.build_peak)

    @property
    def fits(self) -> bool | None:
        """None: not known, because nothing is known about the target's memory."""
        return None if self.available is None else self.needed <= self.available


def memory_for(sizes: Sizes, target: Target, context: int, machine_bytes: int | None = None,
               kv_bits: int | None = None) -> Memory:
    """Memory of a model on a target.

    Args:
        context: tokens in the KV cache.
        machine_bytes: this machine's memory, for a target that is any machine.
        kv_bits: of a cached key or value; None: as usual on the target.
    """
    reserve = target.reserve or UNKNOWN_RESERVE
    chunk = min(context, target.limits.prefill_chunk)
    system, runtime, cache = (mib * MIB for mib in (reserve.system_mib, reserve.runtime_mib, reserve.page_cache_mib))
    return Memory(
        available=target.device.memory_mib * MIB if target.device else machine_bytes,
        weights=sizes.weight_bytes,
        kv_cache=sizes.cache_bytes(context, pick_kv_bits(target, kv_bits)),
        workspace=chunk * sizes.width * ACTIVATION_BYTES.get(target.kind, 2) + sizes.vocab_size * 4,
        runtime=runtime,
        page_cache=cache,
        system=system,
        build_peak=system + runtime + reserve.build_mib * MIB,
    )


def longest_context(sizes: Sizes, target: Target, machine_bytes: int | None = None, kv_bits: int | None = None) -> int:
    """The most tokens of context that fit, in steps of 128; 0 when not even that many do."""
    low, high = 0, max(sizes.max_positions // 128, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if memory_for(sizes, target, middle * 128, machine_bytes, kv_bits).fits is False:
            high = middle - 1
        else:
            low = middle
    return low * 128
