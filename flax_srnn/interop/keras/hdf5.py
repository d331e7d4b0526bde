"""Reads the HDF5 files that Keras writes: groups, attributes and plain arrays, in Python alone.

A model file is data from a stranger, and the C library behind h5py is no place for it: of 6000 files with a few changed
bytes, HDF5 2.0 crashed the interpreter on one and never came back from nine. Neither can be caught. This reader follows
an address only after it was checked against the bytes at hand, runs nothing, writes nothing, and pays for every step from
one budget, so that it ends, with a ValueError, on whatever it is given.

It knows the classic layout, which h5py chooses by default and every version of Keras writes: superblock 0 or 1, groups as
symbol tables, version 1 object headers, contiguous or compact arrays of floats or integers. Everything else that HDF5 can do is
refused by name: links that are not hard, external or virtual storage, chunks and with them filters and fill values.

Source: HDF5 File Format Specification 3.0, whose sections are named below; all integers are little-endian, and addresses
and lengths take 8 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["MAX_DEPTH", "MAX_NAME_BYTES", "MAX_RANK", "MAX_STEPS", "SIGNATURE", "Dataset", "Group", "Node", "read"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# Every message, link, string and element that a file makes the reader look at costs one. A file of Keras costs about
# thirty for each array.
MAX_STEPS = 500_000
MAX_NAME_BYTES = 4096
MAX_RANK = 32  # HDF5's own limit
MAX_DEPTH = 32  # of groups in groups

# Types of object header messages (IV.A.2).
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL_FILES, _LAYOUT = 0x01, 0x02, 0x03, 0x06, 0x07, 0x08
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x0B, 0x0C, 0x10, 0x11
_KNOWN = (_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL_FILES, _LAYOUT, _FILTERS, _ATTRIBUTE, _SYMBOL_TABLE)
_SHARED_MESSAGE = 0x02  # a flag: the message stands elsewhere
_SOFT_LINK = 2  # the cache type of a symbol table entry
_LINK_TYPES = {0: "hard link in a new-style group", 1: "soft link", 64: "external link"}

# Datatype classes (IV.A.2.d), and the bit layouts of the floats: offset, precision, exponent's place and size, mantissa's
# place and size, exponent's bias.
_CLASSES = (
    "integer",
    "float",
    "time",
    "string",
    "bit field",
    "opaque",
    "compound",
    "reference",
    "enum",
    "variable-length",
)
_INTEGER, _FLOAT, _STRING, _OPAQUE, _VARIABLE = 0, 1, 3, 5, 9
_FLOATS: dict[tuple[int, ...], np.dtype] = {
    (0, 16, 10, 5, 0, 10, 15): np.dtype(np.float16),
    (0, 32, 23, 8, 0, 23, 127): np.dtype(np.float32),
    (0, 64, 52, 11, 0, 52, 1023): np.dtype(np.float64),
    (0, 16, 7, 8, 0, 7, 127): np.dtype(ml_dtypes.bfloat16),
}


class Datatype(NamedTuple):
    """What one element is: the class's name, its bytes, and for a number its NumPy dtype."""

    kind: str
    size: int
    dtype: np.dtype | None = None


class Message(NamedTuple):
    """One message of an object header: its type and where its data stand."""

    type: int
    start: int
    size: int


class Node:
    """A group or a dataset: where it is in the file, and its attributes."""

    def __init__(self, reader: _Reader, path: str, messages: list[Message]) -> None:
        self.path = path
        self._reader = reader
        self._attributes: dict[str, Message] = {}
        for message in messages:
            if message.type == _ATTRIBUTE:
                self._attributes.setdefault(reader.attribute_name(message), message)

    def __contains__(self, attribute: str) -> bool:
        return attribute in self._attributes

    def strings(self, attribute: str, *, max_bytes: int = MAX_NAME_BYTES) -> list[str]:
        """The strings of an attribute, one or many, each of at most `max_bytes`."""
        if attribute not in self._attributes:
            raise ValueError(f"{self.path!r} has no attribute {attribute!r}.")
        return self._reader.strings(self._attributes[attribute], f"attribute {attribute!r} of {self.path!r}", max_bytes)


class Group(Node):
    """A group: its members by name, in the order in which they were made."""

    def __init__(self, reader: _Reader, path: str, messages: list[Message]) -> None:
        super().__init__(reader, path, messages)
        self.members = reader.members(path, messages)

    def group(self, path: str) -> Group | None:
        """The group at a path of names joined by "/", or None."""
        node = self._find(path)
        return node if isinstance(node, Group) else None

    def dataset(self, path: str) -> Dataset | None:
        """The dataset at a path of names joined by "/", or None."""
        node = self._find(path)
        return node if isinstance(node, Dataset) else None

    def _find(self, path: str) -> Node | None:
        node: Node | None = self
        for name in path.split("/"):
            node = node.members.get(name) if isinstance(node, Group) else None
        return node


class Dataset(Node):
    """An array: its shape and type; the elements are read by `array`."""

    def __init__(self, reader: _Reader, path: str, messages: list[Message]) -> None:
        super().__init__(reader, path, messages)
        self._messages = {message.type: message for message in messages}
        self.shape = reader.dataspace(self._required(_DATASPACE, "dataspace"), path)

    def array(self) -> np.ndarray:
        """The elements, not copied. Only numbers; bfloat16 is what Keras stores as two opaque bytes with a note."""
        reader, datatype = self._reader, self._reader.datatype(self._required(_DATATYPE, "datatype"), self.path)
        dtype = datatype.dtype
        if (
            datatype.kind == "opaque"
            and datatype.size == 2
            and "dtype" in self
            and self.strings("dtype") == ["bfloat16"]
        ):
            dtype = np.dtype(ml_dtypes.bfloat16)
        if dtype is None:
            raise ValueError(f"{self.path!r} holds elements of the type {datatype.kind}, not numbers.")
        for kind, what in ((_EXTERNAL_FILES, "is stored in other files"), (_FILTERS, "is compressed or filtered")):
            if kind in self._messages:
                raise ValueError(f"{self.path!r} {what}: only arrays stored plainly in this file are read.")
        size = math.prod(self.shape) * dtype.itemsize
        start = reader.storage(self._required(_LAYOUT, "layout"), size, self.path)
        array = np.frombuffer(reader.data, dtype, math.prod(self.shape), start).reshape(self.shape)
        return array.astype(dtype.newbyteorder("="), copy=False)

    def _required(self, kind: int, what: str) -> Message:
        if kind not in self._messages:
            raise ValueError(f"{self.path!r} has no {what}.")
        return self._messages[kind]


def read(data: bytes) -> Group:
    """The root group of an HDF5 file.

    Args:
      data: the whole file.

    Raises:
      ValueError: damaged, or not in the layout that Keras writes.
    """
    return _Reader(data).root()


class _Reader:
    """The file's bytes and what may still be spent on them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._steps = MAX_STEPS
        self._array_bytes = len(data)  # arrays do not overlap, so together they are no larger than the file
        self._visited: set[int] = set()

    def root(self) -> Group:
        """II.A, superblock: the address of the root group's header."""
        if self.data[:8] != SIGNATURE:
            raise ValueError("not an HDF5 file: the signature is missing.")
        version = self._uint(8, 1)
        if version > 1:
            raise ValueError(
                f"HDF5 superblock version {version}: only the classic layout is read, which h5py writes by default "
                "(`libver='earliest'`)."
            )
        if self._uint(13, 1) != 8 or self._uint(14, 1) != 8:
            raise ValueError("HDF5 addresses and lengths must take 8 bytes.")
        start = 24 + 4 * version
        if self._uint(start, 8) != 0:
            raise ValueError("an HDF5 file inside another file is not read.")
        end = self._uint(start + 16, 8)
        if end > len(self.data):
            raise ValueError(f"truncated: {end} bytes were written, {len(self.data)} are there.")
        root = self._node(self._uint(start + 40, 8), "/")
        if type(root) is not Group:
            raise ValueError("the root of the file is not a group.")
        return root

    # Bytes

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > len(self.data):
            raise ValueError(f"damaged: an address points to byte {start + size} of {len(self.data)}.")
        return self.data[start : start + size]

    def _uint(self, start: int, size: int) -> int:
        return int.from_bytes(self._bytes(start, size), "little")

    def _expect(self, start: int, signature: bytes, what: str) -> None:
        if self._bytes(start, len(signature)) != signature:
            raise ValueError(f"damaged: no {what} at byte {start}.")

    def _pay(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise ValueError(f"more than {MAX_STEPS} objects, messages and strings.")

    def _once(self, address: int, what: str) -> None:
        """Each piece of the file's skeleton belongs to one place; cycles and shared groups are refused."""
        if address in self._visited:
            raise ValueError(f"{what} is reached twice: a cycle, or an object with two names.")
        self._visited.add(address)

    # Objects

    def _node(self, address: int, path: str) -> Node:
        if path.count("/") > MAX_DEPTH:
            raise ValueError(f"groups are nested more than {MAX_DEPTH} deep at {path[:80]!r}.")
        self._once(address, f"{path!r}")
        messages = list(self._messages(address, path))
        is_group = any(message.type in (_SYMBOL_TABLE, _LINK_INFO, _LINK) for message in messages)
        return (Group if is_group else Dataset)(self, path, messages)

    def _messages(self, address: int, path: str) -> Iterator[Message]:
        """IV.A.1.a, version 1 object header: messages in blocks, each continued elsewhere."""
        if self._uint(address, 1) != 1:
            raise ValueError(f"the header of {path!r} is damaged or of a version that Keras does not write.")
        blocks = [(address + 16, self._uint(address + 8, 4))]
        while blocks:
            start, size = blocks.pop()
            self._bytes(start, size)
            self._once(start, f"the header of {path!r}")
            end = start + size
            while start + 8 <= end:
                self._pay()
                kind, length, flags = self._uint(start, 2), self._uint(start + 2, 2), self._uint(start + 4, 1)
                start += 8
                if start + length > end:
                    raise ValueError(f"damaged: a message in the header of {path!r} is longer than the header.")
                if kind == _CONTINUATION:
                    blocks.append((self._uint(start, 8), self._uint(start + 8, 8)))
                elif kind in _KNOWN:
                    if flags & _SHARED_MESSAGE:
                        raise ValueError(f"{path!r} shares a part of its header, which Keras does not do.")
                    yield Message(kind, start, length)
                start += length

    def members(self, path: str, messages: list[Message]) -> dict[str, Node]:
        """III.A, version 1 B-tree of symbol table nodes, and III.D, the local heap with the names."""
        for message in messages:
            if message.type in (_LINK, _LINK_INFO):
                raise ValueError(
                    f"{path!r} is a new-style group{self._describe_links(messages)}, which Keras does not write."
                )
        table = next(message for message in messages if message.type == _SYMBOL_TABLE)
        heap = self._uint(table.start + 8, 8)
        self._expect(heap, b"HEAP\0", "local heap")
        names, length = self._uint(heap + 24, 8), self._uint(heap + 8, 8)
        self._bytes(names, length)
        members: dict[str, Node] = {}
        # The index is alphabetical; names are put into the heap one after the other as members are made.
        for offset, address, cache_type in sorted(self._entries(self._uint(table.start, 8), None, path)):
            name = self._name(names, length, offset, path)
            if cache_type == _SOFT_LINK:
                raise ValueError(f"{name!r} in {path!r} is a soft link: only plain (hard) links are followed.")
            if name in members:
                raise ValueError(f"{path!r} has two members called {name!r}.")
            members[name] = self._node(address, f"{path.rstrip('/')}/{name}")
        return members

    def _entries(self, address: int, level: int | None, path: str) -> Iterator[tuple[int, int, int]]:
        """(offset of the name, address of the header, cache type) of every member below a B-tree node."""
        self._once(address, f"the index of {path!r}")
        self._expect(address, b"TREE\0", "index of a group")
        here, used = self._uint(address + 5, 1), self._uint(address + 6, 2)
        if here != level and (level is not None or here > MAX_DEPTH):
            raise ValueError(f"damaged: the index of {path!r} has the wrong depth.")
        for child in range(used):
            self._pay()
            node = self._uint(address + 32 + 16 * child, 8)
            if here:
                yield from self._entries(node, here - 1, path)
                continue
            self._once(node, f"a part of {path!r}")
            self._expect(node, b"SNOD\1", "symbol table")
            for entry in range(self._uint(node + 6, 2)):
                self._pay()
                start = node + 8 + 40 * entry
                yield self._uint(start, 8), self._uint(start + 8, 8), self._uint(start + 16, 4)

    def _name(self, names: int, length: int, offset: int, path: str) -> str:
        if offset >= length:
            raise ValueError(f"damaged: a name in {path!r} is missing.")
        text = self._bytes(names + offset, min(length - offset, MAX_NAME_BYTES + 1)).split(b"\0")[0]
        if not text or len(text) > MAX_NAME_BYTES or b"/" in text:
            raise ValueError(f"a member of {path!r} has the impossible name {text[:80]!r}.")
        return _text(text, f"a name in {path!r}")

    def _describe_links(self, messages: list[Message]) -> str:
        """IV.A.2.g, link message: bit 3 of the flags says that the type stands after them."""
        for message in messages:
            if message.type == _LINK and message.size >= 3:
                flagged = self._uint(message.start + 1, 1) & 8
                kind = self._uint(message.start + 2, 1) if flagged else 0
                if kind:
                    return f" with a {_LINK_TYPES.get(kind, 'user-defined link')}"
        return ""

    # Datasets and attributes

    def dataspace(self, message: Message, path: str) -> tuple[int, ...]:
        """IV.A.2.b: the shape."""
        version, rank = self._uint(message.start, 1), self._uint(message.start + 1, 1)
        if version not in (1, 2) or rank > MAX_RANK:
            raise ValueError(f"damaged: the shape of {path!r} has version {version} and rank {rank}.")
        if version == 2 and self._uint(message.start + 3, 1) == 2:
            return (0,)  # a "null" dataspace: no elements
        start = message.start + (8 if version == 1 else 4)
        if start + 8 * rank > message.start + message.size:
            raise ValueError(f"damaged: the shape of {path!r} is cut short.")
        return tuple(self._uint(start + 8 * axis, 8) for axis in range(rank))

    def datatype(self, message: Message, path: str) -> Datatype:
        """IV.A.2.d: what an element is."""
        start, first, size = message.start, self._uint(message.start, 1), self._uint(message.start + 4, 4)
        kind = first & 15
        name = _CLASSES[kind] if kind < len(_CLASSES) else "unknown"
        if kind == _VARIABLE:
            return Datatype("variable-length string" if self._uint(start + 1, 1) & 15 == 1 else name, size)
        if kind == _INTEGER:
            return Datatype(name, size, self._integer(start, size, path))
        if kind != _FLOAT:
            return Datatype(name, size)
        widths = (2, 2, 1, 1, 1, 1, 4)
        places = (8, 10, 12, 13, 14, 15, 16)
        dtype = _FLOATS.get(tuple(self._uint(start + p, w) for p, w in zip(places, widths, strict=True)))
        if dtype is None or dtype.itemsize != size:
            raise ValueError(f"{path!r} holds floats that are not IEEE or bfloat16.")
        order = self._uint(start + 1, 1) & 0x41
        if order > (dtype.kind == "f"):
            raise ValueError(f"{path!r} holds floats in an order of bytes that NumPy does not have.")
        return Datatype(name, size, dtype.newbyteorder(">" if order else "<"))

    def _integer(self, start: int, size: int, path: str) -> np.dtype:
        """Bits 0 and 3 of the class's flags: the order of bytes, and whether there is a sign."""
        flags = self._uint(start + 1, 1)
        if size not in (1, 2, 4, 8) or (self._uint(start + 8, 2), self._uint(start + 10, 2)) != (0, 8 * size):
            raise ValueError(f"{path!r} holds integers that are not made of 1, 2, 4 or 8 whole bytes.")
        return np.dtype(f"{'>' if flags & 1 else '<'}{'i' if flags & 8 else 'u'}{size}")

    def storage(self, message: Message, size: int, path: str) -> int:
        """IV.A.2.i, data layout: where the `size` bytes of an array stand."""
        version, kind = self._uint(message.start, 1), self._uint(message.start + 1, 1)
        if version not in (3, 4) or kind > 1:
            what = {2: "in chunks", 3: "as a virtual view of others"}.get(kind, "in an unknown way")
            raise ValueError(f"{path!r} is stored {what}: only arrays stored plainly in this file are read.")
        if kind == 0:  # compact: in the header itself
            start, stored = message.start + 4, self._uint(message.start + 2, 2)
        else:
            start, stored = self._uint(message.start + 2, 8), self._uint(message.start + 10, 8)
        if size == 0:
            return 0
        if stored < size or start + size > len(self.data):
            raise ValueError(f"{path!r} declares {size} bytes, which are not in the file.")
        self._array_bytes -= size
        if self._array_bytes < 0:
            raise ValueError(f"the arrays up to {path!r} are larger than the file: they overlap.")
        return start

    def attribute_name(self, message: Message) -> str:
        """IV.A.2.m, attribute message."""
        name, *_ = self._attribute(message, "an attribute")
        return name

    def strings(self, message: Message, what: str, max_bytes: int) -> list[str]:
        """The strings of an attribute: of fixed length, or each in a global heap (III.E)."""
        _, datatype, shape, start = self._attribute(message, what)
        count = math.prod(shape)
        if count == 0:
            return []
        self._pay(count)
        fixed = datatype.kind == "string"
        if not fixed and (datatype.kind != "variable-length string" or datatype.size != 16):
            raise ValueError(f"{what} holds elements of the type {datatype.kind}, not strings.")
        if start + count * datatype.size > message.start + message.size:
            raise ValueError(f"damaged: {what} is cut short.")
        texts = []
        for element in range(start, start + count * datatype.size, datatype.size):
            if fixed:
                text = self._bytes(element, datatype.size).rstrip(b"\0")
            else:
                length = self._uint(element, 4)
                text = self._heap_object(
                    self._uint(element + 4, 8), self._uint(element + 12, 4), length, what, max_bytes
                )
            if len(text) > max_bytes:
                raise ValueError(f"{what} has a string of {len(text)} bytes; at most {max_bytes} are read.")
            texts.append(_text(text, what))
        return texts

    def _attribute(self, message: Message, what: str) -> tuple[str, Datatype, tuple[int, ...], int]:
        """The name, type and shape of an attribute, and where its elements stand."""
        start, version = message.start, self._uint(message.start, 1)
        if version not in (1, 2, 3) or (version > 1 and self._uint(start + 1, 1)):
            raise ValueError(f"damaged: {what} has the version {version} or a shared type.")
        name_size, type_size, space_size = (self._uint(start + place, 2) for place in (2, 4, 6))
        pad = 8 if version == 1 else 1
        name = start + (9 if version == 3 else 8)
        type_start = name + -(-name_size // pad) * pad
        space = type_start + -(-type_size // pad) * pad
        elements = space + -(-space_size // pad) * pad
        if elements > start + message.size or not 0 < name_size <= MAX_NAME_BYTES:
            raise ValueError(f"damaged: {what} is cut short.")
        text = _text(self._bytes(name, name_size).rstrip(b"\0"), what)
        datatype = self.datatype(Message(_DATATYPE, type_start, type_size), what)
        return text, datatype, self.dataspace(Message(_DATASPACE, space, space_size), what), elements

    def _heap_object(self, address: int, index: int, length: int, what: str, max_bytes: int) -> bytes:
        """III.E, global heap: objects one after the other, found by their index."""
        if length == 0:
            return b""
        if length > max_bytes:
            raise ValueError(f"{what} has a string of {length} bytes; at most {max_bytes} are read.")
        self._expect(address, b"GCOL\1", "global heap")
        place, end = address + 16, address + self._uint(address + 8, 8)
        while place + 16 <= end:
            self._pay()
            here, size = self._uint(place, 2), self._uint(place + 8, 8)
            if here == index and here and length <= size:
                return self._bytes(place + 16, length)
            if here == 0:  # free space to the end
                break
            place += 16 + -(-size // 8) * 8
        raise ValueError(f"damaged: {what} points to a string that is not there.")


def _text(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text: {text[:80]!r}.") from error
