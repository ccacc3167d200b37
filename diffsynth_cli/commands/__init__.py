"""The commands: each parses its options, calls the Python API and shows the result."""
