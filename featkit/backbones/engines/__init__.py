"""Engines run the forward pass of a network."""
