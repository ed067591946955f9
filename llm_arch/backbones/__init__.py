"""Backbones: a batch of tokens in, hidden states out."""
