"""A name or a folder becomes a model."""
