#!/usr/bin/env python3
"""On a machine with a GPU and TensorRT: prove that engines compute the models, then measure whole models.

    python plugins/build_kernels.py library -o build/plugins      # anywhere with g++; or EDGE_AWQ_PLUGINS=...
    python scripts/trt_check.py                                   # writes trt-check.json; run again, it goes on

Wants numpy, onnx, onnx-graphsurgeon, pycuda, pytest, rich, click, safetensors and tokenizers, and no torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from rich.console import Console  # noqa: E402

from edge_awq.errors import EdgeAwqError  # noqa: E402
from edge_awq.progress import Lines  # noqa: E402
from edge_awq.shapes import Shape, find_shape  # noqa: E402
from trt_bench import Settings, run_all  # noqa: E402

MODELS = ("llama-2-7b", "mpt-7b", "falcon-7b")
TINY = Shape("tiny", {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 192,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False})


def check_engines() -> int:
    """The tests' exit status; a missing GPU or TensorRT is a failure."""
    environment = os.environ | {"EDGE_AWQ_REQUIRE": "gpu,trt"}
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-m", "trt", HERE.parent / "tests" / "trt"]
    return subprocess.run(command, env=environment, check=False, cwd=HERE.parent).returncode


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("trt-check.json"))
    parser.add_argument("--model", action="append", help=f"of shapes.toml, in place of {', '.join(MODELS)}")
    parser.add_argument("--precision", action="append", choices=["w4a16", "fp16"], help="only this")
    parser.add_argument("--repeats", type=int, default=5, help="of 200 tokens")
    parser.add_argument("--work", type=Path, default=Path(".cache/trt-bench"), help="folder for bundles, up to 20 GB")
    parser.add_argument("--keep", action="store_true", help="leave the bundles there")
    parser.add_argument("--peer-python", action="append", help="an interpreter that has torch and transformers")
    parser.add_argument("--no-check", action="store_true", help="measure only")
    parser.add_argument("--no-measure", action="store_true", help="check only")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does the measuring itself work?")
    arguments = parser.parse_args()
    # Engines run in processes of their own, and edge-awq need not be installed here.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not arguments.no_check and (status := check_engines()):
        return status
    if arguments.no_measure:
        return 0
    try:
        shapes = [TINY] if arguments.tiny else [find_shape(name) for name in arguments.model or MODELS]
        settings = Settings(shapes, arguments.precision or Settings.precisions, max(arguments.repeats, 1),
                            work=arguments.work, keep=arguments.keep,
                            peer_python=arguments.peer_python or Settings.peer_python)
        run_all(settings, arguments.output, Console(), Lines(lambda text: sys.stderr.write(text + "\n")))
    except EdgeAwqError as error:
        sys.stderr.write(f"Error: {error.message}\nHint: {error.hint}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
