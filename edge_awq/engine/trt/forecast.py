"""Memory before anything is compiled: whether this machine can compile a bundle's engine, and run it afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edge_awq.bundle import Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.memory import longest_context, memory_for
from edge_awq.plan.sizes import sizes_of_bundle
from edge_awq.plan.speed import kv_bits_of
from edge_awq.progress import Progress
from edge_awq.target import Target

# Of weights inside: the graph's constants, TensorRT's own, the plan, and that on its way to the file. Not verified.
HOST_COPIES, GPU_COPIES = 4, 1
WEIGHTS_INSIDE, PLUGIN_FREE = "--weights-inside", "--plugin-free"


@dataclass(frozen=True)
class Wanted:
    """The engine that is to be compiled.

    Attributes:
        context: tokens in its KV cache at most.
        kv_bits: of a cached key or value.
        inside: the option that puts the weights inside; None: they stay outside.
    """

    context: int
    kv_bits: int
    inside: str | None = None


def check_memory(bundle: Bundle, target: Target, progress: Progress, wanted: Wanted) -> int:
    """The forecast of host memory, in bytes, for compiling ``bundle`` on ``target``, the machine at hand.

    Notes a context that will not fit.

    Raises:
        EdgeAwqError: the target's memory cannot hold the build, or afterwards not even the shortest context.
    """
    sizes, context = sizes_of_bundle(bundle), wanted.context
    kv_bits = wanted.kv_bits if wanted.kv_bits in kv_bits_of(target) else None  # a machine that no profile knows
    memory = memory_for(sizes, target, context, kv_bits=kv_bits)
    plain_peak, inside = memory.build_peak, memory.weights if wanted.inside else 0
    host_bytes = plain_peak - memory.system + HOST_COPIES * inside
    is_shared = target.device is None or target.device.unified_memory
    peak = plain_peak + (HOST_COPIES if is_shared else GPU_COPIES) * inside
    memory = dataclasses.replace(memory, build_peak=peak)
    if memory.available is None or memory.fits:
        return host_bytes
    if memory.build_peak > memory.available:
        raise EdgeAwqError(
            f"compiling an engine takes {_mb(memory.build_peak)} by forecast, {_mb(memory.system)} of them for the "
            f"system; {target.name} has {_mb(memory.available)}",
            hint=f"without {wanted.inside} it takes {_mb(plain_peak)}" if plain_peak <= memory.available else
            f"engines are compiled where they run: take a machine with {_mb(plain_peak)} or more")
    longest = longest_context(sizes, target, kv_bits=kv_bits)
    if longest == 0:
        raise EdgeAwqError(
            f"{bundle.path} takes {_mb(memory_for(sizes, target, 1).run_peak)} by forecast with an empty KV cache; "
            f"{target.name} has {_mb(memory.available)}",
            hint=f"it fits elsewhere: edge-awq plan {bundle.path} --all-targets; here a smaller model does")
    in_bytes = longest_context(sizes, target, kv_bits=8) if kv_bits == 16 and wanted.inside != PLUGIN_FREE else 0
    more = f", or with --kv-bits 8, which holds {min(in_bytes, context)}" if in_bytes > longest else ""
    progress.note(f"{target.name} holds {longest} of the engine's {context} tokens of context by forecast: run it with "
                  f"--context {longest}{more}")
    return host_bytes


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
