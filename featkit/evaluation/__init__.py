"""Scores to a Report: metrics with their intervals."""

from featkit.evaluation.report import ClassRow, Report, evaluate, summary

__all__ = ["ClassRow", "Report", "evaluate", "summary"]
