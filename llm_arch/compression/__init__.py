"""What compression does to a model: pure functions and small classes on modules of torch, without Lightning.

When it is done is the affair of `llm_arch.callbacks`.
"""
