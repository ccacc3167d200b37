"""Patch matching: the library libebsynth and its Python interface, `native.binding`."""

from enum import StrEnum


class Backend(StrEnum):
    """Back ends of patch matching, in the order of their numbers in ebsynth.h. All give the same results."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    NUMBA = "numba"
