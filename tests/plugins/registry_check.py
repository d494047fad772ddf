"""Load a plugin library into a real TensorRT registry and print, as JSON, what the registry makes of it.

    registry_check.py MODULE LIBRARY VERSION    MODULE is TensorRT's Python package: tensorrt, tensorrt_lean_bindings
"""

import contextlib
import importlib
import json
import os
import sys

import numpy as np

trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()
VERSION = sys.argv[3]  # of the plugins
IS_8 = trt.__version__.startswith("8.")


def creators():
    """What belongs to this project."""
    found = registry.plugin_creator_list if IS_8 else registry.all_creators
    return [each for each in found if each.plugin_namespace == "edge.awq"]


def fields(**attributes):
    """A PluginFieldCollection."""
    made = []
    for name, value in attributes.items():
        array = np.array([value], np.int32 if isinstance(value, int) else np.float32)
        kind = trt.PluginFieldType.INT32 if isinstance(value, int) else trt.PluginFieldType.FLOAT32
        made.append(trt.PluginField(name, array, kind))
    return trt.PluginFieldCollection(made)


def create(name, **attributes):
    """A plugin, or None."""
    get = registry.get_plugin_creator if IS_8 else registry.get_creator
    arguments = ("layer", fields(**attributes)) + (() if IS_8 else (trt.TensorRTPhase.BUILD,))
    with contextlib.suppress(RuntimeError):  # one way to say None
        return get(name, VERSION, "edge.awq").create_plugin(*arguments)
    return None


def describe(plugin):
    """What the binding reads off a plugin."""
    if IS_8:
        data = bytes(plugin.serialize())
        get = registry.get_plugin_creator(plugin.plugin_type, VERSION, "edge.awq")
        return {"name": plugin.plugin_type, "version": plugin.plugin_version, "namespace": plugin.plugin_namespace,
                "outputs": plugin.num_outputs, "clone": plugin.clone().plugin_type,
                "kept": bytes(get.deserialize_plugin("layer", data).serialize()) == data,
                "initialize": plugin.initialize()}
    kinds = trt.PluginCapabilityType
    core, build, runtime = (plugin.get_capability_interface(kind) for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME))
    return {"name": core.plugin_name, "version": core.plugin_version, "namespace": core.plugin_namespace,
            "outputs": build.num_outputs, "formats": build.format_combination_limit,
            "classes": [type(each).__name__ for each in (plugin, core, build, runtime)],
            "kinds": [each.interface_info.kind for each in (plugin, core, build, runtime)]}


def main():
    """Print the findings and leave at once: bindings without a GPU may crash when Python takes them apart."""
    before = len(creators())
    handle = registry.load_library(sys.argv[2])
    matmul = {"K": 128, "N": 8, "group_size": 128}
    attention = {"num_heads": 4, "kv_num_heads": 2, "head_size": 64, "scale": 0.125, "window": 0, "softcap": 0.0}
    findings = {
        "version": trt.__version__,
        "before": before,
        "loaded": handle is not None,
        "loaded again": registry.load_library(sys.argv[2]) is not None,
        "creators": [[each.name, each.plugin_version] for each in creators()],
        "fields": {each.name: [field.name for field in each.field_names] for each in creators()},
        "Int4MatMul": describe(create("Int4MatMul", **matmul)),
        "CachedAttention": describe(create("CachedAttention", **attention)),
        "CachedAttention of bytes": describe(create("CachedAttention", **attention, kv_bits=8)),
        "refused": [create("Int4MatMul", **matmul | {"K": 100}) is None, create("Int4MatMul", K=128) is None,
                    create("Int4MatMul", **matmul, colour=1) is None,
                    create("Int4MatMul", **matmul, contract_version=99) is None],
    }
    print(json.dumps(findings))
    sys.stdout.flush()
    os._exit(0)


main()
