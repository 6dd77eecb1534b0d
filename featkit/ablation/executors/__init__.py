"""Executors run the tasks of an ablation grid."""
