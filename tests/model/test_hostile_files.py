"""Damaged and hostile checkpoints: each is read rightly or refused in one sentence, soon."""

import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from ddim_jax.model.torch_file import read_torch_file
from tests.model.torch_writer import write_legacy, write_zip

GLOBALS = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00ctorch\nFloatStorage\nq\x01"
STORAGE = b"(X\7\0\0\0storageh\x01X\1\0\0\0%bX\3\0\0\0cpuK%ctQ"  # key, count


def storage(key=b"0", count=4):
    return STORAGE % (key, bytes([count]))


def rebuild(numbers, offset=b"K\0", size=b"(K\4t", stride=b"(K\1t"):
    return b"h\0(" + numbers + offset + size + stride + b"\x89}tR"


def named(*values):
    """A dict of values; the names that all pickles here use stand under _."""
    items = b"".join(b"X\1\0\0\0%c" % (97 + i % 26) + value for i, value in enumerate(values))
    return b"\x80\2}(X\1\0\0\0_" + GLOBALS + b"\x86" + items + b"u."


def in_zip(path, program, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, numbers in members.items():
            archive.writestr(f"archive/data/{key.strip('_')}", numbers)
    return path


NUMBERS = np.arange(4, dtype=np.float32).tobytes()
DOUBLED = b")" + b"q\2h\2\x86" * 88  # a tuple of itself twice, 2⁸⁸ leaves

HOSTILE = {
    "a tensor as storage": (named(rebuild(rebuild(storage()))), "without a storage"),
    "a number as storage": (named(rebuild(b"K\1")), "without a storage"),
    "no storage": (named(rebuild(storage(b"7"))), "lacks the numbers 7"),
    "another length": (named(rebuild(storage(), size=b"(K\3t"), storage(count=3)), "differ about"),
    "too long": (named(rebuild(storage(count=5))), "has 4 numbers instead of 5"),
    "expanded": (named(rebuild(storage(), size=b"(J\0\0\0\x7ft", stride=b"(K\0t")), "repeats"),
    "overlapping": (named(rebuild(storage(), size=b"(K\2K\2t", stride=b"(K\1K\1t")), "repeats"),
    "shared too often": (
        named(*[rebuild(storage(b"1", 200), size=b"(K\xc8t")] * 100),
        "share more",
    ),
    "a huge stride": (
        named(rebuild(storage(), stride=b"(\x8a\x08" + b"\xff" * 7 + b"\x7ft")),
        "not a whole",
    ),
    "a nested key": (b"}" + DOUBLED + b"K\1s.", "a key of type tuple"),
    "a nested size": (named(rebuild(storage(), size=b"(" + DOUBLED + b"t")), "not a whole number"),
    "colliding keys": (b"}(" + b"\x8a\x08" + b"\xff" * 7 + b"\x1fK\1u.", "a key of type int"),
    "a memo of gigabytes": (b"}r\xff\xff\xff\x7f.", None),  # number 2³¹−1: an entry, not a table
    "a string of gigabytes": (b"\x8d" + struct.pack("<Q", 2**40) + b"x.", "expected"),
    "more taken than made": (b"}(\x85.", "takes more"),
    "attributes of a name": (b"ctorch\nSize\n}X\1\0\0\0aK\1sb)\x85R.", None),
    "a name as string": (b"X\x0a\0\0\0torch.Size)\x85R.", "calls something else"),
    "without an end": (b"}", "exhausted|end"),
    "text instructions": (b"(I1\nI2\ntl.", "which no tensor needs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path, name):
    program, message = HOSTILE[name]
    path = in_zip(tmp_path / "x.pt", program, _0=NUMBERS, _1=bytes(800))
    tracemalloc.start()
    try:
        if message is None:
            read_torch_file(path)
        else:
            with pytest.raises(ValueError, match=rf"damaged \(.*({message})") as error:
                read_torch_file(path)
            assert len(str(error.value)) < 400
            assert "\n" not in str(error.value)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1e6 + 100 * path.stat().st_size


def test_a_pickle_of_too_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr("ddim_jax.model.tensor_pickle.MAX_INSTRUCTIONS", 1000)
    for count, message in ((2000, "more than 1,000 instructions"), (900, None)):
        path = in_zip(tmp_path / "x.pt", b"](" + b"}" * count + b"e.")
        if message:
            with pytest.raises(ValueError, match=message):
                read_torch_file(path)
    assert len(read_torch_file(path)) == 900


def test_the_honest_pickle_of_these_tests_is_read(tmp_path):
    path = in_zip(tmp_path / "x.pt", named(rebuild(storage()), rebuild(storage())), _0=NUMBERS)
    content = read_torch_file(path)
    assert [content[name].tolist() for name in "ab"] == 2 * [[0, 1, 2, 3]]


def legacy(path, program, keys, *numbers):
    header = {"protocol_version": 1001, "little_endian": True}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, header)]
    path.write_bytes(b"".join([*parts, program, pickle.dumps(keys, 2), *numbers]))
    return path


def test_legacy_files_whose_numbers_are_missing_or_told_twice(tmp_path):
    program = named(rebuild(storage()), rebuild(storage(b"1")))
    numbers = struct.pack("<q", 4) + NUMBERS
    path = legacy(tmp_path / "x.pt", program, ["0", "1"], numbers, numbers)
    assert read_torch_file(path)["b"].tolist() == [0, 1, 2, 3]
    for keys, message in (
        (["0"], "lacks the numbers of 1"),
        ([], "lacks the numbers of 2"),
        (["0", "0"], "'0'"),
        (["0", "1", "2"], "'2'"),
    ):
        legacy(path, program, keys, numbers, numbers, numbers)
        with pytest.raises(ValueError, match=message):
            read_torch_file(path)
    legacy(path, program, ["0", "1"], numbers, numbers[:-1])
    with pytest.raises(ValueError, match="ends within a tensor"):
        read_torch_file(path)


def test_members_that_are_packed_or_overlap(tmp_path):
    path = in_zip(tmp_path / "x.pt", named(rebuild(storage())), _0=NUMBERS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/zeros", b"\0" * 10_000_000)
    with pytest.raises(ValueError, match="archive/zeros is compressed"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", named(rebuild(storage())))
        archive.writestr("archive/data/0", NUMBERS * 1000)
        (*_, member) = archive.filelist
        for i in range(50):  # 50 members in one place
            twin = zipfile.ZipInfo(f"archive/data/{i + 1}")
            twin.header_offset, twin.CRC = member.header_offset, member.CRC
            twin.file_size = twin.compress_size = member.file_size
            archive.filelist.append(twin)
    with pytest.raises(ValueError, match="its members overlap"):
        read_torch_file(path)


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="is not an ordinary file"):
            read_torch_file(type(tmp_path)(path))


def mutations(content, rng, count):
    """Flipped bytes, cuts, and pieces moved within a file."""
    for _ in range(count):
        changed = bytearray(content)
        a, b = sorted(rng.integers(0, len(content), 2))
        match rng.integers(4):
            case 0:
                for place in rng.integers(0, len(content), rng.integers(1, 4)):
                    changed[place] = rng.integers(256)
            case 1:
                changed = changed[: max(a, 1)]
            case 2:
                changed[a:b] = b""
            case 3:
                changed[a:a] = content[b : b + 40]
        yield bytes(changed)


def test_hundreds_of_damaged_files_are_refused_or_read_from_their_own_bytes(tmp_path, torch):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=6).astype(np.float32), "b": np.arange(9), "c": [{"d": 1.5}]}
    write_zip(tmp_path / "zip", arrays, torch)
    write_legacy(tmp_path / "legacy", arrays, torch)
    with zipfile.ZipFile(tmp_path / "zip") as archive:
        program = archive.read("archive/data.pkl")
        numbers = {f"_{key}": archive.read(f"archive/data/{key}") for key in "01"}
    path, read, messages = tmp_path / "x.pt", 0, set()
    for name in ("zip", "legacy", "pickle"):
        content = program if name == "pickle" else (tmp_path / name).read_bytes()
        for changed in mutations(content, rng, 150):
            if name == "pickle":
                in_zip(path, changed, **numbers)
            else:
                path.write_bytes(changed)
            try:
                result = read_torch_file(path)
            except ValueError as error:
                messages.add(str(error))
                continue
            read += 1
            values = result.values() if isinstance(result, dict) else []
            for array in (value for value in values if isinstance(value, np.ndarray)):
                assert array.tobytes() in path.read_bytes()
    assert all(text.startswith(str(path)) and "\n" not in text for text in messages)
    assert 5 < read < 300  # some damage meets only numbers, or nothing
