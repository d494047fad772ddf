"""Run by test_trt_bindings.py in a process of its own: which of the names given does this TensorRT's binding lack, and
what do its functions return?

The libraries below the binding may be empty: classes, enums and methods are known from the binding alone.
"""

import functools
import importlib
import json
import os
import re
import sys

module, *names = sys.argv[1:]
tensorrt = importlib.import_module(module)


def missing(name):
    try:
        functools.reduce(getattr, name.split("."), tensorrt)
    except AttributeError:
        return True
    return False


def signatures(name):
    """A function's, of all its forms: what it returns, without modules, and the names of what it takes."""
    text = functools.reduce(getattr, name.split("."), tensorrt).__doc__ or ""
    found = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> (.*)$", text, re.MULTILINE)
    return [[re.split(r"[.:]", returned)[-1], re.findall(r"(?:^|, )(\w+): ", taken)[1:]] for taken, returned in found]


strongly_typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
print(json.dumps({"version": tensorrt.__version__,
                  "strongly_typed": None if strongly_typed is None else int(strongly_typed),
                  "missing": [name for name in names if missing(name)],
                  "signatures": {name: signatures(name) for name in names if not missing(name)}}), flush=True)
os._exit(0)  # some bindings crash while the interpreter ends
