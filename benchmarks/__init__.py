"""Speed and memory, measured on the machine at hand: `python -m benchmarks`. docs/benchmarks.md says how to read it."""
