"""Benchmarks: workloads that are equal on every filesystem, and tables of what they showed."""
