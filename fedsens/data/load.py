"""Load a data set by name or path; the formats are in :mod:`fedsens.data.readers`."""

from __future__ import annotations

from fedsens.data.dataset import Dataset
from fedsens.data.readers import find_reader


def load_dataset(source: str = "digits", classes: int | None = None) -> Dataset:
    """Read all labelled images of a data set.

    Every split that a folder holds is pooled, since each client sets its own test images aside.
    See :meth:`fedsens.data.Dataset.from_raw` for how pixels are scaled. What is there but cannot
    be read as what it claims to be, or is not there, raises :class:`~fedsens.errors.DataError`; a
    format whose package is not installed, :class:`~fedsens.errors.ConfigurationError`.

    Args:
        source: one of

            - ``digits``: scikit-learn's 1797 bundled 8x8 digits;
            - an IDX images file, its labels file beside it, or a folder of such pairs; .gz too;
            - a CIFAR-10 binary file, or a folder of them;
            - an ``.npz`` file with ``x`` and ``y``, and optionally ``classes`` (number or names);
            - a folder of Hugging Face ``save_to_disk``, or parquet (a file or a folder);
            - ``hf:owner/name`` or ``hf:owner/name@split`` of the Hugging Face hub.
        classes: number of classes; None or 0 to find out. Clients whose own files may lack a
            class must all give it, as the highest label says too little then.

    Returns:
        The data set.
    """
    raw = find_reader(source).read(source)
    return Dataset.from_raw(raw, source, classes)
