"""Downloads from a server on loopback: broken off, resumed, damaged, silent, absent, shared."""

import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddim_jax import download
from ddim_jax.download import Remote, fetch
from ddim_jax.model import find_inception

CONTENT = np.random.default_rng(0).bytes(300_000)
BREAK = 100_000


class Server(http.server.ThreadingHTTPServer):
    """What it sends, and how; `asked` has the Range header of each request."""

    content, resumes, sent, stalls, delay = CONTENT, True, None, False, 0.0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.released = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"
        self.remote = Remote(self.url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers["Range"])
        time.sleep(server.delay)
        if server.content is None:
            return self.send_error(404)
        start = int(self.headers["Range"].split("=")[1].rstrip("-")) if server.resumes else 0
        self.send_response(206 if server.resumes else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.sent])
        self.wfile.flush()
        if server.stalls:
            server.released.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def files(directory):
    """The names of all files but those of locks."""
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path, capsys):
    path = tmp_path / "new" / "weights.pth"
    fetch(server.remote, path)
    fetch(server.remote, path)
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == ["weights.pth"]
    assert len(server.asked) == 1
    assert capsys.readouterr() == ("", f"downloading {server.url}\n")


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_continues_or_starts_again(server, tmp_path, resumes):
    path = tmp_path / "weights.pth"
    server.sent = BREAK
    with pytest.raises(
        ValueError,
        match=rf"{server.url} cannot be downloaded \(the connection was closed early\); "
        rf"try again to continue after {BREAK} of 300000 bytes, or put the file at {path}\.",
    ):
        fetch(server.remote, path)
    assert files(tmp_path) == ["weights.pth.partial"]
    server.sent, server.resumes = None, resumes
    fetch(server.remote, path)
    assert server.asked == ["bytes=0-", f"bytes={BREAK}-"]
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["weights.pth"]


def test_a_download_that_only_lacks_its_name_is_not_repeated(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
    fetch(server.remote, tmp_path / "weights.pth")
    assert server.asked == []
    assert files(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize("where", ["server", "partial", "too long"])
def test_a_damaged_file_is_removed(server, tmp_path, where):
    damaged = CONTENT[:5] + b"?" + CONTENT[6:]
    partial = tmp_path / "weights.pth.partial"
    if where == "server":
        server.content = damaged
    else:
        partial.write_bytes(damaged[:BREAK] if where == "partial" else CONTENT + b"?")
    with pytest.raises(ValueError, match=r"gave a damaged file \(SHA-256 .* instead of .* removed"):
        fetch(server.remote, tmp_path / "weights.pth")
    assert files(tmp_path) == []
    server.content = CONTENT
    fetch(server.remote, tmp_path / "weights.pth")
    assert files(tmp_path) == ["weights.pth"]


def test_another_file_is_not_downloaded(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT[:BREAK])
    server.content, server.resumes = b"<html>Please sign in</html>", False
    with pytest.raises(ValueError, match=r"\(it has 27 bytes, not 300000\); try again to"):
        fetch(server.remote, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth.partial").read_bytes() == CONTENT[:BREAK]


@pytest.mark.parametrize("sent", [0, BREAK])
def test_a_silent_server_does_not_stall(server, tmp_path, monkeypatch, sent):
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    server.sent, server.stalls = sent, True
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*timed out\).* put the file at"):
        fetch(server.remote, tmp_path / "weights.pth")
    kept = tmp_path / "weights.pth.partial"
    assert kept.read_bytes() == CONTENT[:sent]


def test_offline_is_one_sentence(server, tmp_path, monkeypatch):
    server.shutdown()
    server.server_close()
    path = tmp_path / "weights.pth"
    with pytest.raises(
        ValueError, match=rf"\(.*Connection refused\); put the file at {path}\.$"
    ) as error:
        fetch(server.remote, path)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == []


def test_a_missing_page_is_one_sentence(server, tmp_path):
    server.content = None
    with pytest.raises(ValueError, match=r"cannot be downloaded \(Not Found\); put the file at"):
        fetch(server.remote, tmp_path / "weights.pth")
    assert files(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*File exists.*put the file"):
        fetch(server.remote, tmp_path / "file" / "weights.pth")


def test_of_two_at_once_one_downloads_and_the_other_waits(server, tmp_path):
    """Threads do as processes would: a lock belongs to an open file."""
    server.delay = 0.3
    path = tmp_path / "weights.pth"
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(fetch, server.remote, path) for _ in range(2)]
        for each in both:
            each.result()
    assert len(server.asked) == 1
    assert files(tmp_path) == ["weights.pth"]


def test_the_weights_of_inception_are_fetched_to_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.delenv("DDIM_JAX_INCEPTION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = find_inception(remote=server.remote)
    assert path == tmp_path / "ddim_jax" / "pt_inception-2015-12-05-6726825d.pth"
    assert path.read_bytes() == CONTENT
