"""Trained models for other runtimes: one graph from token ids to the head's logits, in a model directory."""
