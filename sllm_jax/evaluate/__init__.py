"""Perplexity, resumable evaluations, attention maps, and pictures of the ring."""
