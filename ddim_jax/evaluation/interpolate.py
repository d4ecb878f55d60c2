"""`sample.py interpolate`: interpolate between noises (DDIM paper, arXiv:2010.02502, Fig. 6)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from ..diffusion.encoding import slerp
from ..diffusion.keys import image_keys, initial_noise
from ..diffusion.sampling import sample
from ..files import check_output
from ..images import save_rows, to_uint8
from ..sampler import Plan, batch_program, labelled, planned
from ..settings import at_least
from .flags import SamplerFlags, check_png


@dataclass(frozen=True)
class Config(SamplerFlags):
    """Decode interpolations between pairs of noises, one row per pair (the paper's Fig. 6)."""

    out: Path = Path("interpolation.png")
    """The output, FILE.png."""
    rows: Annotated[int, at_least(1, 1000)] = 8
    """Number of pairs: row r goes from the noise of image 2r of the seed to that of 2r + 1."""
    columns: Annotated[int, at_least(2, 1000)] = 11
    """Images per row, the two ends included."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        check_png(self.out)


def run(config: Config, console: Console) -> None:
    """Write the images of slerp(x_T of image 2r, x_T of image 2r + 1; c/(columns − 1)).

    If σ adds noise, all images of a row use the noise of image 2r.
    """
    config.check()
    check_output(config.out)
    count = config.rows * config.columns
    ready = config.ready(min(config.batch_size, count), console)
    source, weights = ready.source, np.linspace(0, 1, config.columns, dtype=np.float32)

    def between(params: Any, batch: Any, plan: Plan) -> Any:
        row, weight, label = batch
        first, second = (image_keys(plan.seed, 2 * row + end) for end in (0, 1))
        one, other = (initial_noise(keys, source.image_shape) for keys in (first, second))
        denoise = planned(source.denoise, params, label, plan)
        return sample(denoise, slerp(one, other, weight), plan.table, first)

    sampler = batch_program(between, ready.mesh)

    def draw(params: Any, places: np.ndarray) -> Any:
        row, column = np.divmod(places, config.columns)
        row = row.astype(np.uint32)
        label = labelled(row, ready.labels).label  # one for each row
        return sampler(params, (row, weights[column], label), ready.plan)

    parts = ready.draw(draw, count, "interpolating", console)
    images = np.concatenate([to_uint8(part) for part in parts])
    if jax.process_index():
        return
    rows = images.reshape(config.rows, config.columns, *source.image_shape)
    labels = [f"{2 * r} to {2 * r + 1}" for r in range(config.rows)]
    save_rows(rows, config.out, labels, [f"{weight:.2g}" for weight in weights])
    size = f"{config.rows} × {config.columns} images {source.image_shape}"
    console.print(f"{config.out}: {size} between noises, {ready.describe()}")
