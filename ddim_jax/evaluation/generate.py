"""`sample.py generate`: draw images into a PNG or an npz file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from ..files import check_output, make_directory, whole
from ..images import save_grid, save_image, to_uint8
from ..sampler import labelled, make_sampler
from ..settings import MANY, at_least
from .flags import SamplerFlags


@dataclass(frozen=True)
class Config(SamplerFlags):
    """Draw images from the averaged (EMA) weights of a run, or from an oracle."""

    out: Path = Path("samples.png")
    """FILE.png: a grid; FILE.npz: uint8 `images`, also as `arr_0`; a directory: a PNG per image."""
    num_images: Annotated[int, at_least(1, 10 * MANY)] = 64
    """N: the images 0 … N−1 of the seed."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if self.out.suffix not in (".png", ".npz", ""):
            raise ValueError(
                f"--out is {self.out}; its name must end in .png (a grid) or .npz (uint8 arrays), "
                "or have no ending (a directory)."
            )


def run(config: Config, console: Console) -> None:
    """Draw images and write them to `config.out`."""
    config.check()
    if config.out.suffix:
        check_output(config.out)
    else:
        make_directory(config.out, config.out)
    ready = config.ready(config.batch_size, console)
    sampler = make_sampler(ready.source.denoise, ready.source.image_shape, ready.mesh)

    def draw(params: Any, indices: np.ndarray) -> Any:
        return sampler(params, labelled(indices, ready.labels), ready.plan)

    parts = ready.draw(draw, config.num_images, "sampling", console)
    images = np.concatenate([to_uint8(part) for part in parts])
    if jax.process_index():  # each process has all the images; the first writes them
        return
    _save(config.out, images, ready.labels)
    shape = images.shape[1:]
    console.print(f"{config.out}: {len(images):,} images {shape}, {ready.describe()}")


def _save(out: Path, images: np.ndarray, labels: tuple[int, ...]) -> None:
    """Write the file or the directory that --out names."""
    if out.suffix == ".png":
        save_grid(images, out)
    elif out.suffix == ".npz":
        # Both names of the same array, for readers of either: ours, and ADM's evaluator.
        arrays: dict[str, Any] = {"images": images, "arr_0": images}
        if labels:
            indices = np.arange(len(images), dtype=np.uint32)
            arrays["label"] = labelled(indices, labels).label
        with whole(out) as partial:
            np.savez_compressed(partial, **arrays)
    else:
        for i, image in enumerate(images):
            save_image(image, out / f"{i:06d}.png")
