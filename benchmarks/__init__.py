"""Measurements against other libraries: ``python -m benchmarks.scan``, ``python -m benchmarks.rnn``."""
