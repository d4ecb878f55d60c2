"""A CIFAR-10 archive in the official layout, with random images, and TFRecord files."""

import hashlib
import io
import tarfile

import numpy as np

SHAPE = (32, 32, 3)


def rows(images):
    """Images in an order of their own, to compare sets."""
    return sorted(image.tobytes() for image in images)


def write_archive(path, records=12, seed=0):
    """Write the archive; returns (SHA-256, {split: (labels, images NHWC)})."""
    rng = np.random.default_rng(seed)
    content = {"train": [], "test": []}
    with tarfile.open(path, "w:gz") as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            rows = rng.integers(0, 256, (records, 3073), np.uint8)
            rows[:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = rows.size
            archive.addfile(info, io.BytesIO(rows.tobytes()))
            content["test" if name.startswith("test") else "train"].append(rows)
    splits = {}
    for split, parts in content.items():
        rows = np.concatenate(parts)
        splits[split] = (rows[:, 0], rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return hashlib.sha256(path.read_bytes()).hexdigest(), splits


def write_tfrecord(path, contents):
    """A TFRecord file: length, its checksum, content, its checksum."""
    with open(path, "wb") as file:
        for content in contents:
            length = len(content).to_bytes(8, "little")
            file.write(length + _masked_crc(length) + content + _masked_crc(content))


def _masked_crc(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
