"""Benchmarks: ``pytest bench --benchmark-only``, ``python -m bench report|join``."""
