"""Types of numbers that have no natural limit.

The bounds are far beyond any video (30 years, a billion frames) and keep products and time stamps within 64 bits.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MOST = 10**9

Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Offset = Annotated[int, Field(ge=-MOST, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
