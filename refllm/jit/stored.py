"""A compiled version of a kernel as bytes, and back.

    sizes     three little-endian integers of 8 bytes: of the header, the machine code, the bitcode
    header    JSON: the names of symbols, the result's type, Python objects that the code refers to
    machine code, bitcode (LLVM's, for kernels that call this one)

numba's own cache pickles these parts, and a pickle may call anything. Here the header is data, in
which every name has a fixed meaning. The types of the arguments are not in it, because a version
is looked up by them. A version that a header cannot describe is a `NotStorableError`; no kernel of
this package is one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numba.core import types
from numba.core.compiler import CompileResult
from numba.core.environment import _rebuild_env
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.typed_passes import _reload_parfors
from numba.core.typing.templates import Signature

__all__ = ["NotStorableError", "restored", "stored"]

SIZES = struct.Struct("<3Q")
# The attributes of a function besides its types: texts, numbers, and lists of texts.
FIELDS = (
    *("native", "qualname", "unique_name", "doc", "inline", "noalias", "env_name", "uid"),
    *("mangled_name", "args", "abi_tags"),
)
SCALARS = {each.name: each for each in (types.none, types.boolean, *types.number_domain)}
CONSTANTS = (bool, int, float, str, type(None))
# The packages whose modules a kernel may refer to, besides its own; they are imported.
PACKAGES = ("numba", "refllm")

Json = Mapping[str, Any]


class NotStorableError(Exception):
    """The version has a part that cannot be stored, which the message names."""


def stored(compiled: Any, signature: Sequence[Any]) -> bytes:
    """Return a version for arguments of these types as bytes.

    Raises:
        NotStorableError: It has a part that cannot be stored.
    """
    library, function, environment, typed, is_object_mode, lifted, annotation, reload, others = (
        compiled._reduce()
    )
    name, kind, code = library
    if is_object_mode or lifted or kind != "object" or function.kws or function.global_dict:
        raise NotStorableError("more than machine code")
    if any(each is not _reload_parfors for each in reload):
        raise NotStorableError(f"something to call when it is loaded: {reload}")
    if tuple(typed.args) != tuple(signature) or tuple(function.argtypes) != tuple(signature):
        raise NotStorableError(f"other arguments, {typed.args}, than those it is called with")
    header = {
        "library": name,
        "function": {field: getattr(function, field) for field in FIELDS},
        "result": _type_as_json(typed.return_type),
        "environment": _environment_as_json(environment),
        "environments": [_environment_as_json(each) for each in others],
        "annotation": annotation,
        "is_parallel": bool(reload),
    }
    parts = (json.dumps(header).encode(), *code)
    return b"".join((SIZES.pack(*map(len, parts)), *parts))


def restored(contents: bytes, signature: Sequence[Any], target: Any, module: str) -> Any:
    """Return the version for arguments of these types, of a function in `module`.

    Raises:
        ValueError, KeyError, TypeError: The contents are no stored version.
    """
    if len(contents) < SIZES.size:
        raise ValueError("there are no sizes")
    parts = []
    start = SIZES.size
    for size in SIZES.unpack_from(contents):
        parts.append(contents[start : start + size])
        start += size
    if start != len(contents):
        raise ValueError("the sizes do not fit the contents")
    written, machine_code, bitcode = parts
    header = json.loads(written)
    result = _type_of(header["result"])
    function = _function(header["function"], signature, result, module)
    return CompileResult._rebuild(  # type: ignore[no-untyped-call]
        target,
        (header["library"], "object", (machine_code, bitcode)),
        function,
        _environment(header["environment"], module),
        Signature(result, tuple(signature), recvr=None),  # type: ignore[no-untyped-call]
        False,  # object mode
        (),  # lifted loops
        header["annotation"],
        [_reload_parfors] if header["is_parallel"] else [],
        tuple(_environment(each, module) for each in header["environments"]),
    )


def _function(described: Json, signature: Sequence[Any], result: Any, module: str) -> Any:
    """Return numba's description of a function, which its callers need."""
    lists = {name: tuple(described[name]) for name in ("args", "abi_tags")}
    names = [name for name in FIELDS if name not in (*lists, "mangled_name")]
    return PythonFunctionDescriptor(  # type: ignore[no-untyped-call]
        **{name: described[name] for name in names},
        **lists,
        modname=module,
        typemap=None,
        calltypes=None,
        restype=result,
        argtypes=tuple(signature),
        kws=(),
        mangler=lambda *_, **__: described["mangled_name"],
    )


# --- Python objects that the code refers to ------------------------------------------------------


def _environment_as_json(environment: Any) -> Json:
    return {
        "module": environment.globals.get("__name__"),
        "constants": [_constant_as_json(each) for each in environment.consts],
        "name": environment.env_name,
    }


def _environment(described: Json, module: str) -> Any:
    name = described["module"]
    if name != module and name.partition(".")[0] not in PACKAGES:
        raise ValueError(f"it refers to the module {name}")
    constants = [_constant(each) for each in described["constants"]]
    return _rebuild_env(name, constants, described["name"])  # type: ignore[no-untyped-call]


def _constant_as_json(constant: object) -> Any:
    if isinstance(constant, np.dtype) and constant.kind in "biuf":
        return {"dtype": constant.str}
    if type(constant) in CONSTANTS:
        return constant
    raise NotStorableError(f"the object {constant!r:.80}")


def _constant(described: Any) -> object:
    if isinstance(described, dict):
        return np.dtype(str(described["dtype"]))
    if type(described) not in CONSTANTS:
        raise ValueError(f"{described!r:.80} is no constant")
    return described


# --- Types ---------------------------------------------------------------------------------------


def _type_as_json(result: Any) -> Any:
    """Return a scalar's name, an array's properties, or a list of the types in a tuple."""
    if result.name in SCALARS and result == SCALARS[result.name]:
        return result.name
    if type(result) is types.Array and result.dtype.name in SCALARS:
        return {
            "dtype": result.dtype.name,
            "ndim": result.ndim,
            "layout": result.layout,
            "readonly": not result.mutable,
            "aligned": result.aligned,
        }
    if type(result) in (types.Tuple, types.UniTuple):
        return [_type_as_json(each) for each in result]
    raise NotStorableError(f"a result of the type {result}")


def _type_of(described: Any) -> Any:
    if isinstance(described, list):
        elements = tuple(_type_of(each) for each in described)
        return types.BaseTuple.from_types(elements)  # type: ignore[no-untyped-call]
    if isinstance(described, dict):
        return types.Array(**{**described, "dtype": SCALARS[described["dtype"]]})
    return SCALARS[described]
