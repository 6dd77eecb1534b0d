"""Quantization, pruning, profiling and export of networks."""
