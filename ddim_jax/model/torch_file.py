"""Tensors out of files that `torch.save` wrote, without PyTorch and without running anything that the file names.

    zip:    NAME/data.pkl, a pickle whose tensors point to NAME/data/KEY, raw numbers (PyTorch 1.6 and newer)
    legacy: four pickles (a magic number, a protocol, the system, the object), a list of keys, the numbers of each (older)

A pickle is a program that may call any function which it can name. The names that `torch.save` uses for tensors are
given functions of our own here; every other name is refused.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Strings, since a pickle can do nothing with a string.
_STORAGES = {"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16", "LongStorage": "i8",
             "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote: numbers, strings and containers, with each tensor as a read-only NumPy array.

    Args:
        path: a file of either format.

    Returns:
        The object; bfloat16 as ml_dtypes has it.

    Raises:
        ValueError: no such file, another format, a truncated or damaged one, or one that holds anything else.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); give the path of a checkpoint."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no PyTorch checkpoint of tensors, or a damaged one ({reason}); nothing in it was run."
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        (program,) = (
            name
            for name in archive.namelist()
            if name.endswith("/data.pkl") and name.count("/") == 1
        )
        folder = program.removesuffix("data.pkl")
        big = (
            f"{folder}byteorder" in archive.namelist()
            and archive.read(f"{folder}byteorder") == b"big"
        )
        storages: dict[str, np.ndarray] = {}

        def storage(kind: str, key: str, count: int) -> np.ndarray:
            if key not in storages:
                info = archive.getinfo(f"{folder}data/{key}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} is compressed, as PyTorch's never are")
                numbers = np.frombuffer(archive.read(info), _dtype(kind, big))
                if len(numbers) != count:
                    raise ValueError(
                        f"{info.filename} has {len(numbers)} numbers instead of {count}"
                    )
                storages[key] = numbers
            return storages[key]

        return _unpickle(io.BytesIO(archive.read(program)), storage)


def _read_legacy(file: BinaryIO) -> Any:
    def refuse(kind: str, key: str, count: int) -> np.ndarray:
        raise ValueError("a tensor where the file's header should be")

    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if _unpickle(file, refuse) != _MAGIC or _unpickle(file, refuse) != _PROTOCOL:
        raise ValueError("another format")
    big = not _unpickle(file, refuse)["little_endian"]
    storages: dict[str, np.ndarray] = {}

    def storage(kind: str, key: str, count: int) -> np.ndarray:
        # Its numbers come after the object: room for them, no more than the file can fill.
        dtype = _dtype(kind, big)
        if key not in storages:
            if not 0 <= count <= length // dtype.itemsize:
                raise ValueError(f"a tensor of {count} numbers in a file of {length} bytes")
            storages[key] = np.empty(count, dtype)
        return storages[key]

    content = _unpickle(file, storage)
    for key in _unpickle(file, refuse):
        room = storages[key]
        count = np.frombuffer(file.read(8), ">i8" if big else "<i8")[0]
        if count != len(room) or file.readinto(room.view(np.uint8).data) != room.nbytes:  # type: ignore[attr-defined]
            raise ValueError("the file ends within a tensor")
    return content


def _dtype(kind: str, big: bool) -> np.dtype:
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)
    return dtype.newbyteorder(">" if big else "<")


def _unpickle(file: Any, storage: Callable[[str, str, int], np.ndarray]) -> Any:
    """One object, in which `storage(kind, key, count)` gives the numbers behind tensors."""

    def tensor(numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        if (
            not isinstance(numbers, np.ndarray)
            or len(size) != len(stride)
            or min(offset, *size, *stride, 0) < 0
        ):
            raise ValueError(f"a tensor with offset {offset}, size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(numbers):
            raise ValueError(f"a tensor of size {tuple(size)} over {len(numbers)} numbers")
        steps = [step * numbers.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(
            numbers[offset:], tuple(size), steps, writeable=False
        )

    # Made anew for every object, so that nothing a pickle does to them outlives it.
    known: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": lambda *items: tuple(*items),
        **{f"torch.{name}": kind for name, kind in _STORAGES.items()},
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise pickle.UnpicklingError(
                    f"it names {module}.{name}, which is no part of a tensor"
                )
            return known[f"{module}.{name}"]

        def persistent_load(self, pid: Any) -> np.ndarray:
            what, kind, key, _, count, *view = pid
            if what != "storage" or kind not in _STORAGES.values() or any(view):
                raise pickle.UnpicklingError(f"it holds a {what} of {kind}")
            return storage(kind, str(key), int(count))

    return Reader(file).load()
