"""What a cubin holds, by NVIDIA's disassembler (optional wheels): registers, memory use, the instructions of loops."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_BRANCH = re.compile(r"BRA\b.*?0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Kernel:
    """One entry point.

    Attributes:
        registers: per thread.
        local_bytes: stack and local memory per thread, where registers are spilled to.
        instructions: all, in order, without predicates.
        loop: those of the longest loop, of those with tensor-core products if there are any.
    """

    registers: int
    local_bytes: int
    instructions: tuple[str, ...]
    loop: tuple[str, ...]

    def loads(self, instructions: tuple[str, ...] | None = None) -> list[str]:
        """The opcodes of loads from global memory."""
        every = self.instructions if instructions is None else instructions
        return [opcode for opcode in (each.split()[0] for each in every) if opcode.startswith("LDG.")]


def tool() -> Path | None:
    """cuobjdump with nvdisasm beside it, or None where the wheels are not installed."""
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations if package else []
    tools = [path for root in roots for path in Path(root).glob("*/bin/cuobjdump")]
    return next((path for path in tools if path.with_name("nvdisasm").exists()), None)


def read_cubin(path: Path) -> dict[str, Kernel]:
    """The kernels of a cubin by name."""
    usage = {name: tuple(map(int, numbers)) for name, *numbers in re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", _dump(path, "--dump-resource-usage"))}
    kernels = {}
    for text in re.split(r"\n\s*Function : ", _dump(path, "--dump-sass"))[1:]:
        name = text.split("\n", 1)[0].strip()
        code = [(int(address, 16), _PREDICATE.sub("", text)) for address, text in _INSTRUCTION.findall(text)]
        registers, *local = usage[name]
        kernels[name] = Kernel(registers, sum(local), tuple(each for _, each in code), _longest_loop(code))
    return kernels


def _dump(path: Path, option: str) -> str:
    return subprocess.run([tool(), option, path], check=True, capture_output=True, text=True).stdout


def _longest_loop(code: list[tuple[int, str]]) -> tuple[str, ...]:
    """From the target of a backward branch to the branch.

    Behind a kernel's end lies what shuffles branch to where a warp has come apart; the way back from there is no loop.
    """
    loops = [()]
    for last, text in code:
        branch = _BRANCH.search(text)
        if branch and int(branch[1], 16) < last:
            loop = tuple(each for address, each in code if int(branch[1], 16) <= address <= last)
            loops += [loop] if "EXIT" not in loop else []
    return max(loops, key=lambda loop: (any(text.startswith("HMMA") for text in loop), len(loop)))
