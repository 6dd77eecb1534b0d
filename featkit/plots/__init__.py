"""Figures: each function draws arrays and returns a ``matplotlib.figure.Figure``."""
