"""Files of Gaussian statistics, as the codes of the field exchange them for FID."""

import json
import secrets
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .points import Points, Statistics

# mu, sigma: TTUR, pytorch-fid, edm, ADM; ref_mu, ref_sigma: meanflow; pool_3: score_sde's features.
_KEYS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))


def load_statistics(path: str | Path) -> Statistics:
    """The mean and covariance in an .npz file; no code in it is run. The count is 0 if unknown."""
    arrays = _read(Path(path))
    if "pool_3" in arrays:
        return Points(arrays["pool_3"].reshape(len(arrays["pool_3"]), -1)).statistics
    for mean, covariance in _KEYS:
        if mean in arrays and covariance in arrays:
            mu, sigma = (np.asarray(arrays[key], np.float64) for key in (mean, covariance))
            break
    else:
        raise ValueError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; statistics are mu and sigma, "
            "ref_mu and ref_sigma, or pool_3."
        )
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or not np.isfinite(sigma).all():
        raise ValueError(
            f"{path} has a mean of shape {mu.shape} and a covariance of shape {sigma.shape}; "
            "give finite (D,) and (D, D)."
        )
    return Statistics(mu, sigma, int(arrays["count"]) if "count" in arrays else 0)


def load_recipe(path: str | Path) -> dict[str, Any]:
    """What `save_statistics` wrote of a file's origin; empty for files of other codes."""
    arrays = _read(Path(path))
    try:
        recipe = json.loads(str(arrays["recipe"]))
    except (KeyError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def save_statistics(path: str | Path, statistics: Statistics, recipe: dict[str, Any]) -> None:
    """Write mu, sigma, count, and as JSON the recipe: features, weights, images.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> save_statistics(path, Points([[0.0], [2.0]]).statistics, {"features": "pixels"})
    >>> load_statistics(path).covariance.tolist(), load_recipe(path)
    ([[2.0]], {'features': 'pixels'})
    """
    path = Path(path)
    partial = path.with_name(f".partial-{secrets.token_hex(6)}-{path.name[-40:]}")
    mean, covariance, count = statistics
    try:
        with open(partial, "wb") as file:
            np.savez(file, mu=mean, sigma=covariance, count=count, recipe=json.dumps(recipe))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); choose another place."
        ) from error


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); give an .npz file."
        ) from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file of numbers ({error}).") from error
