"""TensorRT's part, played from Python: plugins called through their tables of virtual functions, by slot.

The slots and structures are written down here once more, from the documented order of the interfaces, independently of
plugins/tensorrt: a function that sits elsewhere there is called with the wrong arguments here, and a test fails.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass

FLOAT, HALF, INT8, INT32, INT64 = 0, 1, 2, 3, 8
LINEAR, CHW2 = 0, 1
CORE, BUILD, RUNTIME = 0, 1, 2


def call(this: int, slot: int, result, *arguments):
    """The virtual function in ``slot`` of the object at ``this``; arguments are ctypes values or pointers."""
    table = ctypes.cast(this, POINTER(POINTER(c_void_p))).contents
    function = ctypes.CFUNCTYPE(result, c_void_p, *(type(each) for each in arguments))(table[slot])
    return function(this, *arguments)


class Field(Structure):
    """PluginField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Fields(Structure):
    """PluginFieldCollection."""

    _fields_ = (("count", c_int32), ("fields", POINTER(Field)))

    def values(self) -> dict[str, int | float]:
        """By name; only INT32 (5) and FLOAT32 (1) are known."""
        kinds = {5: c_int32, 1: c_float}
        return {field.name.decode(): kinds[field.type].from_address(field.data).value
                for field in self.fields[: self.count]}


def collection(**attributes: int | float) -> Fields:
    """Attributes as TensorRT passes them: int as INT32, float as FLOAT32."""
    values = [(c_int32 if isinstance(value, int) else c_float)(value) for value in attributes.values()]
    array = (Field * len(values))(*(
        Field(name.encode(), ctypes.addressof(value), 5 if isinstance(value, c_int32) else 1, 1)
        for name, value in zip(attributes, values, strict=True)))
    made = Fields(len(values), array)
    made.keep = values
    return made


def structures(size_type):
    """(Dims, TensorDesc) with sizes of 32 bits, as in 8.6, or of 64."""

    class Dims(Structure):
        _fields_ = (("rank", c_int32), ("sizes", size_type * 8))

        @classmethod
        def of(cls, *sizes):
            return cls(len(sizes), (size_type * 8)(*sizes))

    class TensorDesc(Structure):
        _fields_ = (("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float))

    return Dims, TensorDesc


Dims10, Desc10 = structures(c_int64)
Dims8, Desc8 = structures(c_int32)


class DynamicDesc10(Structure):
    """DynamicPluginTensorDesc of 10 and 11."""

    _fields_ = (("desc", Desc10), ("min", Dims10), ("max", Dims10), ("opt", Dims10))


class DynamicDesc8(Structure):
    """DynamicPluginTensorDesc of 8.6."""

    _fields_ = (("desc", Desc8), ("min", Dims8), ("max", Dims8))


class Expressions(Structure):
    """DimsExprs."""

    _fields_ = (("rank", c_int32), ("sizes", c_void_p * 8))


class Info(Structure):
    """InterfaceInfo."""

    _fields_ = (("kind", c_char_p), ("major", c_int32), ("minor", c_int32))


class Builder:
    """An IExprBuilder whose expressions are numbers: 1000 + n stands for the constant n."""

    def __init__(self) -> None:
        self._constant = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_int64)(lambda this, value: 1000 + (value & 0xFFFFFFFF))
        self._maker_table = (c_void_p * 4)(None, None, ctypes.cast(self._constant, c_void_p), None)
        self._maker = (c_void_p * 1)(ctypes.addressof(self._maker_table))
        self._table = (c_void_p * 2)()
        self._object = (c_void_p * 2)(ctypes.addressof(self._table), ctypes.addressof(self._maker))

    @property
    def address(self) -> c_void_p:
        """Of the object."""
        return c_void_p(ctypes.addressof(self._object))


def _expressions(shapes: Sequence[Sequence[int]]) -> ctypes.Array:
    return (Expressions * len(shapes))(*(Expressions(len(shape), (c_void_p * 8)(*shape)) for shape in shapes))


def _sizes(dims: Expressions) -> list[int] | None:
    return None if dims.rank < 0 else list(dims.sizes[: dims.rank])


def _addresses(values: Sequence[int]) -> ctypes.Array:
    return (c_void_p * len(values))(*values)


def creators(library: ctypes.CDLL, function: str) -> list[int]:
    """Addresses of what getCreators() or getPluginCreators() returns."""
    count, entry = c_int32(), getattr(library, function)
    entry.restype = POINTER(c_void_p)
    found = entry(byref(count))
    return found[: count.value]


@dataclass(frozen=True)
class Creator10:
    """IPluginCreatorV3One: language 0, info 1, destructors 2 and 3, then its own."""

    this: int

    def create(self, phase: int = 0, **attributes: int | float) -> Plugin10 | None:
        """createPlugin()."""
        given = ctypes.pointer(collection(**attributes))
        made = call(self.this, 4, c_void_p, c_char_p(b"layer"), given, c_int32(phase))
        return Plugin10(made) if made else None

    def field_types(self) -> dict[str, int]:
        """getFieldNames()."""
        found = call(self.this, 5, POINTER(Fields)).contents
        return {field.name.decode(): field.type for field in found.fields[: found.count]}

    def identity(self) -> tuple[str, str, str]:
        """Name, version, namespace."""
        return tuple(call(self.this, slot, c_char_p).decode() for slot in (6, 7, 8))


@dataclass(frozen=True)
class Plugin10:
    """IPluginV3 and its three capabilities."""

    this: int

    def capability(self, which: int) -> int:
        """getCapabilityInterface(), its address."""
        return call(self.this, 4, c_void_p, c_int32(which))

    def info(self, which: int | None = None) -> tuple[bytes, int, int]:
        """getInterfaceInfo() of the plugin or a capability."""
        this = self.this if which is None else self.capability(which)
        assert call(this, 0, c_int32) == 0  # C++
        found = call(this, 1, Info)
        return found.kind, found.major, found.minor

    def clone(self) -> Plugin10:
        """clone()."""
        return Plugin10(call(self.this, 5, c_void_p))

    def destroy(self) -> None:
        """The deleting destructor."""
        call(self.this, 3, None)

    def identity(self) -> tuple[str, str, str]:
        """Name, version, namespace, from the core."""
        return tuple(call(self.capability(CORE), slot, c_char_p).decode() for slot in (4, 5, 6))

    def configure(self, inputs: Sequence[DynamicDesc10], outputs: Sequence[DynamicDesc10]) -> int:
        """configurePlugin()."""
        return call(self.capability(BUILD), 4, c_int32, *_counted(DynamicDesc10, inputs),
                    *_counted(DynamicDesc10, outputs))

    def output_types(self, inputs: Sequence[int], outputs: int) -> list[int] | None:
        """getOutputDataTypes()."""
        types = (c_int32 * outputs)(*[-1] * outputs)
        given = (c_int32 * len(inputs))(*inputs)
        failed = call(self.capability(BUILD), 5, c_int32, ctypes.cast(types, c_void_p), c_int32(outputs),
                      ctypes.cast(given, c_void_p), c_int32(len(inputs)))
        return None if failed else list(types)

    def output_shapes(self, inputs: Sequence[Sequence[int]], outputs: int) -> list[list[int]] | None:
        """getOutputShapes(); sizes are the numbers of Builder."""
        found, builder = (Expressions * outputs)(), Builder()
        failed = call(self.capability(BUILD), 6, c_int32, ctypes.cast(_expressions(inputs), c_void_p),
                      c_int32(len(inputs)), c_void_p(), c_int32(0), ctypes.cast(found, c_void_p), c_int32(outputs),
                      builder.address)
        return None if failed else [_sizes(each) for each in found]

    def supports(self, position: int, tensors: Sequence[DynamicDesc10], inputs: int) -> bool:
        """supportsFormatCombination()."""
        array = (DynamicDesc10 * len(tensors))(*tensors)
        return call(self.capability(BUILD), 7, c_bool, c_int32(position), ctypes.cast(array, c_void_p), c_int32(inputs),
                    c_int32(len(tensors) - inputs))

    def output_count(self) -> int:
        """getNbOutputs()."""
        return call(self.capability(BUILD), 8, c_int32)

    def workspace_bytes(self, inputs: Sequence[DynamicDesc10]) -> int:
        """getWorkspaceSize()."""
        return call(self.capability(BUILD), 9, c_size_t, *_counted(DynamicDesc10, inputs), c_void_p(), c_int32(0))

    def defaults(self) -> tuple:
        """getNbTactics(), getTimingCacheID(), getFormatCombinationLimit(), getMetadataString()."""
        build = self.capability(BUILD)
        kinds = {11: c_int32, 12: c_char_p, 13: c_int32, 14: c_char_p}
        return tuple(call(build, slot, kind) for slot, kind in kinds.items())

    def aliased_input(self, output: int) -> int:
        """getAliasedInput()."""
        return call(self.capability(BUILD), 15, c_int32, c_int32(output))

    def on_shape_change(self, inputs: Sequence[Desc10], outputs: Sequence[Desc10]) -> int:
        """onShapeChange()."""
        return call(self.capability(RUNTIME), 5, c_int32, *_counted(Desc10, inputs), *_counted(Desc10, outputs))

    def enqueue(self, descs: Sequence[Desc10], inputs: Sequence[int], outputs: Sequence[int], workspace: int,
                stream: int = 0) -> int:
        """enqueue()."""
        return call(self.capability(RUNTIME), 6, c_int32, ctypes.cast((Desc10 * len(descs))(*descs), c_void_p),
                    c_void_p(), ctypes.cast(_addresses(inputs), c_void_p), ctypes.cast(_addresses(outputs), c_void_p),
                    c_void_p(workspace), c_void_p(stream))

    def attach(self) -> Plugin10:
        """attachToContext()."""
        return Plugin10(call(self.capability(RUNTIME), 7, c_void_p, c_void_p()))

    def serialized(self) -> dict[str, int | float]:
        """getFieldsToSerialize()."""
        return call(self.capability(RUNTIME), 8, POINTER(Fields)).contents.values()


def _counted(kind, items):
    return ctypes.cast((kind * len(items))(*items), c_void_p), c_int32(len(items))


@dataclass(frozen=True)
class Creator8:
    """IPluginCreator of 8.6."""

    this: int

    def identity(self) -> tuple[int, str, str, str]:
        """The TensorRT version it was made for, name, version, namespace."""
        version = call(self.this, 0, c_int32)
        return (version, *(call(self.this, slot, c_char_p).decode() for slot in (1, 2, 7)))

    def field_types(self) -> dict[str, int]:
        """getFieldNames()."""
        found = call(self.this, 3, POINTER(Fields)).contents
        return {field.name.decode(): field.type for field in found.fields[: found.count]}

    def create(self, **attributes: int | float) -> Plugin8 | None:
        """createPlugin()."""
        made = call(self.this, 4, c_void_p, c_char_p(b"layer"), ctypes.pointer(collection(**attributes)))
        return Plugin8(made) if made else None

    def deserialize(self, data: bytes) -> Plugin8 | None:
        """deserializePlugin()."""
        made = call(self.this, 5, c_void_p, c_char_p(b"layer"), c_char_p(data), c_size_t(len(data)))
        return Plugin8(made) if made else None

    def set_namespace(self, name: str) -> None:
        """setPluginNamespace()."""
        call(self.this, 6, None, c_char_p(name.encode()))


@dataclass(frozen=True)
class Plugin8:
    """IPluginV2DynamicExt: 19 slots of IPluginV2 (destructors last), 6 of IPluginV2Ext, 5 of its own."""

    this: int

    def identity(self) -> tuple[int, str, str, str]:
        """The version with the interface's number in the top byte, type, version, namespace."""
        return (call(self.this, 0, c_int32), *(call(self.this, slot, c_char_p).decode() for slot in (1, 2, 16)))

    def output_count(self) -> int:
        """getNbOutputs()."""
        return call(self.this, 3, c_int32)

    def obsolete(self) -> tuple:
        """What functions of older interfaces answer."""
        nothing = c_void_p()
        return (call(self.this, 4, Dims8, c_int32(0), nothing, c_int32(0)).rank,
                call(self.this, 5, c_bool, c_int32(0), c_int32(0)), call(self.this, 9, c_size_t, c_int32(1)),
                call(self.this, 10, c_int32, c_int32(1), nothing, nothing, nothing, nothing),
                call(self.this, 20, c_bool, c_int32(0), nothing, c_int32(0)), call(self.this, 21, c_bool, c_int32(0)))

    def initialize(self) -> int:
        """initialize(), and terminate() after it."""
        failed = call(self.this, 7, c_int32)
        call(self.this, 8, None)
        return failed

    def serialized(self) -> bytes:
        """getSerializationSize() and serialize()."""
        size = call(self.this, 11, c_size_t)
        buffer = ctypes.create_string_buffer(b"\xee" * (size + 8), size + 8)
        call(self.this, 12, None, ctypes.cast(buffer, c_void_p))
        assert buffer.raw[size:] == b"\xee" * 8
        return buffer.raw[:size]

    def destroy(self) -> None:
        """destroy()."""
        call(self.this, 13, None)

    def clone(self) -> Plugin8:
        """clone()."""
        return Plugin8(call(self.this, 14, c_void_p))

    def set_namespace(self, name: str) -> None:
        """setPluginNamespace()."""
        call(self.this, 15, None, c_char_p(name.encode()))

    def output_type(self, output: int) -> int:
        """getOutputDataType()."""
        return call(self.this, 19, c_int32, c_int32(output), c_void_p(), c_int32(0))

    def output_shape(self, output: int, inputs: Sequence[Sequence[int]]) -> list[int] | None:
        """getOutputDimensions(); sizes are the numbers of Builder."""
        builder = Builder()
        return _sizes(call(self.this, 25, Expressions, c_int32(output), ctypes.cast(_expressions(inputs), c_void_p),
                           c_int32(len(inputs)), builder.address))

    def supports(self, position: int, tensors: Sequence[Desc8], inputs: int) -> bool:
        """supportsFormatCombination()."""
        array = (Desc8 * len(tensors))(*tensors)
        return call(self.this, 26, c_bool, c_int32(position), ctypes.cast(array, c_void_p), c_int32(inputs),
                    c_int32(len(tensors) - inputs))

    def configure(self, inputs: Sequence[DynamicDesc8], outputs: Sequence[DynamicDesc8]) -> None:
        """configurePlugin()."""
        call(self.this, 27, None, *_counted(DynamicDesc8, inputs), *_counted(DynamicDesc8, outputs))

    def workspace_bytes(self, inputs: Sequence[Desc8]) -> int:
        """getWorkspaceSize()."""
        return call(self.this, 28, c_size_t, *_counted(Desc8, inputs), c_void_p(), c_int32(0))

    def enqueue(self, descs: Sequence[Desc8], inputs: Sequence[int], outputs: Sequence[int], workspace: int,
                stream: int = 0) -> int:
        """enqueue()."""
        return call(self.this, 29, c_int32, ctypes.cast((Desc8 * len(descs))(*descs), c_void_p), c_void_p(),
                    ctypes.cast(_addresses(inputs), c_void_p), ctypes.cast(_addresses(outputs), c_void_p),
                    c_void_p(workspace), c_void_p(stream))
