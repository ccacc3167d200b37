"""The patch-matching library, and binding.py, the one door to it."""
