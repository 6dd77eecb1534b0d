"""Feature extraction and the cache of embeddings."""
