"""Heads: hidden states in, logits, loss, metrics and predictions of one task out."""
