"""Seconds that networks and the smoother take on an H100, about, for a frame of 512×960.

With guidance, one ControlNet and groups of three frames.
"""

JOINT, SHARED = 0.08, 0.025
DECODE, ENCODE, SMOOTH = 0.03, 0.02, 0.045
