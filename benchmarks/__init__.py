"""Benchmarks. Each module is a script that prints tables."""
