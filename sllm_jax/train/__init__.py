"""Training models of the supported families from text, with attention sinks (paper, section 3.3).

The modules are those of inference, with dense attention. Data flow: text -> bpe -> packing -> preparation, then step ->
run. `common.checkpoint` stores the training state, `metrics` the loss and other measures.
"""
