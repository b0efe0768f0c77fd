"""What durability costs, measured: `python -m benchmarks`."""
