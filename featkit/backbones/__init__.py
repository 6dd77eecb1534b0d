"""Networks that turn uint8 images into vectors: their weights and their preprocessing."""
