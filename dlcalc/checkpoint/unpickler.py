"""Reads a pickle without running it.

Python's own unpickler imports what a pickle names and calls it, and grows as large as the pickle asks for. This one
interprets the operations itself: what is named must be on the allow-list of ``callables``, a call makes an inert
record, bytes are skipped, and operations and memory are bounded. All protocols, 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from dlcalc.checkpoint.callables import call, find
from dlcalc.checkpoint.faults import DamagedError, RefusedCallError
from dlcalc.checkpoint.inert import Blob, Mapping, Record, Symbol, TensorRef
from dlcalc.checkpoint.source import Source

MAX_OPERATIONS = 100_000_000
"""Half a minute or less; a tensor takes about forty."""
MAX_MEMORY_BYTES = 2 << 30
"""Of what is built, roughly; a tensor takes about two thousand."""
MAX_INTEGER_BYTES = 1024
MAX_TEXT_BYTES = 1 << 20
"""Longer texts are skipped like bytes: nobody reads them in a summary."""

_SLOT_BYTES, _SMALL_BYTES, _CONTAINER_BYTES, _RECORD_BYTES = 8, 32, 64, 128

Operation = Callable[["_Machine"], None]

_STOP = ord(".")
_OPERATIONS: list[Operation | None] = [None] * 256


def _no_storages(_: object) -> object:
    raise DamagedError("damaged: its pickle refers to storages where there are none")


def unpickle(source: Source, *, persistent: Callable[[object], object] = _no_storages) -> Any:  # noqa: ANN401
    """The object at ``source``, out of inert parts; ``persistent`` says what its persistent ids stand for."""
    machine = _Machine(source, persistent)
    start = source.position
    try:
        return machine.run()
    except (IndexError, ValueError, struct.error) as error:
        where = source.position - start
        raise DamagedError(f"damaged: its pickle makes no sense at byte {where:,}") from error


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, source: Source, persistent: Callable[[object], object]) -> None:
        self.take = source.take
        self.source = source
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        """The stacks below each mark."""
        self.memo: list[Any] = []
        self.scattered: dict[int, Any] = {}
        """Memo entries out of order."""
        self.left_bytes = MAX_MEMORY_BYTES

    def run(self) -> Any:  # noqa: ANN401
        source, operations = self.source, _OPERATIONS
        for _ in range(MAX_OPERATIONS):
            if source.at == len(source.chunk):
                code = source.take(1)[0]
            else:
                code = source.chunk[source.at]
                source.at += 1
            if code == _STOP:
                return self.stack.pop()
            operation = operations[code]
            if operation is None:
                raise DamagedError(f"damaged: its pickle has an operation 0x{code:02x}, which does not exist")
            operation(self)
        raise DamagedError(f"its pickle takes more than {MAX_OPERATIONS:,} operations, which no checkpoint needs")

    def charge(self, n_bytes: int) -> None:
        self.left_bytes -= n_bytes
        if self.left_bytes < 0:
            raise DamagedError(
                f"its pickle unfolds to more than {MAX_MEMORY_BYTES >> 20:,} MiB, which no checkpoint needs"
            )

    def push(self, value: object, n_bytes: int) -> None:
        """Put ``value`` on the stack, at its price. The slot on the stack is paid for by the limit of operations."""
        self.charge(n_bytes)
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def text(self, n_bytes: int) -> None:
        if n_bytes > MAX_TEXT_BYTES:
            self.blob(n_bytes)
        else:
            self.push(self.take(n_bytes).decode("utf-8", "backslashreplace"), n_bytes + _CONTAINER_BYTES)

    def blob(self, n_bytes: int) -> None:
        self.source.skip(n_bytes)
        self.push(Blob(n_bytes), _CONTAINER_BYTES)

    def integer(self, n_bytes: int) -> None:
        if not 0 <= n_bytes <= MAX_INTEGER_BYTES:
            raise DamagedError(f"its pickle has an integer of {n_bytes:,} bytes, which no checkpoint needs")
        self.push(int.from_bytes(self.take(n_bytes), "little", signed=True), n_bytes + _SMALL_BYTES)

    def remember(self, index: int) -> None:
        value = self.stack[-1]
        if index == len(self.memo):
            self.memo.append(value)
        elif index < len(self.memo):
            self.memo[index] = value
        else:
            self.charge(2 * _CONTAINER_BYTES)
            self.scattered[index] = value

    def recall(self, index: int) -> None:
        if index < len(self.memo):
            self.stack.append(self.memo[index])
        elif index in self.scattered:
            self.stack.append(self.scattered[index])
        else:
            raise DamagedError("damaged: its pickle refers to what was never there")

    def invoke(self, function: object, args: object) -> None:
        made = call(function, args)
        self.push(made, _RECORD_BYTES)
        if isinstance(made, Mapping):
            self.charge(_SLOT_BYTES * len(made.flat))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.content = target.content or Mapping()
            target = target.content
        if len(items) % 2 or not isinstance(target, Mapping):
            raise DamagedError("damaged: its pickle sets items of what is no mapping")
        self.charge(_SLOT_BYTES * len(items))
        target.flat.extend(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items = target.items or []
            target = target.items
        if not isinstance(target, list):
            raise DamagedError("damaged: its pickle appends to what is no list")
        self.charge(_SLOT_BYTES * len(items))
        target.extend(items)


# ---- the operations


def _operation(code: int) -> Callable[[Operation], Operation]:
    def registered(operation: Operation) -> Operation:
        _OPERATIONS[code] = operation
        return operation

    return registered


def _constant(code: int, value: object) -> None:
    def push(machine: _Machine) -> None:
        machine.stack.append(value)

    _OPERATIONS[code] = push


def _sized(code: int, layout: str, then: Callable[[_Machine, int], None]) -> None:
    """An operation with a number after it, which ``then`` is given."""
    packed = struct.Struct(layout)
    unpack, size = packed.unpack_from, packed.size

    def operation(machine: _Machine) -> None:
        source = machine.source
        at = source.at
        if at + size > len(source.chunk):
            then(machine, unpack(source.take(size))[0])
        else:
            source.at = at + size
            then(machine, unpack(source.chunk, at)[0])

    _OPERATIONS[code] = operation


_constant(ord("N"), None)
_constant(0x88, True)  # NEWTRUE
_constant(0x89, False)  # NEWFALSE
_constant(ord(")"), ())

_sized(0x80, "<B", lambda machine, number: None)  # PROTO
_sized(0x95, "<Q", lambda machine, number: None)  # FRAME
_sized(ord("K"), "<B", lambda machine, number: machine.stack.append(number))
_sized(ord("M"), "<H", lambda machine, number: machine.push(number, _SMALL_BYTES))
_sized(ord("J"), "<i", lambda machine, number: machine.push(number, _SMALL_BYTES))
_sized(ord("G"), ">d", lambda machine, number: machine.push(number, _SMALL_BYTES))
_sized(0x8A, "<B", _Machine.integer)  # LONG1
_sized(0x8B, "<i", _Machine.integer)  # LONG4
_sized(0x8C, "<B", _Machine.text)  # SHORT_BINUNICODE
_sized(ord("X"), "<I", _Machine.text)
_sized(0x8D, "<Q", _Machine.text)  # BINUNICODE8
_sized(ord("U"), "<B", _Machine.text)  # SHORT_BINSTRING
_sized(ord("T"), "<I", _Machine.text)  # BINSTRING
_sized(ord("C"), "<B", _Machine.blob)  # SHORT_BINBYTES
_sized(ord("B"), "<I", _Machine.blob)
_sized(0x8E, "<Q", _Machine.blob)  # BINBYTES8
_sized(0x96, "<Q", _Machine.blob)  # BYTEARRAY8
_sized(ord("h"), "<B", _Machine.recall)
_sized(ord("j"), "<I", _Machine.recall)
_sized(ord("q"), "<B", _Machine.remember)
_sized(ord("r"), "<I", _Machine.remember)


def _extension(_: _Machine, number: int) -> None:
    raise RefusedCallError(f"the copyreg extension {number}")


_sized(0x82, "<B", _extension)
_sized(0x83, "<H", _extension)
_sized(0x84, "<i", _extension)


@_operation(ord("("))
def _mark(machine: _Machine) -> None:
    machine.charge(_CONTAINER_BYTES)
    machine.outer.append(machine.stack)
    machine.stack = []


@_operation(ord("0"))
def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


@_operation(ord("1"))
def _pop_mark(machine: _Machine) -> None:
    machine.since_mark()


@_operation(ord("2"))
def _duplicate(machine: _Machine) -> None:
    machine.stack.append(machine.stack[-1])


@_operation(0x94)
def _memoize(machine: _Machine) -> None:
    if machine.scattered:
        machine.remember(len(machine.memo) + len(machine.scattered))
    else:
        machine.memo.append(machine.stack[-1])


@_operation(ord("p"))
def _put(machine: _Machine) -> None:
    machine.remember(_index(machine.source.line()))


@_operation(ord("g"))
def _get(machine: _Machine) -> None:
    machine.recall(_index(machine.source.line()))


def _index(line: bytes) -> int:
    index = _whole(line)
    if not 0 <= index < 1 << 32:
        raise DamagedError("damaged: its pickle refers to what was never there")
    return index


# numbers and texts as lines, of protocol 0


@_operation(ord("I"))
def _int_line(machine: _Machine) -> None:
    line = machine.source.line()
    machine.push({b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else _whole(line), _SMALL_BYTES)


@_operation(ord("L"))
def _long_line(machine: _Machine) -> None:
    machine.push(_whole(machine.source.line().rstrip(b"L")), MAX_INTEGER_BYTES)


def _whole(line: bytes) -> int:
    if len(line) > 2 * MAX_INTEGER_BYTES:
        raise DamagedError(f"its pickle has an integer of {len(line):,} digits, which no checkpoint needs")
    return int(line)


@_operation(ord("F"))
def _float_line(machine: _Machine) -> None:
    machine.push(float(machine.source.line()), _SMALL_BYTES)


@_operation(ord("S"))
def _string_line(machine: _Machine) -> None:
    line = machine.source.line()
    machine.push(line[1:-1].decode("latin-1"), len(line) + _CONTAINER_BYTES)


@_operation(ord("V"))
def _unicode_line(machine: _Machine) -> None:
    line = machine.source.line()
    text = line.decode("raw-unicode-escape").encode("utf-8", "backslashreplace").decode("utf-8")
    machine.push(text, len(text) + _CONTAINER_BYTES)


# containers


@_operation(ord("]"))
def _empty_list(machine: _Machine) -> None:
    machine.push([], _CONTAINER_BYTES)


_OPERATIONS[0x8F] = _empty_list  # EMPTY_SET: nobody needs it to be one


@_operation(ord("}"))
def _empty_dict(machine: _Machine) -> None:
    machine.push(Mapping(), 2 * _CONTAINER_BYTES)


@_operation(ord("l"))
def _list(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.push(items, _CONTAINER_BYTES)


_OPERATIONS[0x91] = _list  # FROZENSET


@_operation(ord("d"))
def _dict(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.push(Mapping(), 2 * _CONTAINER_BYTES)
    machine.set_items(items)


@_operation(ord("t"))
def _tuple(machine: _Machine) -> None:
    items = tuple(machine.since_mark())
    machine.push(items, _CONTAINER_BYTES + _SLOT_BYTES * len(items))


def _short_tuple(code: int, length: int) -> None:
    def operation(machine: _Machine) -> None:
        stack = machine.stack
        if len(stack) < length:
            raise IndexError
        stack[-length:] = (tuple(stack[-length:]),)
        machine.charge(_CONTAINER_BYTES + _SLOT_BYTES * length)

    _OPERATIONS[code] = operation


_short_tuple(0x85, 1)
_short_tuple(0x86, 2)
_short_tuple(0x87, 3)


@_operation(ord("a"))
def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.append([item])


@_operation(ord("e"))
def _appends(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.append(items)


_OPERATIONS[0x90] = _appends  # ADDITEMS


@_operation(ord("s"))
def _set_item(machine: _Machine) -> None:
    value = machine.stack.pop()
    key = machine.stack.pop()
    machine.set_items([key, value])


@_operation(ord("u"))
def _set_items(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.set_items(items)


# classes and calls


def _name(part: object) -> str:
    if not isinstance(part, str):
        raise DamagedError("damaged: its pickle names a class by what is no text")
    return part


def _line_name(machine: _Machine) -> str:
    return machine.source.line().decode("utf-8", "backslashreplace")


@_operation(ord("c"))
def _global(machine: _Machine) -> None:
    module = _line_name(machine)
    machine.push(find(module, _line_name(machine)), 2 * _CONTAINER_BYTES)


@_operation(0x93)
def _stack_global(machine: _Machine) -> None:
    name = _name(machine.stack.pop())
    machine.push(find(_name(machine.stack.pop()), name), 2 * _CONTAINER_BYTES)


@_operation(ord("R"))
def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.invoke(machine.stack.pop(), args)


_OPERATIONS[0x81] = _reduce  # NEWOBJ: to make an object of a class is as inert as to call it


@_operation(0x92)
def _newobj_ex(machine: _Machine) -> None:
    machine.stack.pop()  # keyword arguments
    _reduce(machine)


@_operation(ord("i"))
def _inst(machine: _Machine) -> None:
    module = _line_name(machine)
    symbol = find(module, _line_name(machine))
    machine.invoke(symbol, tuple(machine.since_mark()))


@_operation(ord("o"))
def _obj(machine: _Machine) -> None:
    function, *args = machine.since_mark() or [None]
    machine.invoke(function, tuple(args))


@_operation(ord("b"))
def _build(machine: _Machine) -> None:
    """Set an object's state. Of a mapping (the metadata of a state dict) and of a tensor, it adds nothing."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Record):
        target.state = state
    elif isinstance(target, Symbol) or not isinstance(target, (Mapping, TensorRef, list)):
        raise DamagedError("damaged: its pickle sets the state of what has none")


@_operation(ord("P"))
def _persistent_line(machine: _Machine) -> None:
    machine.push(machine.persistent(_line_name(machine)), _RECORD_BYTES)


@_operation(ord("Q"))
def _persistent(machine: _Machine) -> None:
    machine.push(machine.persistent(machine.stack.pop()), _RECORD_BYTES)
