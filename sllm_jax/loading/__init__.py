"""Loading a model by name or from a folder."""
