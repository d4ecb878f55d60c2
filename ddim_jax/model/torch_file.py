"""Read tensors from `torch.save` files, without PyTorch and without running any code in them.

    zip (PyTorch 1.6 and newer): NAME/data.pkl, a pickle, whose tensors point to NAME/data/KEY
    legacy: four pickles (magic number, protocol, system, the object), keys, the numbers of each

Every storage is read whole before its tensors are returned, and no file can make more than a small
multiple of its size.
"""

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .tensor_pickle import Storages, run_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def check_regular(path: Path, wanted: str) -> None:
    """Raise a ValueError unless `path` is an ordinary file: a pipe or a device may never end."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read ({reason}); give {wanted}.") from error
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path} is not an ordinary file; give {wanted}.")


def read_torch_file(path: Path) -> Any:
    """The content: numbers, strings and containers, with tensors as read-only NumPy arrays.

    A file that holds anything else, or is damaged or missing, raises a ValueError.
    """
    check_regular(path, "the path of a checkpoint")
    try:
        with open(path, "rb") as file:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            magic = file.read(4)
            file.seek(0)
            return (_read_zip if magic == b"PK\x03\x04" else _read_legacy)(file, length)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); give the path of a checkpoint."
        ) from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a PyTorch checkpoint of tensors, or is damaged ({reason}); "
            "nothing in it was run."
        ) from error


def _read_zip(file: Any, length: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = next((m for m in members if m.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise ValueError(f"{packed.filename} is compressed, as PyTorch's never are")
        if sum(member.file_size for member in members) > length:
            raise ValueError("its members overlap")
        names = {member.filename for member in members}
        if len(names) < len(members):
            raise ValueError("two of its members have one name")
        (program,) = (name for name in names if name.endswith("/data.pkl") and name.count("/") == 1)
        folder = program.removesuffix("data.pkl")
        big = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"

        def read(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            if f"{folder}data/{key}" not in names:
                raise ValueError(f"it lacks the numbers {key[:100]}")
            numbers = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
            if len(numbers) != count:
                raise ValueError(f"data/{key} has {len(numbers)} numbers instead of {count}")
            return numbers

        return run_pickle(io.BytesIO(archive.read(program)), _once(read, big), length)


def _read_legacy(file: Any, length: int) -> Any:
    def refuse(dtype: str, key: str, count: int) -> np.ndarray:
        raise ValueError("a tensor where the file's header should be")

    file = io.BytesIO(file.read(length))
    if run_pickle(file, refuse, length) != _MAGIC or run_pickle(file, refuse, length) != _PROTOCOL:
        raise ValueError("another format")
    big = not run_pickle(file, refuse, length)["little_endian"]
    waiting: dict[str, np.ndarray] = {}
    reserved = 0

    def reserve(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        # The numbers come after the object.
        nonlocal reserved
        reserved += count * dtype.itemsize
        if reserved > length:
            raise ValueError(f"tensors of {reserved} bytes in a file of {length}")
        return waiting.setdefault(key, np.zeros(count, dtype))

    content = run_pickle(file, _once(reserve, big), length)
    for key in run_pickle(file, refuse, length):
        room = waiting.pop(key)  # KeyError: numbers that no tensor has, or twice
        count = np.frombuffer(file.read(8), _dtype("i8", big))[0]
        if count != len(room) or file.readinto(room.view(np.uint8).data) != room.nbytes:
            raise ValueError("the file ends within a tensor")
    if waiting:
        raise ValueError(f"it lacks the numbers of {len(waiting)} tensors")
    return content


def _once(read: Callable[[np.dtype, str, int], np.ndarray], big: bool) -> Storages:
    """Storages from `read(dtype, key, count)`, each read once; all its tensors must agree on it."""
    known: dict[str, tuple[str, int, np.ndarray]] = {}

    def storage(dtype: str, key: str, count: int) -> np.ndarray:
        if key not in known:
            known[key] = (dtype, count, read(_dtype(dtype, big), key, count))
        *declared, numbers = known[key]
        if declared != [dtype, count]:
            raise ValueError(f"two tensors differ about the numbers {key[:100]}")
        return numbers

    return storage


def _dtype(name: str, big: bool) -> np.dtype:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return dtype.newbyteorder(">" if big else "<")
