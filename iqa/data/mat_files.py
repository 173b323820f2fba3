"""MATLAB files (version 5 to 7) -> variables by name; for `label_files`.

Reads what label files hold: real numbers, text and cells of these. `scipy.io.loadmat` reads more, and ends the whole
process on some damaged files; here every length is checked before it is used. The format is MathWorks' "MAT-File
Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = 128  # bytes: text, version, and the order of bytes
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CODES = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_MOST = 1 << 28  # bytes of a variable once decompressed; label files have thousands
_DEEPEST = 8  # cells in cells

Value = np.ndarray | None


def read_mat(file: Path) -> dict[str, Value]:
    """The variables of a MATLAB file.

    Args:
        file: version 5 to 7 (`save -v7`); 7.3 is another format.

    Returns:
        flat arrays by name, in MATLAB's order: numbers, rows of text (str), or cells (object) of such arrays. A
        variable of another kind (structure, sparse, complex, function) is None.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no such file, or damaged.
    """
    content = file.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise ValueError("it is not of version 5 to 7; MATLAB writes one with save -v7")
    variables = {}
    for kind, data in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            ((kind, data),) = _elements(memoryview(_decompressed(data)), order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} stands in the place of a variable")
        name, value = _variable(data, order)
        variables[name] = value
    return variables


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each of the elements that follow one another."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it ends in the middle of an element")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, padding = place + 8, 0 if kind == _COMPRESSED else -size % 8
        if kind >> 16:  # a small element: type and size share four bytes, the content has the other four
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            padding = 4 - size
        if padding < 0 or start + size > len(data):
            raise ValueError("an element is longer than what holds it")
        yield kind, data[start : start + size]
        place = start + size + padding


def _decompressed(data: memoryview) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MOST)
    except zlib.error as error:
        raise ValueError(f"a compressed variable is damaged: {error}") from error
    if not stream.eof:
        raise ValueError(f"a compressed variable is cut short, or larger than {_MOST} bytes")
    return content


def _variable(data: memoryview, order: str, depth: int = 0) -> tuple[str, Value]:
    """Name and value of a matrix element; an empty one stands for an empty cell."""
    parts = list(_elements(data, order))
    if not parts:
        return "", np.zeros(0)
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise ValueError("a variable has no header")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    shape = _numbers(*parts[1], order).tolist()
    name = bytes(parts[2][1]).decode("latin-1")
    value = _value(flags, shape, parts[3:], order, depth)
    if value is not None and len(value) != (math.prod(shape[:-1]) if flags & 0xFF == _CHAR else math.prod(shape)):
        raise ValueError(f"{name} has {len(value)} values and the shape {shape}")
    return name, value


def _value(flags: int, shape: list[int], parts: list[tuple[int, memoryview]], order: str, depth: int) -> Value:
    kind = flags & 0xFF
    if kind == _CELL:
        if depth == _DEEPEST or any(part != _MATRIX for part, _ in parts):
            raise ValueError("cells hold what they cannot")
        cells = np.empty(len(parts), dtype=object)
        for i, (_, data) in enumerate(parts):
            cells[i] = _variable(data, order, depth + 1)[1]
        return cells
    if kind == _CHAR and len(shape) == 2 and len(parts) == 1:
        return _rows_of_text(*parts[0], shape, order)
    if kind in _NUMERIC and len(parts) == 1:
        return _numbers(*parts[0], order)
    return None  # complex numbers have a second part


def _numbers(kind: int, data: memoryview, order: str) -> np.ndarray:
    if kind not in _NUMBERS or len(data) % int(_NUMBERS[kind][1]):
        raise ValueError("numbers of an unknown type")
    return np.frombuffer(data, dtype=order + _NUMBERS[kind])


def _rows_of_text(kind: int, data: memoryview, shape: list[int], order: str) -> np.ndarray:
    """Rows of a character matrix, which is stored by columns."""
    if kind in _CODES:
        ending = "" if kind == 16 else {"<": "-le", ">": "-be"}[order]
        text = bytes(data).decode(_CODES[kind] + ending)
    else:
        text = "".join(map(chr, _numbers(kind, data, order).tolist()))
    rows, columns = shape
    if len(text) != rows * columns or rows > _MOST:
        raise ValueError(f"a text of {len(text)} characters has the shape {shape}")
    return np.array([text[row::rows] for row in range(rows)], dtype=str)
