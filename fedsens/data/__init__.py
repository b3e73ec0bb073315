"""Labelled images from a name or a path, in the one form that models and training take."""

from fedsens.data.dataset import Dataset, RawImages
from fedsens.data.load import load_dataset
from fedsens.data.readers import register_reader

__all__ = ["Dataset", "RawImages", "load_dataset", "register_reader"]
