"""Weights by name, from a server on this machine that answers as the Hugging Face Hub does."""

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path

import pytest

from ddim_jax.model import load_pretrained
from ddim_jax.model.hub import fetch, is_hub_name
from ddim_jax.training import load_run
from tests.model.test_variants import folder

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the repository owner/tiny, and a client that has imported nothing yet."""
    files = {path.name: path.read_bytes() for path in folder(tmp_path / "tiny", "sigma").iterdir()}
    files["diffusion_pytorch_model.bin"] = files["diffusion_pytorch_model.fp16.bin"] = b"no"
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            name = self.path.split("?")[0].removeprefix("/")
            kind, content = "application/json", None
            if name.startswith("api/models/owner/tiny/tree/"):
                content = json.dumps([
                    {"type": "file", "path": file, "size": len(data), "oid": file}
                    for file, data in files.items()
                ]).encode()  # fmt: skip
            elif name.startswith("api/models/owner/tiny"):
                siblings = [{"rfilename": file} for file in files]
                content = json.dumps(
                    {"id": "owner/tiny", "sha": SHA, "siblings": siblings}
                ).encode()
            elif name.startswith(f"owner/tiny/resolve/{SHA}/"):
                kind, content = "application/octet-stream", files.get(Path(name).name)
            self.send_response(404 if content is None else 200)
            content = b"" if content is None else content
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    forget()
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield asked
    server.shutdown()
    server.server_close()
    forget()


def forget():
    """Let the next import of the client read the environment again."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


def test_weights_by_name_and_again_without_a_connection(hub, tmp_path, monkeypatch, command):
    run = tmp_path / "run"
    status, out, err = command("train", "import", "owner/tiny", run)
    assert (status, err) == (0, "")
    assert "parameters for images (8, 8, 1), from owner/tiny" in out
    assert "not taken over: the learned σ" in out
    assert "no scheduler_config.json: T = 1000" in out
    assert load_run(run)[0].model == load_pretrained(tmp_path / "tiny")[0]
    assert {token for path, token in hub if "owner/tiny" in path} == {"Bearer hf_secret"}
    assert not any(path.endswith(".bin") for path, _ in hub)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget()
    count = len(hub)
    assert load_pretrained(fetch("owner/tiny"))[0] == load_run(run)[0].model
    with pytest.raises(ValueError, match="owner/other is no file or folder here, and cannot be"):
        fetch("owner/other")
    assert len(hub) == count


def test_a_name_that_the_hub_does_not_know_is_one_sentence(hub, tmp_path, command):
    status, _, err = command("train", "import", "owner/none", tmp_path / "run")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: owner/none is no file or folder here, and cannot be fetched from")
    assert not (tmp_path / "run").exists()


def test_paths_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = {"google/ddpm-cifar10-32": True, "runs/a": False, "a/b.ckpt": False, "a": False}
    names |= {"/a/b": False, "../a": False, "a/b/c": False}
    assert {name: is_hub_name(Path(name)) for name in names} == names
