"""Where blocks are quantized: in this process one after the other, or on many workers at once with Ray.

A block's search needs nothing but its full-precision inputs. They come from a forward pass that is cheap beside the
search, so this process runs ahead with it and hands each block and its inputs to a worker. Workers compute with as many
threads as this process would, since the order of additions may depend on it: the result has the same bits.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from edge_awq import __version__
from edge_awq.errors import EdgeAwqError
from edge_awq.lazy import require
from edge_awq.model.decoder import Decoder, run_block
from edge_awq.quantize.awq import QuantizedBlock, QuantizeSettings
from edge_awq.quantize.blocks import make_block

RAY = "ray"
RETRIES = 3  # of a block whose worker was lost
Step = tuple[QuantizedBlock, torch.Tensor | None]  # a block, and its full-precision outputs where they are needed


@dataclass(frozen=True)
class Work:
    """Blocks still to do: ``first`` to the last; hidden: inputs of the first, as make_block() takes them."""

    decoder: Decoder
    first: int
    hidden: torch.Tensor | None
    settings: QuantizeSettings

    @property
    def blocks(self) -> range:
        """Their numbers."""
        return range(self.first, self.decoder.config.num_layers)


def check_workers(workers: str | None) -> None:
    """See whether ``workers`` can be used: None, "ray" or "ray://HOST:PORT".

    Raises:
        EdgeAwqError: it is something else, or Ray is not installed.
    """
    if workers is None:
        return
    if workers != RAY and not workers.startswith(f"{RAY}://"):
        raise EdgeAwqError(f"workers '{workers}' are not known", hint=f"use {RAY}, or {RAY}://HOST:PORT for a cluster")
    require("ray", "ray")


def quantize_blocks(work: Work, workers: str | None = None) -> Iterator[Step]:
    """The blocks of ``work`` in order.

    Args:
        workers: None for this process; "ray" for processes on this machine, or the cluster that RAY_ADDRESS names;
            "ray://HOST:PORT" for a cluster. The checkpoint's folder must be reachable under the same path from all of
            its nodes, and edge-awq be installed there.

    Raises:
        EdgeAwqError: as make_block() does; no cluster answers, or a worker was lost again and again.
    """
    if workers is None or not work.blocks:
        return _here(work)
    return _with_ray(work, None if workers == RAY else workers)


def _here(work: Work) -> Iterator[Step]:
    hidden = work.hidden
    for index in work.blocks:
        block, hidden = make_block(work.decoder, index, hidden, work.settings)
        yield block, hidden


def _with_ray(work: Work, address: str | None) -> Iterator[Step]:
    """Every worker is busy with a block while this process computes the inputs of later ones."""
    threads, hidden = torch.get_num_threads(), work.hidden
    with _connected(address) as ray:
        remote = ray.remote(num_cpus=threads, max_retries=RETRIES)(_quantize)
        shared = ray.put((work.decoder, work.settings, threads, __version__))
        most = max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1) + 1
        waiting: deque[tuple[Any, torch.Tensor | None]] = deque()
        for index in work.blocks:
            if len(waiting) == most:
                yield _finish(ray, *waiting.popleft())
            inputs = None if hidden is None else hidden.numpy()
            task = remote.options(name=f"edge-awq block {index}").remote(shared, index, inputs)
            hidden = _outputs(work.decoder, index, hidden)
            waiting.append((task, hidden))
        while waiting:
            yield _finish(ray, *waiting.popleft())


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    ray = require("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EdgeAwqError(f"Ray at {address or 'this machine'} cannot be used ({_last_line(error)})",
                           hint="check the address, and that the cluster runs this version of Ray") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _finish(ray: ModuleType, task: Any, hidden: torch.Tensor | None) -> Step:
    try:
        return ray.get(task), hidden
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, EdgeAwqError):
            raise cause from error
        raise EdgeAwqError(f"a worker could not finish its block ({_last_line(error)})",
                           hint="the same command goes on at that block; without --workers it stays in one process"
                           ) from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _outputs(decoder: Decoder, index: int, hidden: torch.Tensor | None) -> torch.Tensor | None:
    """Outputs of a block in full precision, computed as make_block() does: one sequence at a time."""
    if hidden is None:
        return None
    weights = decoder.block(index)
    return torch.cat([run_block(decoder.config, index, weights, x) for x in hidden.split(1)])


def _quantize(shared: tuple[Decoder, QuantizeSettings, int, str], index: int, inputs: Any) -> QuantizedBlock:
    """What a worker does with one block; ``inputs`` as a read-only array."""
    decoder, settings, threads, version = shared
    if version != __version__:
        raise EdgeAwqError(f"a worker has edge-awq {__version__}, this build is of {version}",
                           hint="install the same version on every node of the cluster")
    if not decoder.folder.is_dir():
        raise EdgeAwqError(f"a worker has no folder {decoder.folder}",
                           hint="put the checkpoint where every node of the cluster sees it under the same path")
    torch.set_num_threads(threads)
    hidden = None if inputs is None else torch.from_numpy(inputs.copy())
    return make_block(decoder, index, hidden, settings)[0]
