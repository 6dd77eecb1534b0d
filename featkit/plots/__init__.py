"""Embeddings and Reports as figures."""
