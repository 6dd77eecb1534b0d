"""One experiment: features, fit, evaluation, run directory."""
