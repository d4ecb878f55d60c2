"""What cannot be written: found before the work, or one sentence, and what was there stays."""

import ast
import ctypes
import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from ddim_jax import runtime
from tests.commands import tree
from tests.conftest import ROOT

resource = pytest.importorskip("resource", reason="POSIX")


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        (["generate", "--out", "x.png"], "x.png"),
        (["generate", "--out", "x.npz"], "x.npz"),
        (["interpolate", "--out", "x.png"], "x.png"),
        (["trajectory", "--out", "x.png"], "x.png"),
        (["trajectory", "--out", "x.png"], "x.gif"),
        (["evaluate", "--save-statistics", "x.npz"], "x.npz"),
    ],
)
def test_a_directory_in_the_place_of_a_result(arguments, taken, command, tmp_path, monkeypatch):
    """Before anything is opened: the run does not exist either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / taken).mkdir()
    status, out, err = command("sample", *arguments, "nowhere")
    assert (status, out) == (1, "")
    assert f"is {taken}, which is a directory; give the name of a file" in err
    assert err.count("\n") == 1


@pytest.fixture
def full_disk():
    """No file may grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


GENERATE = ["sample", "generate", "{run}", "--steps", 2, "--num-images", 4, "--out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*GENERATE, "{tmp}/x.png"], "x.png"),
        ([*GENERATE, "{tmp}/x.npz"], "x.npz"),
        ([*GENERATE, "{tmp}/x"], "000000.png"),
        (["sample", "ablate", "{run}", "--sigma", "eta=0", "--steps", 2, "--num-images", 8],
         "00000000.npz"),
        (["sample", "reconstruct", "{run}", "--steps", 1, "--num-images", 2, "--out", "{tmp}/x"],
         "reconstructions.png"),
        (["sample", "evaluate", "digits@test", "--num-images", 8, "--save-statistics",
          "{tmp}/x.npz"], "x.npz"),
        (["train", "export", "{run}", "{tmp}/x"], "diffusion_pytorch_model.safetensors"),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(
    arguments, name, command, copy_of_run, tmp_path, full_disk
):
    (tmp_path / "x.png").write_text("before")
    (tmp_path / "x.npz").write_text("before")
    full_disk(60)
    fill = {"tmp": tmp_path, "run": copy_of_run}
    status, _, err = command(*(str(argument).format(**fill) for argument in arguments))
    assert status == 1
    assert f"{name} cannot be written" in err
    assert err.count("\n") == 1
    assert (tmp_path / "x.png").read_text() == (tmp_path / "x.npz").read_text() == "before"
    assert not [path for path in tree(tmp_path) if ".partial-" in path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.slow
def test_standard_output_on_a_full_device():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "sample.py", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    said = "error: the output cannot be written (No space left on device).\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_error_of_the_system_that_is_not_about_space_keeps_its_traceback(capsys):
    def full():
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "a.txt")

    def bug():
        raise FileNotFoundError(errno.ENOENT, "No such file", "b.txt")

    assert runtime.run(full) == 1
    assert capsys.readouterr().err == "error: a.txt cannot be written (Disk quota exceeded).\n"
    with pytest.raises(FileNotFoundError):
        runtime.run(bug)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sample"])
def test_ctrl_c_during_the_imports(name, tmp_path):
    """JAX takes seconds to import."""
    (tmp_path / "jax.py").write_text(
        "import signal, time; signal.raise_signal(signal.SIGINT); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, ROOT / f"{name}.py"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.fixture
def ended(monkeypatch):
    """The statuses with which the process would have ended at once."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    before = signal.getsignal(signal.SIGINT)
    yield statuses
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def heard():
    """Ctrl-C is heard, also where the suite was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_once_and_twice(heard, ended, capsys):
    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # while the first one is tidied up
            signal.raise_signal(signal.SIGINT)

    assert runtime.run(command) == 130
    assert ended == [130]
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_in_a_callback_that_swallows_exceptions(heard, ended, monkeypatch, capfd):
    """A garbage collector's, as JAX has one."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Swallow:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def command():
        Swallow()

    runtime.run(command)
    assert ended == [130]
    assert capfd.readouterr().err.startswith("interrupted\n")


def test_a_terminal_without_the_papers_letters(monkeypatch):
    """As on Windows; σ is then a question mark."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert runtime.run(lambda: print("σ = 0.5, τ ü")) == 0
    assert raw.getvalue().decode("cp1252").strip() == "? = 0.5, ? ü"


def test_a_system_whose_libraries_need_a_name(monkeypatch):
    """As on Windows."""

    def load(name):
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert runtime.run(lambda: None) == 0


def text_files(tree):
    """The calls that open a text file in a Python file, and whether they say its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        said = any(keyword.arg == "encoding" for keyword in node.keywords)
        if name == "read_text":
            yield said or bool(node.args)
        elif name == "write_text":
            yield said or len(node.args) > 1
        elif name == "open" and isinstance(node.func, ast.Name):
            mode = node.args[1].value if len(node.args) > 1 else "r"
            yield said or "b" in mode


def test_every_text_file_is_utf_8_on_every_system():
    found = {
        path.name: list(text_files(ast.parse(path.read_text("utf-8"))))
        for path in (ROOT / "ddim_jax").rglob("*.py")
    }
    assert sum(map(len, found.values())) > 10
    assert [name for name, said in found.items() if not all(said)] == []
