"""One way to measure. ``python -m benchmarks list`` and ``run``; README.md says how to read it."""
