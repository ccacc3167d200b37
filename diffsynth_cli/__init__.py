"""What the user touches: commands, progress, messages."""

__version__ = "0.1.0"
