"""Fuzz the command line with invalid jobs, damaged videos and caches, and unusual file names."""
