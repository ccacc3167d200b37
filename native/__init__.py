"""The patch-matching library. Empty in this version; see README.md."""
