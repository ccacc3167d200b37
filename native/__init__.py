"""The patch-matching library, and binding.py, the one door to it."""

from enum import StrEnum


class Backend(StrEnum):
    """What computes patch matching, in the order of the library's numbers. All give the same result."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    NUMBA = "numba"
