"""The weights file of Inception: where it lies, and what it holds."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..download import Remote, fetch
from ..files import file_sha256
from .inception import NETWORK, kernel_shapes
from .torch_file import read_torch_file

FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS = Remote(
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
_NORM = ("weight", "bias", "running_mean", "running_var")


def find_inception(path: Path | None = None, remote: Remote = WEIGHTS) -> Path:
    """The weights file: `path`, else $DDIM_JAX_INCEPTION, else the cache's, downloaded if absent.

    The cache is $XDG_CACHE_HOME/ddim_jax, by default ~/.cache/ddim_jax.
    """
    variable = os.environ.get("DDIM_JAX_INCEPTION")
    if path is None and not variable:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        fetch(remote, caches / "ddim_jax" / FILE)
        return caches / "ddim_jax" / FILE
    given = Path(path or variable or "").expanduser()
    if not given.is_file():
        name = "the file of Inception's weights" if path else "$DDIM_JAX_INCEPTION"
        raise ValueError(f"{name} is {given}, which is not a file; give {FILE} from {remote.url}.")
    return given


def load_inception(path: str | Path, sha256: str | None = WEIGHTS.sha256) -> dict[str, Any]:
    """{layer: {"kernel", "bias"}} from the weights file; sha256=None accepts other weights.

    No code in the file is run. A file with another SHA-256, or with missing, extra or wrongly
    shaped tensors, raises a ValueError.
    """
    path = Path(path)
    try:
        found = file_sha256(path) if sha256 else None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); give {FILE} from {WEIGHTS.url}."
        ) from error
    if found != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {found} instead of {sha256}; remove it and give {FILE} from "
            f"{WEIGHTS.url}."
        )
    kernels, _ = kernel_shapes(NETWORK, 3)
    tensors = _checked(read_torch_file(path), kernels, path)

    def folded(name: str) -> dict[str, Any]:
        """(1) of the network as one kernel and one bias."""
        gamma, beta, mean, variance = (tensors[f"{name}.bn.{part}"] for part in _NORM)
        gain = gamma / np.sqrt(variance.astype(np.float64) + 1e-3)
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
        return {
            "kernel": kernel.astype(np.float32),
            "bias": (beta - mean * gain).astype(np.float32),
        }

    # No score uses the bias of the classes.
    classes = {"fc": {"kernel": tensors["fc.weight"].T}}
    return jax.device_put({name: folded(name) for name in kernels} | classes)


def _checked(
    content: Any, kernels: dict[str, tuple[int, ...]], path: Path
) -> Mapping[str, np.ndarray]:
    """The tensors of a file, if they are those of the network."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in kernels.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in _NORM}
    tensors = {
        name: tensor
        for name, tensor in (content.items() if isinstance(content, Mapping) else ())
        if not str(name).endswith("num_batches_tracked")
    }
    different = [
        f"{name} as {found} instead of {wanted}"
        for name, shape in shapes.items()
        if name in tensors
        and (found := _described(tensors[name])) != (wanted := f"float32 {shape}")
    ]
    problems = {
        "lacks": [name for name in shapes if name not in tensors],
        "also has": [name for name in tensors if name not in shapes],
        "has": different,
    }
    if any(problems.values()):
        what = ", and ".join(f"{verb} {_some(list)}" for verb, list in problems.items() if list)
        raise ValueError(f"{path} {what}; give {FILE} from {WEIGHTS.url}.")
    return tensors


def _described(tensor: Any) -> str:
    is_array = isinstance(tensor, np.ndarray)
    return f"{tensor.dtype} {tensor.shape}" if is_array else type(tensor).__name__


def _some(names: list[Any]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(map(str, names[:2])) + more
