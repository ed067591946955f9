"""Evaluation beyond a task's own metrics: what a trained model makes of texts."""
