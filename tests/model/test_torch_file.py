"""Files of `torch.save`: what they hold, and that nothing in them is run, whatever they are."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddim_jax.model import load_pretrained
from ddim_jax.model.torch_file import read_torch_file
from tests.model.published import HINTS, OFFICIAL, diffusers_folder, weights
from tests.model.torch_writer import Tensor, fake_torch, write_legacy, write_zip


def test_shared_and_transposed_storages(tmp_path, torch):
    numbers = np.arange(24, dtype=np.float32)
    content = {
        "a": Tensor(numbers[:6].reshape(2, 3), numbers, offset=4, stride=(1, 2)),
        "b": Tensor(numbers, numbers),
    }
    write_zip(tmp_path / "views.pt", content, torch)
    views = read_torch_file(tmp_path / "views.pt")
    np.testing.assert_array_equal(views["a"], [[4, 6, 8], [5, 7, 9]])
    np.testing.assert_array_equal(views["b"], numbers)


class Evil:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_ever_run(tmp_path, torch):
    target = tmp_path / "was_run"
    write_zip(
        tmp_path / "zip.pt", {"conv_in.weight": np.zeros(2, np.float32), "x": Evil(target)}, torch
    )
    write_legacy(
        tmp_path / "legacy.pt",
        {"conv_in.weight": np.zeros(2, np.float32), "x": Evil(target)},
        torch,
    )
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(target)))
    (tmp_path / "magic.pt").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(Evil(target))
    )
    diffusers_folder(tmp_path / "folder", {"x": Evil(target)}, "bin", torch)
    for name in ("zip.pt", "legacy.pt", "bare.pt", "magic.pt", "folder"):
        with pytest.raises(
            ValueError,
            match=r"it names posix\.system, not part of a tensor.*nothing in it was run",
        ) as error:
            load_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not target.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert target.exists()  # the test's own file is a working attack


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"ctorch.serialization\nload\n.",
        b"ccollections\nnamedtuple\n.",
        b"\x80\x04\x8c\x05torch\x8c\x12FloatStorage.upper\x93.",  # an attribute of a known name
        b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI0\n(t(tI0\nNtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\nI1\nsb.",
        b"(S'storage'\nS'f4'\nS'0'\nS'cpu'\nI999999999999\ntQ.",
        b"garbage",
        b"",
    ],
)
def test_hostile_programs_are_refused(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(
        ValueError, match=r"x\.pt (is not a PyTorch checkpoint|holds a \w+, not tensors)"
    ) as error:
        load_pretrained(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (1, 1)),
        (3, (2,), (-1,)),
        (0, (5,), (1,)),
    ],
)
def test_a_tensor_reaches_no_further_than_its_numbers(tmp_path, torch, offset, size, stride):
    numbers = np.arange(4, dtype=np.float32)
    write_zip(tmp_path / "x.pt", {"a": Tensor(numbers, numbers, offset, stride, size)}, torch)
    with pytest.raises(ValueError, match="a tensor "):
        load_pretrained(tmp_path / "x.pt")


def test_damaged_and_foreign_files(tmp_path, torch):
    tensors = weights(OFFICIAL)
    write_zip(tmp_path / "zip", tensors, torch)
    write_legacy(tmp_path / "legacy", tensors, torch)
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("zip", "legacy", "safe.safetensors"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 1, 100, len(content) // 2, len(content) - 1):
            (tmp_path / f"cut_{name}").write_bytes(content[:length])
            with pytest.raises(
                ValueError, match=rf"cut_{name} (is not a PyTorch checkpoint|cannot be read as)"
            ) as error:
                load_pretrained(tmp_path / f"cut_{name}", **HINTS)
            assert "\n" not in str(error.value)
    content = bytearray((tmp_path / "zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped is not a PyTorch checkpoint.*CRC"):
        load_pretrained(tmp_path / "flipped", **HINTS)
    write_zip(tmp_path / "packed", tensors, torch, compress=True)
    with pytest.raises(ValueError, match="is compressed, as PyTorch's never are"):
        load_pretrained(tmp_path / "packed", **HINTS)
    write_zip(tmp_path / "words", {"a": "text"}, torch)
    with pytest.raises(ValueError, match="words has a str under a, where a tensor should be"):
        load_pretrained(tmp_path / "words")
    for content in ([], 3, {}):
        write_zip(tmp_path / "other", content, torch)
        with pytest.raises(ValueError, match=r"other holds a \w+, not tensors by name"):
            load_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"nowhere cannot be read \(No such file or directory\)"):
        load_pretrained(tmp_path / "nowhere")


def test_live_the_writer_of_these_tests_writes_what_pytorch_reads(tmp_path, monkeypatch):
    real = pytest.importorskip("torch", reason="PyTorch is not installed")
    content = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    with monkeypatch.context() as patch:
        torch = fake_torch(patch)
        write_zip(tmp_path / "zip", content, torch)
        write_legacy(tmp_path / "legacy", content, torch)
    for name in ("zip", "legacy"):
        loaded = real.load(tmp_path / name, weights_only=True)
        assert all(np.array_equal(loaded[key].numpy(), content[key]) for key in content)
