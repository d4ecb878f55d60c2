"""Read tensors from `torch.save` files, without PyTorch and without running any code in them.

    zip (PyTorch 1.6 and newer): NAME/data.pkl, a pickle, whose tensors point to NAME/data/KEY
    legacy: four pickles (magic number, protocol, system, the object), keys, the numbers of each

A pickle is a program that may call any function it can name. Here the names that `torch.save` uses
for tensors map to our own functions, and every other name is rejected.
"""

import functools
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
# Strings, since a pickle cannot call a string.
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """The content: numbers, strings and containers, with tensors as read-only NumPy arrays.

    A file that holds anything else, or is damaged or missing, raises a ValueError.
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
            f"{path} is not a PyTorch checkpoint of tensors, or is damaged ({reason}); "
            "nothing in it was run."
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (program,) = (name for name in names if name.endswith("/data.pkl") and name.count("/") == 1)
        folder = program.removesuffix("data.pkl")
        big = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"

        @functools.cache
        def storage(dtype: str, key: str, count: int) -> np.ndarray:
            info = archive.getinfo(f"{folder}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed, as PyTorch's never are")
            numbers = np.frombuffer(archive.read(info), _dtype(dtype, big))
            if len(numbers) != count:
                raise ValueError(f"{info.filename} has {len(numbers)} numbers instead of {count}")
            return numbers

        return _unpickle(io.BytesIO(archive.read(program)), storage)


def _read_legacy(file: io.BufferedReader) -> Any:
    def refuse(dtype: str, key: str, count: int) -> np.ndarray:
        raise ValueError("a tensor where the file's header should be")

    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if _unpickle(file, refuse) != _MAGIC or _unpickle(file, refuse) != _PROTOCOL:
        raise ValueError("another format")
    big = not _unpickle(file, refuse)["little_endian"]
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: str, key: str, count: int) -> np.ndarray:
        # The numbers come after the object: reserve memory, but no more than the file can fill.
        if key not in storages:
            if not 0 <= count <= length // _dtype(dtype, big).itemsize:
                raise ValueError(f"a tensor of {count} numbers in a file of {length} bytes")
            storages[key] = np.empty(count, _dtype(dtype, big))
        return storages[key]

    content = _unpickle(file, storage)
    for key in _unpickle(file, refuse):
        room = storages[key]
        count = np.frombuffer(file.read(8), _dtype("i8", big))[0]
        if count != len(room) or file.readinto(room.view(np.uint8).data) != room.nbytes:
            raise ValueError("the file ends within a tensor")
    return content


def _dtype(name: str, big: bool) -> np.dtype:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return dtype.newbyteorder(">" if big else "<")


def _unpickle(file: Any, storage: Callable[[str, str, int], np.ndarray]) -> Any:
    """One object, in which `storage(dtype, key, count)` gives the numbers behind tensors."""

    def tensor(numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        sound = isinstance(numbers, np.ndarray) and len(size) == len(stride)
        if not sound or min(offset, *size, *stride, 0) < 0:
            raise ValueError(f"a tensor with offset {offset}, size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(numbers):
            raise ValueError(f"a tensor of size {tuple(size)} over {len(numbers)} numbers")
        steps = [step * numbers.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(
            numbers[offset:], tuple(size), steps, writeable=False
        )

    # Created for every object, so that no pickle can change them for the next one.
    known: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": lambda *items: tuple(*items),
        **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise pickle.UnpicklingError(f"it names {module}.{name}, not part of a tensor")
            return known[f"{module}.{name}"]

        def persistent_load(self, pid: Any) -> np.ndarray:
            what, dtype, key, _, count, *view = pid
            if what != "storage" or dtype not in _STORAGES.values() or any(view):
                raise pickle.UnpicklingError(f"it holds a {what} of {dtype}")
            return storage(dtype, str(key), int(count))

    return Reader(file).load()
