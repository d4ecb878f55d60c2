"""Data sets by name, and the stream of training batches."""

from .dataset import Dataset, MissingSplit
from .datasets import load_dataset
from .pipeline import Batch, batches

__all__ = ["Batch", "Dataset", "MissingSplit", "batches", "load_dataset"]
