"""The ``.dpr`` file: a graph with its constants in one safetensors file (docs/internals.md, section 3).

The loader trusts nothing in the file. Whatever the bytes are, `load` returns a graph that passes the
verifier or raises ArtifactError; it allocates in proportion to the header, which is bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynprune_rt.errors import ArtifactError, VerificationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.packed_weights import pack, unpack
from dynprune_rt.ir.types import DTYPES, MAX_RANK, TensorType
from dynprune_rt.ir.verifier import MAX_NAME, verify

FORMAT = "dynprune-rt"
VERSION = "1"

#: Data start at a multiple of this many bytes, and so does every tensor whose predecessors allow it.
ALIGNMENT = 64

#: Bounds that the loader enforces before it allocates.
MAX_HEADER = 8 * 2**20
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_OPERANDS = 10_000
MAX_TEXT = 100_000

_CODES = {"f32": "F32", "i64": "I64", "bool": "BOOL", "u8": "U8", "s8": "I8", "bf16": "BF16"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}

# ---- saving -----------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], graph: Graph, report: dict[str, Any] | None = None) -> None:
    """Write a graph and its report (JSON-like, finite numbers) to ``path``, atomically.

    Raises VerificationError if the graph breaks a rule of the IR, ArtifactError if the file cannot
    be written or the report is not JSON.
    """
    verify(graph)
    path = Path(path)
    header, arrays = _layout(graph, report or {})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(len(header).to_bytes(8, "little"))
                file.write(header)
                for array in arrays:
                    file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def digest(graph: Graph) -> str:
    """SHA-256 of everything that decides a graph's results, as 64 hexadecimal digits: equal for equal files."""
    header, arrays = _layout(graph, {})
    state = hashlib.sha256(header)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _layout(graph: Graph, report: dict[str, Any]) -> tuple[bytes, list[np.ndarray]]:
    """The padded safetensors header, and the tensors in file order."""
    values = list(_values(graph))
    constants = [v for v in values if graph.is_constant(v)]
    stored = {v: graph.constant(v) for v in constants}
    packed = []
    for value in constants:
        if value.type.dtype == "s8" and value.type.rank > 1:
            narrow = pack(graph.constant(value))
            if narrow.nbytes < stored[value].nbytes:
                stored[value] = narrow
                packed.append(value.name)
    # Whole cache lines first, then by element size: all of the former start aligned to 64 bytes, and
    # everything to its element size, without holes (which safetensors does not allow).
    constants.sort(key=lambda v: (stored[v].nbytes % ALIGNMENT != 0, -stored[v].itemsize))
    metadata = {"format": FORMAT, "version": VERSION, "graph": _dump(_encode_graph(graph, values, report))}
    if packed:
        metadata["packed"] = _dump(packed)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for value in constants:
        end = offset + stored[value].nbytes
        header[value.name] = {
            "dtype": "U8" if value.name in packed else _CODES[value.type.dtype],
            "shape": list(stored[value].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = _dump(header).encode("utf-8")
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ArtifactError(f"the graph takes {len(text)} bytes of header; at most {MAX_HEADER} are supported")
    return text, [stored[v] for v in constants]


def _values(graph: Graph) -> Iterator[Value]:
    """Every value of the graph once: inputs, constants in use, node outputs."""
    seen = set()
    for value in (*graph.inputs, *(v for node in graph.nodes for v in (*node.operands(), *node.outputs))):
        if value.name not in seen:
            seen.add(value.name)
            yield value


def _dump(value: Any) -> str:
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        text.encode("utf-8")
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the report cannot be stored as JSON: {error}") from error


def _encode_graph(graph: Graph, values: list[Value], report: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": [[v.name, v.type.dtype, list(v.type.shape)] for v in graph.inputs],
        "outputs": [v.name for v in graph.outputs],
        "values": {v.name: [v.type.dtype, list(v.type.shape), v.live.name if v.live else None] for v in values},
        "nodes": [
            {
                "op": node.op,
                "name": node.name,
                "in": [None if v is None else v.name for v in node.inputs],
                "out": [v.name for v in node.outputs],
                "attrs": {name: _encode_attr(value) for name, value in node.attrs.items()},
                "computed": node.computed.name if node.computed else None,
                "origin": node.origin,
                "note": node.note,
            }
            for node in graph.nodes
        ],
        "report": report,
    }


def _encode_attr(value: Any) -> Any:
    """JSON has no infinities: they become the strings "inf" and "-inf"."""
    if isinstance(value, (tuple, list)):
        return [_encode_attr(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


# ---- loading ----------------------------------------------------------------------------------


class _Invalid(Exception):
    """What is wrong with the file; `load` turns it into an ArtifactError."""


def load(path: str | os.PathLike[str]) -> tuple[Graph, dict[str, Any]]:
    """Read a graph and its report. The constants are read-only views of the memory-mapped file.

    Raises ArtifactError, whatever is wrong with the file.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _Invalid(f"{size} bytes are too few for any program")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _parse(data)
    except OSError as error:
        raise ArtifactError(f"cannot open {name!r}: {error.strerror or error}") from error
    except (_Invalid, VerificationError) as error:
        raise ArtifactError(
            f"{name!r} is not a valid dynprune-rt program: {error}. Convert the model again to get a new file."
        ) from error


def _parse(data: mmap.mmap) -> tuple[Graph, dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise _Invalid(f"the header claims {length} bytes; at most {MAX_HEADER} are supported")
    if length > len(data) - 8:
        raise _Invalid(f"the header claims {length} bytes, the file has {len(data)}; it is truncated or no program")
    header = _expect(_load_json(data[8 : 8 + length], "the header"), dict, "the header")
    metadata = _expect(header.pop("__metadata__", None), dict, "the header's __metadata__")
    if metadata.get("format") != FORMAT:
        raise _Invalid(f"its format is {metadata.get('format')!r:.80}, expected {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise _Invalid(f"its version is {metadata.get('version')!r:.80}; this release reads version {VERSION}")
    text = _text(metadata.get("graph"), "the graph", MAX_HEADER)
    packed = _text(metadata.get("packed", "[]"), "the list of packed tensors", MAX_HEADER)
    names = _expect(
        _load_json(packed.encode("utf-8"), "the list of packed tensors"), list, "the list of packed tensors"
    )
    arrays = _map_tensors(header, data, 8 + length)
    return _decode_graph(_load_json(text.encode("utf-8"), "the graph"), arrays, names)


def _load_json(raw: bytes, what: str) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, no NaN, bounded integers and depth."""

    def parse_int(digits: str) -> int:
        if len(digits) > 19:
            raise _Invalid(f"{what} holds the integer {digits:.40}..., which is out of range")
        return int(digits)

    def parse_float(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise _Invalid(f"{what} holds the number {digits:.40}, which is out of range")
        return value

    def parse_constant(word: str) -> float:
        raise _Invalid(f"{what} holds {word}, which is not JSON")

    def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise _Invalid(f"{what} holds the key {repeated!r:.80} twice")
        return result

    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=parse_constant,
            object_pairs_hook=parse_object,
        )
    except UnicodeDecodeError:
        raise _Invalid(f"{what} is not valid UTF-8") from None
    except RecursionError:
        raise _Invalid(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise _Invalid(f"{what} is not valid JSON: {error}") from None
    _check_tree(value, what)
    return value


def _check_tree(value: Any, what: str) -> None:
    """Bound the depth, and refuse text that cannot be printed or saved again (lone surrogates)."""
    layer = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError:
                    raise _Invalid(f"{what} holds text that is not valid UTF-8") from None
        layer = below
    if layer:
        raise _Invalid(f"{what} is nested more than {MAX_DEPTH} levels deep")


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Invalid(f"{what} is {value!r:.80}, expected {kind.__name__}")
    return value


def _text(value: Any, what: str, longest: int = MAX_TEXT) -> str:
    text: str = _expect(value, str, what)
    if len(text) > longest:
        raise _Invalid(f"{what} has {len(text)} characters; at most {longest} are supported")
    return text


def _record(value: Any, keys: tuple[str, ...], what: str) -> list[Any]:
    """The entries of an object that has exactly these keys, in this order."""
    record = _expect(value, dict, what)
    if set(record) != set(keys):
        raise _Invalid(f"{what} has the keys {sorted(record)!r:.200}, expected {sorted(keys)}")
    return [record[key] for key in keys]


def _shape(value: Any, what: str) -> tuple[int, ...]:
    shape = _expect(value, list, what)
    if len(shape) > MAX_RANK:
        raise _Invalid(f"{what} has {len(shape)} dimensions; at most {MAX_RANK} are supported")
    return tuple(_expect(d, int, what) for d in shape)


def _type(dtype: Any, shape: Any, what: str) -> TensorType:
    result = TensorType(_text(dtype, f"{what}'s dtype"), _shape(shape, f"{what}'s shape"))
    try:
        result.check()
    except ValueError as error:
        raise _Invalid(f"{what}: {error}") from None
    return result


def _map_tensors(header: dict[str, Any], data: mmap.mmap, base: int) -> dict[str, np.ndarray]:
    """Views of the tensors, which must fill the rest of the file without overlap or hole."""
    spans = []
    for name, entry in header.items():
        what = f"tensor {name!r:.80}"
        code, shape, offsets = _record(entry, ("dtype", "shape", "data_offsets"), what)
        dtype = _DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise _Invalid(f"{what} has element type {code!r:.40}, expected one of {sorted(_DTYPES)}")
        type = _type(dtype, shape, what)
        if type.batched:
            raise _Invalid(f"{what} has the shape {list(type.shape)}")
        if not isinstance(offsets, list) or len(offsets) != 2:
            raise _Invalid(f"{what} has the offsets {offsets!r:.80}, expected [begin, end]")
        begin, end = (_expect(offset, int, f"{what}'s offset") for offset in offsets)
        if begin < 0 or end - begin != type.elements * DTYPES[dtype].itemsize or end > len(data) - base:
            raise _Invalid(f"{what} ({type}) claims the bytes {begin} to {end} of {len(data) - base}")
        spans.append((begin, end, name, type))
    expected = 0
    arrays = {}
    for begin, end, name, type in sorted(spans, key=lambda span: span[0]):
        if begin != expected:
            raise _Invalid(f"tensor {name!r:.80} starts at byte {begin}, expected {expected}")
        expected = end
        dtype = DTYPES[type.dtype].newbyteorder("<")
        if (base + begin) % dtype.itemsize:
            raise _Invalid(f"tensor {name!r:.80} is not aligned to its element size")
        array = np.frombuffer(data, dtype, type.elements, base + begin).reshape(type.shape)
        if type.dtype == "bool" and array.view(np.uint8).max() > 1:
            raise _Invalid(f"tensor {name!r:.80} holds bytes that are neither true nor false")
        arrays[name] = array
    if expected != len(data) - base:
        raise _Invalid(f"the tensors end at byte {expected} of {len(data) - base}")
    return arrays


def _decode_graph(encoded: Any, arrays: dict[str, np.ndarray], packed: list[Any]) -> tuple[Graph, dict[str, Any]]:
    inputs, outputs, values, nodes, report = _record(
        encoded, ("inputs", "outputs", "values", "nodes", "report"), "the graph"
    )
    graph = Graph(constants=arrays)
    table = _decode_values(_expect(values, dict, "the list of values"), graph)

    def find(name: Any, what: str) -> Value:
        value = table.get(name) if isinstance(name, str) else None
        if value is None:
            raise _Invalid(f"{what} names the unknown value {name!r:.80}")
        return value

    _expand(arrays, packed, table)
    for name, (_, _, live) in values.items():
        if live is not None:
            table[name].live = find(live, f"the mask of value {name!r:.80}")
    for entry in _expect(inputs, list, "the list of inputs"):
        if not isinstance(entry, list) or len(entry) != 3:
            raise _Invalid(f"an input is {entry!r:.80}, expected [name, dtype, shape]")
        value = find(entry[0], "an input")
        if _type(entry[1], entry[2], f"input {value.name!r:.80}") != value.type:
            raise _Invalid(f"input {value.name!r:.80} is declared with two types")
        graph.inputs.append(value)
    if len(_expect(nodes, list, "the list of nodes")) > MAX_NODES:
        raise _Invalid(f"the graph has {len(nodes)} nodes; at most {MAX_NODES} are supported")
    for position, entry in enumerate(nodes):
        graph.nodes.append(_decode_node(entry, f"node {position}", find))
    graph.outputs = [find(name, "an output") for name in _expect(outputs, list, "the list of outputs")]
    verify(graph)
    defined = {v.name for v in _values(graph)}
    for name in (*table, *arrays):
        if name not in defined:
            raise _Invalid(f"the value {name!r:.80} is declared but not part of the graph")
    return graph, _expect(report, dict, "the report")


def _expand(arrays: dict[str, np.ndarray], packed: list[Any], table: dict[str, Value]) -> None:
    """Replace the tensors named in ``packed`` by the integer weights that they stand for."""
    if len(set(map(str, packed))) != len(packed):
        raise _Invalid("the list of packed tensors names one twice")
    for name in packed:
        what = f"the packed tensor {name!r:.80}"
        if not isinstance(name, str) or name not in arrays or name not in table:
            raise _Invalid(f"{what} does not exist")
        array, value = arrays[name], table[name]
        if value.type.dtype != "s8" or value.type.rank < 2 or value.type.batched or array.dtype != np.uint8:
            raise _Invalid(f"{what} holds {array.dtype} for {value.type}, expected bytes for s8 weights")
        try:
            arrays[name] = unpack(array, value.type.shape)
        except ValueError as error:
            raise _Invalid(f"{what}: {error}") from None
        arrays[name].flags.writeable = False


def _decode_values(values: dict[str, Any], graph: Graph) -> dict[str, Value]:
    table = {}
    for name, entry in values.items():
        if not isinstance(entry, list) or len(entry) != 3:
            raise _Invalid(f"value {name!r:.80} is {entry!r:.80}, expected [dtype, shape, mask]")
        type = _type(entry[0], entry[1], f"value {name!r:.80}")
        if not 0 < len(name) <= MAX_NAME:
            raise _Invalid(f"a value has the illegal name {name!r:.80}")
        table[graph.fresh_name(name)] = Value(name, type)
    return table


def _decode_node(entry: Any, what: str, find: Any) -> Node:
    op, name, operands, results, attrs, computed, origin, note = _record(
        entry, ("op", "name", "in", "out", "attrs", "computed", "origin", "note"), what
    )
    what = f"{what} ({_text(name, f'the name of {what}')!r:.80})"
    for names in (operands, results):
        if len(_expect(names, list, f"{what}'s operand list")) > MAX_OPERANDS:
            raise _Invalid(f"{what} has {len(names)} operands; at most {MAX_OPERANDS} are supported")
    node = Node(
        _text(op, f"{what}'s operator"),
        name,
        [None if operand is None else find(operand, what) for operand in operands],
        [find(result, what) for result in results],
        {key: _decode_attr(value) for key, value in _expect(attrs, dict, f"{what}'s attributes").items()},
        None if computed is None else find(computed, what),
        _text(origin, f"{what}'s origin"),
        _text(note, f"{what}'s note"),
    )
    for value in node.outputs:
        value.producer = node
    return node


def _decode_attr(value: Any) -> Any:
    """The canonical form: tuples for lists, and the infinities."""
    if isinstance(value, list):
        return tuple(_decode_attr(v) for v in value)
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value
