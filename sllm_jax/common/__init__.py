"""Shared foundations: the exception class, atomic file writes, signals, progress, plots, tables."""
