"""Data-free knowledge distillation: from a trained image classifier to a smaller one, without its training data."""

__version__ = "0.1.0"
