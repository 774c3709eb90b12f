"""Training a model of a supported family from text (paper, section 3.3): the same modules as inference, read densely.

text -> bpe -> packing -> preparation, then step -> run; `checkpoint` keeps what a run needs to go on, `metrics` what
people look at.
"""
