"""Endless streams of text, and the cache API of the paper's code."""
