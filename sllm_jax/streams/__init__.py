"""Endless streams: text in, text out; and the cache under the names of the paper's own code."""
