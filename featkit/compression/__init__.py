"""Networks made smaller, and measured: quantized, pruned, exported."""
