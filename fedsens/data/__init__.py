"""Labelled images from a name or a path, in the one form that models and training take."""

from fedsens.data import _huggingface
from fedsens.data._dataset import Dataset, RawImages
from fedsens.data._readers import load_dataset, register_reader

del _huggingface  # imported only to register its formats

__all__ = ["Dataset", "RawImages", "load_dataset", "register_reader"]
