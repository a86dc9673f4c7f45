"""Benchmarks: accuracy beside time, against a named alternative, on the machine at hand."""
