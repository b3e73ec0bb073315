"""NumPy files from another party, read without evaluating their header.

``np.load`` parses the header as a Python expression, which a hostile one makes recurse without
end, and allocates what the header claims before it looks at how much there is. Here the header
must have the form in which ``np.save`` writes it, and the data must have exactly its size.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = re.compile(rb"\x93NUMPY\x01\x00(?s:(..))")
HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,16}, ?)*(?:[0-9]{1,16})?)\), \} *\n"
)


def read_npy(data: bytes) -> NDArray[Any]:
    """Read an array of numbers or booleans.

    Memory is that of the data once more, whatever the header claims.

    Args:
        data: a NumPy file (format version 1.0) as ``np.save`` writes it.

    Returns:
        The array, a copy.

    Raises:
        ValueError: it is no such file, holds another type, or its data are shorter or longer
            than its shape says.
    """
    start = START.match(data)
    stop = 10 + int.from_bytes(start[1], "little") if start else 0
    header = HEADER.fullmatch(data[10:stop])
    if header is None:
        raise ValueError("another header")
    descr, fortran, sizes = header.groups()
    shape = tuple(int(size) for size in sizes.split(b",") if size.strip())
    try:
        dtype = np.dtype(descr.decode())
    except TypeError:
        raise ValueError("another type") from None
    if len(data) - stop != prod(shape) * dtype.itemsize:
        raise ValueError("another size")
    flat = np.frombuffer(data, dtype, prod(shape), stop)
    return flat.reshape(shape, order="F" if fortran == b"True" else "C").copy(order="K")
