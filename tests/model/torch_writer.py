"""Files as `torch.save` writes them, made without PyTorch, and with anything in them."""

import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

_KINDS = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage"}


class Tensor:
    """A tensor to be pickled; `storage` may be shared, as of transposed or sliced ones."""

    def __init__(self, array, storage=None, offset=0, stride=None, size=None):
        self.storage = np.ascontiguousarray(array) if storage is None else storage
        self.size = tuple(array.shape) if size is None else size
        steps = np.ascontiguousarray(array).strides
        self.offset, self.stride = (
            offset,
            tuple(n // array.itemsize for n in steps) if stride is None else stride,
        )

    def __reduce__(self):
        import collections

        marker = Storage(self.storage)
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (
            marker,
            self.offset,
            self.size,
            self.stride,
            False,
            collections.OrderedDict(),
        )


class Storage:
    def __init__(self, numbers):
        self.numbers = numbers


def tensors(content):
    """Every array of nested containers as a Tensor."""
    if isinstance(content, np.ndarray):
        return Tensor(content)
    if isinstance(content, dict):
        return type(content)((name, tensors(value)) for name, value in content.items())
    if isinstance(content, list | tuple):
        return type(content)(tensors(value) for value in content)
    return content


def fake_torch(monkeypatch):
    """Modules with the names that a pickle of tensors refers to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        pass

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def _pickle(content, torch, legacy):
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            key = str(storages.setdefault(id(value.numbers), (len(storages), value.numbers))[0])
            kind = getattr(torch, _KINDS[value.numbers.dtype.str[1:]])
            return ("storage", kind, key, "cpu", value.numbers.size, *([None] if legacy else []))

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue(), {str(number): numbers for number, numbers in storages.values()}


def write_zip(path, content, torch, compress=False):
    program, storages = _pickle(tensors(content), torch, legacy=False)
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path, content, torch):
    program, storages = _pickle(tensors(content), torch, legacy=True)
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(header, file, protocol=2)
        file.write(program)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
