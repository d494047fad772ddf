"""Torch's own matmuls on the same shapes, as graphs to be timed beside ours: fp16, and its int4 kernel."""

from __future__ import annotations

from collections.abc import Callable

Seconds = Callable[[], float]
INNER_K_TILES = 8  # the layout that torch's int4 kernel is usually used with


def torch_peers(shape: tuple[int, int], group_size: int, rows: int, cold_bytes: int) -> dict[str, Seconds | str]:
    """By name, a function that gives the time of one matmul; or why there is none.

    Args:
        shape: (N, K).
        cold_bytes: weights are as many copies as hold so much, used in turn.
    """
    try:
        import torch
    except ImportError as error:
        return {"torch": f"not installed: {error}"}
    if not torch.cuda.is_available():
        return {"torch": f"{torch.__version__} without a CUDA device"}
    found: dict[str, Seconds | str] = {}
    for name, make in (("torch fp16", _fp16), ("torch int4", _int4)):
        try:
            found[f"{name} M={rows}"] = _timed(torch, make(torch, shape, group_size, rows, cold_bytes))
        except (RuntimeError, AttributeError, TypeError) as error:  # shapes and devices that it does not take
            found[f"{name} M={rows}"] = str(error).splitlines()[0]
    return found


def _copies(size: int, cold_bytes: int) -> int:
    return max(2, -(-cold_bytes // size))


def _fp16(torch, shape, _group_size, rows, cold_bytes):
    N, K = shape
    x = torch.randn(rows, K, dtype=torch.float16, device="cuda")
    weights = [torch.randn(N, K, dtype=torch.float16, device="cuda") for _ in range(_copies(2 * N * K, cold_bytes))]
    y = torch.empty(rows, N, dtype=torch.float16, device="cuda")
    return [lambda weight=weight: torch.mm(x, weight.t(), out=y) for weight in weights]


def _int4(torch, shape, group_size, rows, cold_bytes):
    N, K = shape
    x = torch.randn(rows, K, dtype=torch.bfloat16, device="cuda")
    packed = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(K // group_size, N, 2, dtype=torch.bfloat16, device="cuda")
    weights = [torch._convert_weight_to_int4pack(packed, INNER_K_TILES)
               for _ in range(_copies(N * K // 2, cold_bytes))]
    return [lambda weight=weight: torch._weight_int4pack_mm(x, weight, group_size, scales) for weight in weights]


def _timed(torch, launches) -> Seconds:
    """A graph of all launches, and the time of one of them in a replay."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(launches)

    return seconds
