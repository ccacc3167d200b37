"""Wrong jobs, damaged videos and caches, odd names, all through the real command line: python -m tools.fuzz."""
