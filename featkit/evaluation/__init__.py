"""Evaluate predictions: metrics, intervals, calibration, comparisons, few-shot episodes."""

from featkit.evaluation.calibration import Temperature, fit_temperature
from featkit.evaluation.compare import PairedComparison, compare
from featkit.evaluation.episodes import EpisodeResults, run_episodes
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import ClassMetrics, Report, summary
from featkit.evaluation.scoring import evaluate

__all__ = [
    "ClassMetrics",
    "EpisodeResults",
    "PairedComparison",
    "Predictions",
    "Report",
    "Temperature",
    "compare",
    "evaluate",
    "fit_temperature",
    "run_episodes",
    "summary",
]
