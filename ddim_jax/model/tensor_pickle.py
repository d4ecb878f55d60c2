"""The pickles of `torch.save`, read by a machine that knows only the instructions tensors need.

A pickle is a program that may call any function it can name, so Python's own reader is not used.
Work and memory are bounded: an instruction makes at most one object of constant size, keys are
strings or small numbers, and a tensor stays inside its storage and meets no number of it twice.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MAX_INSTRUCTIONS = 500_000  # a state dict of 1,000 tensors takes 60,000
MAX_SHARING = 4  # bytes of all tensors per byte of the file: weights may stand there as EMA, too
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_KINDS = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
_CALLS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINUNICODE8",
             "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}  # fmt: skip

Storages = Callable[[str, str, int], np.ndarray]  # (dtype, key, count) → the numbers


class _Global(NamedTuple):
    """A name that the pickle refers to; a string cannot imitate it."""

    name: str


class _Machine(NamedTuple):
    """The state of a run: objects, where marks stand among them, and objects by number."""

    stack: list[Any]
    marks: list[int]
    memo: dict[int, Any]


class _Storage(NamedTuple):
    """The numbers behind tensors; a tensor cannot imitate them."""

    numbers: np.ndarray


def run_pickle(file: Any, storages: Storages, file_size: int) -> Any:
    """The object of the pickle that starts here; anything unexpected raises an exception."""
    machine = _Machine([], [], {})
    room = MAX_SHARING * file_size
    for number, (instruction, value, _) in enumerate(pickletools.genops(file)):
        if number == MAX_INSTRUCTIONS:
            raise ValueError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
        made: Any
        match instruction.name:
            case "GLOBAL":
                made = _known(str(value).replace(" ", ".", 1))
            case "STACK_GLOBAL":
                made = _known(".".join(_pop(machine, 2)))
            case "BINPERSID":
                made = _Storage(storages(*_persistent(*_pop(machine, 1))))
            case "REDUCE":
                made = _call(*_pop(machine, 2))
                room -= made.nbytes if isinstance(made, np.ndarray) else 0
                if room < 0:
                    raise ValueError("its tensors share more numbers than the file has")
            case "STOP":
                (result,) = machine.stack
                return result
            case name:
                _step(machine, name, value)
                continue
        machine.stack.append(made)
    raise ValueError("it does not end")


def _step(machine: _Machine, name: str, value: Any) -> None:
    """An instruction that makes or fills a constant or a container."""
    stack, marks, memo = machine
    match name:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            marks.append(len(stack))
        case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
            memo[len(memo) if value is None else value] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[value])
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(_pop(machine, int(name[-1]))))
        case "TUPLE":
            stack.append(tuple(_pop(machine)))
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_DICT":
            stack.append({})
        case "APPEND" | "SETITEM":
            items = _pop(machine, 1 if name == "APPEND" else 2)
            _extend(stack[-1], items, list if name == "APPEND" else dict)
        case "APPENDS" | "SETITEMS":
            items = _pop(machine)
            _extend(stack[-1], items, list if name == "APPENDS" else dict)
        case "BUILD":  # attributes, such as a state dict's _metadata
            _pop(machine, 1)
        case _ if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        case _ if name in _LITERALS:
            stack.append(value)
        case _:
            raise ValueError(f"it has the instruction {name}, which no tensor needs")


def _pop(machine: _Machine, count: int | None = None) -> list[Any]:
    """The newest objects: a number of them, or all since the newest mark."""
    stack, marks, _ = machine
    start = marks.pop() if count is None else len(stack) - count
    if start < (marks[-1] if marks else 0):
        raise ValueError("it takes more than it made")
    items = stack[start:]
    del stack[start:]
    return items


def _extend(container: Any, items: list[Any], kind: Any) -> None:
    """Append to a list, or set the items of a dict."""
    if type(container) is not kind:
        raise ValueError(f"it has a {type(container).__name__} where a {kind.__name__} should be")
    if kind is list:
        container.extend(items)
        return
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing nested tuples can take exponential time, and large numbers can be made to collide.
        if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
            raise ValueError(f"it has a key of type {type(key).__name__}")
        container[key] = value


def _known(name: str) -> _Global:
    if name not in _CALLS and name not in _KINDS:
        raise ValueError(f"it names {name[:100]}, not part of a tensor")
    return _Global(name)


def _persistent(pid: Any) -> tuple[str, str, int]:
    """(dtype, key, count) of a storage."""
    parts: Any = pid if type(pid) is tuple and 5 <= len(pid) < 7 else [None] * 5
    what, kind, key, _, count, *view = parts
    sound = what == "storage" and type(kind) is _Global and type(key) is str
    if not sound or kind.name not in _KINDS or type(count) is not int or count < 0 or any(view):
        raise ValueError("it holds something else than the numbers of a tensor")
    return _KINDS[kind.name], key, count


def _call(function: Any, arguments: Any) -> Any:
    """What the pickle may call."""
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("torch._utils._rebuild_tensor_v2"), (storage, offset, size, stride, *_):
            return _tensor(storage, offset, size, stride)
        case _Global("torch._utils._rebuild_parameter"), (np.ndarray() as tensor, *_):
            return tensor
        case _Global("torch.Size"), (tuple() as size,):
            return size
    raise ValueError("it calls something else than what makes a tensor")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage, a size and a stride")
    numbers = storage.numbers
    if len(size) != len(stride) or len(size) > 8:
        raise ValueError(f"a tensor with {len(size)} sizes and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise ValueError("a tensor whose offset, size or stride is not a whole number ≥ 0")
    if 0 in size:
        return numbers[:0].reshape(size)
    reach = 1  # how many numbers the axes up to this one span, innermost first
    for step, count in sorted((step, n) for step, n in zip(stride, size, strict=True) if n > 1):
        if step < reach:
            raise ValueError(f"a tensor of size {size} that repeats numbers, by stride {stride}")
        reach += step * (count - 1)
    if offset + reach > len(numbers):
        raise ValueError(f"a tensor of size {size} over {len(numbers)} numbers")
    steps = [
        numbers.itemsize * (step if n > 1 else 1) for step, n in zip(stride, size, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)
