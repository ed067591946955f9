"""Callbacks: when something happens during training. What happens is defined elsewhere."""
