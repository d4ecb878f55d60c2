"""CIFAR-10 from a synthetic archive, prepared without TensorFlow, and all that can go wrong."""

import http.server
import os
import shutil
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ddim_jax.config import DataConfig
from ddim_jax.data import cifar10, load_dataset
from tests.data.synthetic import SHAPE, rows, write_archive


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    sha256, splits = write_archive(directory / "cifar-10-binary.tar.gz")
    config = DataConfig("cifar10", data_dir=str(directory), archive_sha256=sha256)
    return config, splits, load_dataset(config, SHAPE)


def test_prepares_a_pre_placed_archive_without_tensorflow(prepared):
    config, splits, train = prepared
    test = load_dataset(config, SHAPE, "test")
    for dataset, split in ((train, "train"), (test, "test")):
        images = dataset.read(np.arange(dataset.size))
        assert images.dtype == np.uint8
        assert rows(images) == rows(splits[split][1])
        labels = {image.tobytes(): label for label, image in zip(*splits[split], strict=True)}
        np.testing.assert_array_equal(
            dataset.label(np.arange(dataset.size)), [labels[image.tobytes()] for image in images]
        )
        assert dataset.classes[:2] == ("airplane", "automobile")
    assert train.flippable
    assert "tensorflow" not in sys.modules


def test_reads_what_is_prepared_without_the_archive(prepared, monkeypatch):
    config, splits, _ = prepared
    monkeypatch.setattr(cifar10, "read_archive", None)
    assert load_dataset(config, SHAPE).size == len(splits["train"][1])


def test_the_stock_builder_reads_it_with_labels(prepared):
    import tensorflow_datasets as tfds

    config, splits, _ = prepared
    source = tfds.builder("cifar10", data_dir=config.data_dir).as_data_source("train")
    pairs = {record["image"].tobytes(): int(record["label"]) for record in source}
    labels, images = splits["train"]
    assert pairs == {
        image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)
    }


def left_over(directory):
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and path.name != "cifar-10-binary.tar.gz"
    ]


def test_offline_and_unprepared_is_one_sentence_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "https://ddim-jax.invalid/cifar-10-binary.tar.gz")
    start = time.monotonic()
    with pytest.raises(
        ValueError,
        match=r"cannot be downloaded .* put cifar-10-binary.tar.gz from https://.* at .*",
    ) as error:
        load_dataset(DataConfig("cifar10", data_dir=str(tmp_path / "new")), SHAPE)
    assert time.monotonic() - start < 5
    assert str(tmp_path / "new" / "cifar-10-binary.tar.gz") in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_silent_server_does_not_stall(tmp_path, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", lambda *_, **__: stop.wait(60))
    monkeypatch.setattr(cifar10, "_ANSWER", 0.1)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no answer"):
        load_dataset(DataConfig("cifar10", data_dir=str(tmp_path)), SHAPE)
    assert time.monotonic() - start < 5
    stop.set()


@pytest.mark.parametrize("kind", ["flipped bit", "truncated"])
def test_a_damaged_archive_is_refused_by_its_checksum(tmp_path, kind):
    path = tmp_path / "cifar-10-binary.tar.gz"
    sha256, _ = write_archive(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if kind == "flipped bit" else content[: len(content) // 2])
    with pytest.raises(
        ValueError,
        match=rf"{path} has the SHA-256 (\w+) and should have {sha256}: if it is an archive of "
        r"your own, give --data.archive-sha256 \1; if not, it is damaged: remove it",
    ):
        load_dataset(DataConfig("cifar10", data_dir=str(tmp_path), archive_sha256=sha256), SHAPE)
    assert left_over(tmp_path) == []


def test_the_real_checksum_is_asked_for_by_default(tmp_path):
    write_archive(tmp_path / "cifar-10-binary.tar.gz")
    with pytest.raises(
        ValueError,
        match="should have c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ):
        load_dataset(DataConfig("cifar10", data_dir=str(tmp_path)), SHAPE)


def test_an_archive_of_something_else_is_refused(tmp_path):
    import hashlib

    path = tmp_path / "other.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    config = DataConfig(
        "cifar10", str(tmp_path), str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    )
    with pytest.raises(ValueError, match="not the CIFAR-10 binary archive"):
        load_dataset(config, SHAPE)
    with pytest.raises(ValueError, match=r"--data.archive .*missing does not exist"):
        load_dataset(DataConfig("cifar10", str(tmp_path), str(tmp_path / "missing")), SHAPE)
    assert left_over(tmp_path) == [path]


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    sha256, _ = write_archive(tmp_path / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10.Image, "fromarray", lambda _: 1 / 0)
    config = DataConfig("cifar10", data_dir=str(tmp_path), archive_sha256=sha256)
    with pytest.raises(ZeroDivisionError):
        load_dataset(config, SHAPE)
    assert left_over(tmp_path) == []
    monkeypatch.undo()
    assert load_dataset(config, SHAPE).size == 60


def test_it_says_nothing_and_leaves_only_the_data(tmp_path, capfd):
    """No "Downloading", no temporary folders; what a killed process left a day ago goes, too."""
    sha256, _ = write_archive(tmp_path / "cifar-10-binary.tar.gz", records=1)
    old, others = tmp_path / ".cifar10-old", tmp_path / ".cifar10-at-work"
    (old / "cifar10").mkdir(parents=True)
    others.mkdir()
    partial = tmp_path / ".partial-7-cifar-10-binary.tar.gz"
    partial.write_bytes(b"half")
    for path in (old, partial):
        os.utime(path, (0, 0))
    load_dataset(DataConfig("cifar10", str(tmp_path), archive_sha256=sha256), SHAPE)
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cifar10", "cifar-10-binary.tar.gz", others.name}
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["3.0.2"]


def test_what_an_interrupted_preparation_left_is_not_taken_for_the_data(tmp_path):
    """Of the stock builder: its folder has a description, but is not yet renamed."""
    sha256, splits = write_archive(tmp_path / "cifar-10-binary.tar.gz", records=1)
    unfinished = tmp_path / "cifar10" / "incomplete.ABCDEF_3.0.2"
    unfinished.mkdir(parents=True)
    (unfinished / "dataset_info.json").write_text("{}")
    train = load_dataset(DataConfig("cifar10", str(tmp_path), archive_sha256=sha256), SHAPE)
    assert rows(train.read(np.arange(5))) == rows(splits["train"][1])
    assert unfinished.is_dir()  # it may be another's, who is at work


def test_of_two_at_once_the_slower_takes_what_the_faster_made(tmp_path, monkeypatch):
    sha256, splits = write_archive(tmp_path / "cifar-10-binary.tar.gz", records=1)
    rename = Path.rename

    def late(path, target):
        if target == tmp_path / "cifar10" / "3.0.2":
            shutil.copytree(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    train = load_dataset(DataConfig("cifar10", str(tmp_path), archive_sha256=sha256), SHAPE)
    assert rows(train.read(np.arange(5))) == rows(splits["train"][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-binary.tar.gz", "cifar10"]


def test_a_place_that_cannot_be_written(tmp_path):
    sha256, _ = write_archive(tmp_path / "own.tar.gz", records=1)
    (tmp_path / "file").write_text("")
    config = DataConfig("cifar10", str(tmp_path / "file"), str(tmp_path / "own.tar.gz"), sha256)
    with pytest.raises(ValueError, match=r"cannot be prepared in .*choose another --data.data-dir"):
        load_dataset(config, SHAPE)


def test_a_dry_run_checks_the_archive_and_prepares_nothing(tmp_path):
    def check(**changes):
        config = DataConfig(**{"source": "cifar10", "data_dir": str(tmp_path)} | changes)
        return load_dataset(config, SHAPE, prepare=False)

    assert (check().size, len(check().classes)) == (50_000, 10)
    sha256, splits = write_archive(tmp_path / "cifar-10-binary.tar.gz")
    dataset = check(archive_sha256=sha256)
    np.testing.assert_array_equal(dataset.read(np.arange(60)), splits["train"][1])
    assert "not yet prepared" in dataset.name
    with pytest.raises(ValueError, match=r"give --data.archive-sha256"):
        check()
    with pytest.raises(ValueError, match=r"--data.archive .*missing does not exist"):
        check(archive=str(tmp_path / "missing"))
    assert left_over(tmp_path) == []


@pytest.fixture
def server(tmp_path):
    """An HTTP server on loopback that serves tmp_path/served."""
    directory = tmp_path / "served"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(directory))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield directory, f"http://127.0.0.1:{httpd.server_port}/archive.tar.gz"
        httpd.shutdown()


def test_downloads_verifies_and_prepares(server, tmp_path, monkeypatch):
    directory, url = server
    monkeypatch.setattr(cifar10, "URL", url)
    sha256, splits = write_archive(directory / "archive.tar.gz")
    data = tmp_path / "data"
    with pytest.raises(ValueError, match="is damaged"):
        load_dataset(DataConfig("cifar10", str(data), archive_sha256="0" * 64), SHAPE)
    assert list(data.iterdir()) == []
    train = load_dataset(DataConfig("cifar10", str(data), archive_sha256=sha256), SHAPE)
    assert rows(train.read(np.arange(60))) == rows(splits["train"][1])
    assert (data / "cifar-10-binary.tar.gz").is_file()


@pytest.mark.parametrize("kind", ["closed early", "silent"])
def test_a_connection_that_breaks(kind, tmp_path, monkeypatch):
    """The server promises 100 bytes, sends 10, and hangs up or falls silent."""
    done = threading.Event()

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
            if kind == "silent":
                done.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{listener.getsockname()[1]}/a")
        monkeypatch.setattr(cifar10, "_SILENCE", 0.2)
        problem = {"closed early": "90 bytes are missing", "silent": "timed out"}[kind]
        with pytest.raises(ValueError, match=rf"was interrupted \({problem}\); run the command"):
            load_dataset(DataConfig("cifar10", data_dir=str(tmp_path)), SHAPE)
        done.set()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_page_is_one_sentence(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", server[1])
    with pytest.raises(ValueError, match=r"cannot be downloaded .*[Nn]ot [Ff]ound"):
        load_dataset(DataConfig("cifar10", str(tmp_path)), SHAPE)
