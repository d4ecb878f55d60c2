"""Weights by their name on the Hugging Face Hub, through its own client.

Its cache ($HF_HOME), offline mode ($HF_HUB_OFFLINE), endpoint ($HF_ENDPOINT) and token are used.
"""

import re
from pathlib import Path

_SETTINGS = [f"{folder}{name}" for folder in ("", "unet/", "scheduler/")
             for name in ("config.json", "scheduler_config.json")]  # fmt: skip
# PyTorch's own files, and half precision, only where there is nothing else.
_WEIGHTS = [
    [f"{folder}diffusion_pytorch_model{rest}" for folder in ("", "unet/")
     for rest in (f"{half}.{suffix}", f"{half}-*.{suffix}", f".{suffix}.index{half}.json")]
    for half in ("", ".fp16") for suffix in ("safetensors", "bin")
]  # fmt: skip


def is_hub_name(path: Path) -> bool:
    """Whether a path that does not exist can be a name on the Hub, OWNER/NAME.

    >>> is_hub_name(Path("google/ddpm-cifar10-32")), is_hub_name(Path("a/b/model.ckpt"))
    (True, False)
    """
    word = r"[A-Za-z0-9][\w.-]*"
    known = re.fullmatch(f"{word}/{word}", path.as_posix()) is not None
    checkpoint = path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
    return known and not checkpoint and not path.exists() and not path.parent.exists()


def fetch(name: str) -> Path:
    """The folder of a repository's network and scheduler, downloaded if the cache lacks it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for weights in _WEIGHTS:
            path = huggingface_hub.snapshot_download(name, allow_patterns=_SETTINGS + weights)
            if any(found for pattern in weights for found in Path(path).glob(pattern)):
                return Path(path)
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{name} is no file or folder here, and cannot be fetched from the Hugging Face Hub "
            f"({reason}); give a path, or fetch it where there is a connection."
        ) from error
    raise ValueError(f"{name} has no weights of a UNet2DModel; give the name of one that has.")
