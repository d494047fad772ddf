"""Every TensorRT name that the package touches, looked up in the real Python bindings of each TensorRT.

The bindings come from the package index, 1 MB each; the libraries that they load are stand-ins made by a C compiler, as
nothing is called. 8.6.0 is 800 MB, so nothing fetches it: see tests/plugins/test_registries.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from touched import RETURNS, RTX_LACKS, STRONGLY_TYPED, TAKES, TOUCHED, VERSION_BOUND

from wheels import PYTHON, RTX_PACKAGES, RTX_VERSION, unpacked

HERE = Path(__file__).resolve().parent
NOWHERE = {"NoSuchClass", "Builder.no_such_method"}
FOLDER_8, PYTHON_8 = "EDGE_AWQ_TENSORRT_8", "EDGE_AWQ_PYTHON_3_10"
PACKAGES = {"10.3.0": "tensorrt-cu12-bindings", "10.16.1.11": "tensorrt-cu13-bindings",
            "11.4.0.106": "tensorrt-cu13-bindings"}
# What the bindings of 10 and 11 import from the libraries below them.
LIBRARIES = {
    "nvinfer": ("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
                "getBuilderPluginRegistry", "getPluginRegistry"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}


def stand_ins(folder: Path, major: str) -> Path:
    """Shared libraries of TensorRT ``major`` whose functions do nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-ins of TensorRT's libraries")
    for library, functions in LIBRARIES.items():
        name = f"lib{library}.so.{major}"
        source = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions)
        command = [compiler, "-x", "c", "-", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def findings(python: str, packages: Path, module: str, libraries: Path) -> dict:
    """What bindings_check.py prints."""
    environment = os.environ | {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(libraries)}
    command = [python, HERE / "bindings_check.py", module, *TOUCHED, *NOWHERE]
    done = subprocess.run(command, check=False, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected_missing(version: str) -> set[str]:
    """Names that are declared to be missing in ``version``, and those that no TensorRT has."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    bound = {name for name, (first, last) in VERSION_BOUND.items() if not first <= numbers <= last}
    return bound.intersection(TOUCHED) | NOWHERE


def check_signatures(found: dict) -> None:
    """Every form of a function gives back what the package expects, and one takes what it is given."""
    for name, wanted in TAKES.items():
        if name not in found["missing"] and found["version"][:2] != "8.":
            assert wanted in [taken for _, taken in found["signatures"][name]], name
    for name, wanted in RETURNS.items():
        if name not in found["missing"]:
            assert {returned for returned, _ in found["signatures"][name]} == {wanted}, name


@pytest.mark.parametrize("version", PACKAGES)
def test_binding_has_every_name(version, tmp_path):
    packages = unpacked(f"bindings-{version}-{PYTHON}", [f"{PACKAGES[version]}=={version}"], "1 MB")
    found = findings(sys.executable, packages, "tensorrt_bindings", stand_ins(tmp_path, version.split(".")[0]))
    assert found["version"] == version
    assert set(found["missing"]) == expected_missing(version)
    assert found["strongly_typed"] == STRONGLY_TYPED[version.split(".")[0]]
    check_signatures(found)


def test_binding_of_rtx_has_every_name():
    """Its libraries come along."""
    packages = unpacked(f"rtx-{RTX_VERSION}-{PYTHON}", RTX_PACKAGES, "95 MB")
    found = findings(sys.executable, packages, "tensorrt_rtx_bindings", packages)
    assert (found["version"], set(found["missing"])) == (RTX_VERSION, RTX_LACKS | NOWHERE)
    check_signatures(found)
    assert ["IExecutionContext", ["runtime_config"]] in found["signatures"]["ICudaEngine.create_execution_context"]


def test_binding_of_8_6_has_every_name():
    unset = [name for name in (FOLDER_8, PYTHON_8) if name not in os.environ]
    if unset:
        pytest.skip(f"no TensorRT 8.6: {' and '.join(unset)} not set")
    folder = Path(os.environ[FOLDER_8])
    found = findings(os.environ[PYTHON_8], folder, "tensorrt", folder / "tensorrt")
    assert found["version"].startswith("8.6.")
    assert set(found["missing"]) == expected_missing("8.6")
    assert found["strongly_typed"] is None
    check_signatures(found)
