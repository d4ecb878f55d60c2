"""A CIFAR-10 archive in the official layout, with random images."""

import hashlib
import io
import tarfile

import numpy as np


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
