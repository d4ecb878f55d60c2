"""Data sets by name, and the stream of training batches."""

from .datasets import Dataset, load_dataset
from .pipeline import Batch, batches

__all__ = ["Batch", "Dataset", "batches", "load_dataset"]
