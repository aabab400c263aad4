"""Constraints on what a model may write, and the vocabulary they are compiled against."""
