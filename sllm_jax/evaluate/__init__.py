"""Measuring a model on texts, with interruption; pictures of its attention and of the ring."""
