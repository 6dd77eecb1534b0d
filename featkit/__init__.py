"""Images to embeddings, once; then heads, judged with numbers one can publish."""

__version__ = "0.1.0"
