"""Data sets by name, and the stream of training batches."""

from .datasets import Dataset, load_dataset
from .pipeline import batches

__all__ = ["Dataset", "batches", "load_dataset"]
