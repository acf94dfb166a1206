"""The container of a checkpoint: a zip with one pickle of plain data and the bytes of tensors.

``torch.load(weights_only=True)`` runs no code that a file names, but a file can still do harm:
exhaust memory or time, or make a version of PyTorch that doesn't compare sizes read past the data.
So the file is checked first, by an interpreter that knows what ``torch.save`` writes and builds
nothing but strings, numbers and containers of them. The bytes of the tensors are compared with the
zip's own checksums, so that a corrupted file is refused instead of loaded with other weights.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_PLAIN_BYTES = 64 * 2**20
#: Steps of the pickle, of about a microsecond each, and items on its stack: a pickle of one-byte
#: steps is refused before its end. A fine-tuned encoder with a thousand weights has about 80,000
#: steps; vocabularies are single strings.
MAX_STEPS = 300_000
MAX_STACK = 20_000
#: Items and characters of the plain data, repeated ones counted each time: a few lists that contain
#: each other repeatedly can expand to astronomically many.
MAX_ITEMS = 300_000
MAX_CHARACTERS = 2 * MAX_PLAIN_BYTES
MAX_DEPTH = 32
_DATA = "data/"
#: Keys that tell Hydra and Lightning what to import.
FORBIDDEN_KEYS = frozenset({"_target_", "_instantiator", "_partial_", "_args_", "_recursive_"})

_TOO_LARGE = "its plain data is larger than that of any honest checkpoint"
_SURROGATE = re.compile("[\ud800-\udfff]")

_STORAGES = {
    f"torch {name}Storage": size
    for name, size in {
        "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2,
        "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    }.items()
}  # fmt: skip
_TENSOR = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_GLOBALS = frozenset({*_STORAGES, _TENSOR, _ORDERED})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS_AND_STRINGS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
)


class ArchiveError(ValueError):
    """Not an intact file from ``torch.save``; the message says why, without the file's name."""


def check_archive(path: Path, unread: Collection[str] = ()) -> None:
    """Check a file before it is passed to ``torch.load``.

    Args:
        path: path of the file.
        unread: entries whose tensors will not be used, so that their bytes are not compared with
            the checksums.

    Raises:
        ArchiveError: the file is not a zip that ``torch.save`` writes, is compressed, claims more
            bytes or numbers than it has, has a pickle that does more than build plain data and
            tensors, or has bytes that have changed since they were written.
        OSError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                records = _check_entries(archive, path.stat().st_size)
                starts = _entry_offsets(file, records, archive.start_dir)
                plain = _plain_data(archive.read(records["data.pkl"]), records)
            used = plain
            if isinstance(plain, dict):
                used = {name: entry for name, entry in plain.items() if name not in unread}
            keys = set(_storages(used))
            for name, entry in records.items():
                if not name.startswith(_DATA) or name.removeprefix(_DATA) in keys:
                    _check_checksum(file, starts[name], entry)
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, EOFError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"not a checkpoint, or a damaged one ({error})") from error


def _plain_data(data: bytes, records: Mapping[str, zipfile.ZipInfo]) -> Any:
    """Return the checked result of the pickle, with a stand-in for each tensor."""
    sizes = {
        name.removeprefix(_DATA): entry.file_size
        for name, entry in records.items()
        if name.startswith(_DATA)
    }
    try:
        plain = _Interpreter(sizes).run(data)
        _PlainCheck().check(plain, "checkpoint")
        return plain
    except ArchiveError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ArchiveError(f"its plain data is damaged ({str(error)[:200]})") from error


def _check_directory(file: BufferedReader) -> None:
    """Require one directory at the very end, directly after the data, where every reader finds it.

    Zip readers search for the directory in different ways, so a crafted file can show them
    different contents.
    """
    if file.read(4) != b"PK\3\4":
        raise ArchiveError("not a checkpoint, or a truncated one (it does not begin like a zip)")
    size = file.seek(0, 2)
    file.seek(max(0, size - 98))
    tail = file.read()
    if len(tail) < 98 or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ArchiveError("not a checkpoint, or a truncated one (it does not end like a zip)")
    length, start = struct.unpack("<LL", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # zip64: the large form of the same record, which takes priority
        end = size - 98
        if tail[:4] != b"PK\6\6" or struct.unpack("<Q", tail[-34:-26])[0] != end:
            raise ArchiveError("its zip directory is damaged")
        length, start = struct.unpack("<QQ", tail[40:56])
    if start + length != end:
        raise ArchiveError("its zip directory is not where it ends")


def _check_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, without the folder in which ``torch.save`` puts all of them."""
    entries = archive.infolist()
    # torch.save never compresses, so an entry that would grow on reading is a zip bomb.
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ):
        raise ArchiveError("it holds compressed entries, which no checkpoint of ours does")
    if sum(entry.file_size for entry in entries) > file_size:
        raise ArchiveError("it claims more bytes than the file has")
    names = [entry.filename for entry in entries]
    if len({name.lower() for name in names}) < len(names):  # readers differ in which one they take
        raise ArchiveError("it holds two entries of one name")
    folders = {name.partition("/")[0] for name in names}
    if len(folders) != 1:
        raise ArchiveError("its entries do not lie in one folder")
    records = {entry.filename.partition("/")[2]: entry for entry in entries}
    if "data.pkl" not in records:
        raise ArchiveError("it holds no data.pkl")
    if records["data.pkl"].file_size > MAX_PLAIN_BYTES:
        raise ArchiveError(_TOO_LARGE)
    return records


def _entry_offsets(
    file: BufferedReader, records: Mapping[str, zipfile.ZipInfo], end: int
) -> dict[str, int]:
    """Require each entry's bytes to lie before the directory: torch maps them without reading.

    Returns:
        Where each entry's bytes start, by name.
    """
    starts = {}
    for name, entry in records.items():
        file.seek(entry.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_length + extra_length
        if header[:4] != b"PK\3\4" or start + entry.file_size > end:
            raise ArchiveError(f"its entry {entry.filename!r:.100} is not where it should be")
        starts[name] = start
    return starts


def _check_checksum(file: BufferedReader, start: int, entry: zipfile.ZipInfo) -> None:
    """Refuse an entry whose bytes don't match its checksum in the zip."""
    checksum, remaining = 0, entry.file_size
    buffer = memoryview(bytearray(min(2**20, max(remaining, 1))))
    file.seek(start)
    while remaining and (count := file.readinto(buffer[: min(remaining, len(buffer))])):
        checksum = zlib.crc32(buffer[:count], checksum)
        remaining -= count
    if remaining or checksum != entry.CRC:
        raise ArchiveError(
            f"damaged: the bytes of its entry {entry.filename!r:.100} have changed since they were "
            "written; take another copy of it"
        )


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    numbers: int


@dataclass(frozen=True)
class _TensorStandIn:
    """Stands in for a tensor whose numbers are in the storage ``key``."""

    key: str


def _storages(value: Any) -> Iterator[str]:
    """Yield the storage keys of all tensors in checked plain data."""
    if isinstance(value, _TensorStandIn):
        yield value.key
    elif isinstance(value, dict):
        for item in value.values():
            yield from _storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)


class _Interpreter:
    """Runs a pickle of protocol 2 as ``torch.save`` writes it, and refuses everything else.

    Args:
        sizes: size in bytes of each record of tensor data, by key.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return the plain data, with a stand-in for each tensor."""
        argument: Any
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step > MAX_STEPS or len(self.stack) > MAX_STACK or len(self.marks) > MAX_DEPTH:
                raise ArchiveError(_TOO_LARGE)
            name = opcode.name
            if name in _NUMBERS_AND_STRINGS:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in self.ACTIONS:
                self.ACTIONS[name](self)
            elif name == "GLOBAL":
                if argument not in _GLOBALS:
                    raise ArchiveError(
                        f"refused: it names code, {'.'.join(argument.split())!r:.100}"
                    )
                self.stack.append(_Global(argument))
            elif name == "STOP":
                break
            elif name != "PROTO":
                raise ArchiveError(
                    f"refused: its plain data uses {name}, which torch.save does not"
                )
        if len(self.stack) != 1 or self.marks:
            raise ArchiveError("its plain data is damaged (it ends too early)")
        return self.stack[0]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ArchiveError("its plain data is damaged (a tuple with too few items)")
        self.stack[-count:] = [items]

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ArchiveError(f"refused: it appends to a {type(target).__name__}")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise ArchiveError(f"refused: it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples could take forever to hash.
            if not isinstance(key, (str, int)):
                raise ArchiveError(f"it has a key of type {type(key).__name__}")
            target[key] = value

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == _Global(_ORDERED) and arguments == ():
            self.stack.append({})
        elif function == _Global(_TENSOR):
            self.stack.append(_check_tensor(*arguments))
        else:
            raise ArchiveError("refused: it calls something with unusual arguments")

    def _build(self) -> None:
        # torch.save stores only this attribute of an OrderedDict. Others could hide its methods.
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not dict or type(state) is not dict or set(state) - {"_metadata"}:
            raise ArchiveError("refused: it sets attributes of its data")

    def _load_storage(self) -> None:
        kind, storage_type, key, location, numbers = self.stack.pop()
        if kind != "storage" or type(location) is not str or type(storage_type) is not _Global:
            raise ArchiveError("refused: it refers to data in an unusual way")
        if type(numbers) is not int or numbers < 0 or type(key) is not str:
            raise ArchiveError("a tensor's size is not a number")
        if self.sizes.get(key) != numbers * _STORAGES[storage_type.name]:
            raise ArchiveError(
                f"a tensor claims {numbers} numbers, and its record has "
                f"{self.sizes.get(key, 0)} bytes"
            )
        self.stack.append(_Storage(key, numbers))

    ACTIONS = {  # noqa: RUF012 - a table of the methods above
        "MARK": lambda self: self.marks.append(len(self.stack)),
        "EMPTY_DICT": lambda self: self.stack.append({}),
        "EMPTY_LIST": lambda self: self.stack.append([]),
        "TUPLE": lambda self: self.stack.append(tuple(self._since_mark())),
        "TUPLE1": lambda self: self._tuple(1),
        "TUPLE2": lambda self: self._tuple(2),
        "TUPLE3": lambda self: self._tuple(3),
        "APPEND": lambda self: self._append([self.stack.pop()]),
        "APPENDS": lambda self: self._append(self._since_mark()),
        "SETITEM": lambda self: self._set([self.stack.pop(-2), self.stack.pop()]),
        "SETITEMS": lambda self: self._set(self._since_mark()),
        "REDUCE": lambda self: self._reduce(),
        "BUILD": lambda self: self._build(),
        "BINPERSID": lambda self: self._load_storage(),
    }


def _check_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any
) -> _TensorStandIn:
    """Require a tensor's numbers to be in its storage, each once: torch would allocate others."""
    numbers = [offset, *shape, *strides]
    if type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
        raise ArchiveError("a tensor's shape is not made of numbers")
    if requires_grad not in (False, True) or hooks != {} or len(shape) != len(strides):
        raise ArchiveError("a tensor is more than its numbers")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count > storage.numbers or (count and last >= storage.numbers):
        raise ArchiveError(
            f"a tensor of shape {tuple(shape)[:8]} claims more numbers than it stores"
        )
    return _TensorStandIn(storage.key)


class _PlainCheck:
    """Allows only numbers, strings, tensors, lists, tuples and dicts, within limits of nesting."""

    def __init__(self) -> None:
        self.items = 0
        self.characters = 0

    def check(self, value: Any, where: str, depth: int = 0) -> None:
        """Raise ArchiveError, naming the place, if ``value`` is not plain data."""
        if depth > MAX_DEPTH:
            raise ArchiveError(f"{where:.80}... is nested too deeply")
        self.items += 1
        if self.items > MAX_ITEMS or self.characters > MAX_CHARACTERS:
            raise ArchiveError(_TOO_LARGE)
        if isinstance(value, dict):
            for key, item in value.items():
                if key in FORBIDDEN_KEYS:
                    raise ArchiveError(
                        f"refused: {where} has a {key!r} key, which names code to run"
                    )
                self.check(key, where, depth + 1)
                self.check(item, f"{where}.{key:.40}" if type(key) is str else where, depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.check(item, where, depth + 1)
        elif isinstance(value, str):
            self.characters += len(value)
            if not value.isascii() and _SURROGATE.search(value):
                raise ArchiveError(f"{where} has a string that is not text")
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ArchiveError(f"{where} has a number beyond 64 bits")
        elif not (value is None or isinstance(value, (float, _TensorStandIn))):
            raise ArchiveError(f"{where} is a {type(value).__name__}, which is not plain data")
