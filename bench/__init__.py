"""Benchmarks: what renewals cost beside the limit and the habit. `python -m bench --help`."""
