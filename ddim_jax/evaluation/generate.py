"""`sample.py generate`: draw images into a PNG or an npz file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from ..files import make_directory, whole
from ..images import save_grid, save_image, to_uint8
from ..sampler import labelled, make_sampler
from ..settings import at_least
from .flags import SamplerFlags
from .source import Source


@dataclass(frozen=True)
class Config(SamplerFlags):
    """Draw images from the averaged (EMA) weights of a run, or from an oracle."""

    out: Path = Path("samples.png")
    """FILE.png: a grid. FILE.npz: uint8 `images`, as `arr_0` too. A directory: a PNG per image."""
    num_images: Annotated[int, at_least(1)] = 64
    """N: the images 0 … N−1 of the seed."""
    label: tuple[int, ...] = ()
    """Classes for a conditional model, assigned to the images in turn; empty: no label."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1: no guidance; others take two network calls per step."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if self.out.suffix not in (".png", ".npz", ""):
            raise ValueError(
                f"--out is {self.out}; its name must end in .png (a grid) or .npz (uint8 arrays), "
                "or have no ending (a directory)."
            )
        if self.guidance != 1 and not self.label:
            raise ValueError(
                f"--guidance is {self.guidance:g} without --label; give the target classes."
            )


def run(config: Config, console: Console) -> None:
    """Draw images and write them to `config.out`."""
    config.check()
    make_directory(config.out.parent if config.out.suffix else config.out, config.out)
    ready = config.ready(config.batch_size)
    _check_labels(config, ready.source)
    plan = ready.plan
    if config.guidance != 1:
        plan = plan._replace(guidance=np.float32(config.guidance))
    sampler = make_sampler(ready.source.denoise, ready.source.image_shape, ready.mesh)

    def draw(params: Any, indices: np.ndarray) -> Any:
        return sampler(params, labelled(indices, config.label), plan)

    parts = ready.draw(draw, config.num_images, "sampling", console)
    images = np.concatenate([to_uint8(part) for part in parts])
    if jax.process_index():  # each process has all the images; the first writes them
        return
    _save(config, images)
    labels = ""
    if config.label:
        labels = f" labels {' '.join(map(str, config.label))}, guidance {config.guidance:g},"
    shape = images.shape[1:]
    console.print(f"{config.out}: {len(images):,} images {shape},{labels} {ready.describe()}")


def _save(config: Config, images: np.ndarray) -> None:
    """Write the file or the directory that --out names."""
    if config.out.suffix == ".png":
        save_grid(images, config.out)
    elif config.out.suffix == ".npz":
        # Both names of the same array, for readers of either: generate's, and ADM's evaluator.
        arrays: dict[str, Any] = {"images": images, "arr_0": images}
        if config.label:
            indices = np.arange(len(images), dtype=np.uint32)
            arrays["label"] = labelled(indices, config.label).label
        with whole(config.out) as partial:
            np.savez_compressed(partial, **arrays)
    else:
        for i, image in enumerate(images):
            save_image(image, config.out / f"{i:06d}.png")


def _check_labels(config: Config, source: Source) -> None:
    if config.label and not source.num_classes:
        raise ValueError(
            f"--label is {config.label[0]}, but {source.name} is unconditional; leave --label out."
        )
    for label in config.label:
        if not 0 <= label < source.num_classes:
            raise ValueError(
                f"--label is {label}; {source.name} has the classes 0 to {source.num_classes - 1}."
            )
