"""Run by test_trt_bindings.py in a process of its own: which of the names given does this TensorRT's binding lack?

The libraries below the binding may be empty: classes, enums and methods are known from the binding alone.
"""

import functools
import importlib
import json
import os
import sys

module, *names = sys.argv[1:]
tensorrt = importlib.import_module(module)


def missing(name):
    try:
        functools.reduce(getattr, name.split("."), tensorrt)
    except AttributeError:
        return True
    return False


strongly_typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
print(json.dumps({"version": tensorrt.__version__,
                  "strongly_typed": None if strongly_typed is None else int(strongly_typed),
                  "missing": [name for name in names if missing(name)]}), flush=True)
os._exit(0)  # some bindings crash while the interpreter ends
