"""Classifiers on vectors, as scikit-learn estimators."""
