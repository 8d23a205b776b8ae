"""Benchmarks: every operator beside what its users have today, in the same run.

``pytest bench/bench_*.py`` runs them with pytest-benchmark, ``python -m bench`` with torch and NumPy alone (also on
CUDA); both write the same JSON, which ``python -m bench.report`` turns into tables and a picture. ``--size full`` is
2^28 entries and every contender in every case; by default, cases on the CPU leave out what takes longest.
"""
