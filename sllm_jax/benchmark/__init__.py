"""Benchmarks: the speed of a model on this machine, and the limit set by memory bandwidth."""
