"""Scores to a Report: metrics with their intervals."""
