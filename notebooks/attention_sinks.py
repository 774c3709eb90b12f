# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention sinks
#
# Why can a model not simply forget its oldest tokens? Large language models pay much of their attention to the
# very first tokens of a text, whatever these say: a softmax has to spend its attention somewhere, and the first
# token is what every other token sees. Evict it, and the model goes wrong
# ([StreamingLLM](https://arxiv.org/abs/2309.17453), sections 3.1 and 3.3).
#
# This notebook looks at it on models small enough for two CPU cores. Put a name of your own in their place: what
# the paper shows of 7 billion parameters shows there.

# %%
SOURCE = "sllm-jax[plot]"  # what pip installs: this name, a folder, a wheel, or "sllm-jax[plot] @ git+https://..."
# %pip install --quiet "{SOURCE}"

# %%
from pathlib import Path

import sllm_jax
from sllm_jax.reproduce import EXPERIMENTS, fig2
from sllm_jax.reproduce.subject import Options, Subject
from sllm_jax.result_table import Table

# %% [markdown]
# ## A text, and three ways to train
#
# A file of your own, if you have one. Otherwise `bundled:llama` writes some pages in the manner of the old novels
# that all the bundled models were trained on.

# %%
TEXT = None  # or a file, such as "book.txt"

if TEXT:
    text = Path(TEXT).read_text()
else:
    writer = sllm_jax.Stream(*sllm_jax.load("bundled:llama"), seed=3, steps=250)
    text = "".join(writer.generate(max_tokens=5000, ignore_eos=True, temperature=0.9))
print(f"{len(text)} characters: {text[:300]} ...")

# %% [markdown]
# Three models, each half a million parameters, trained on the same text in the same order, and alike but for one
# thing. `none` is an ordinary transformer. In `zero` every softmax has one more logit, fixed at 0, so that a head
# can attend to nothing (softmax-off-by-one). `learnable` has a token of its own before every sample, whose only
# use is to be attended to.

# %%
KINDS = ("none", "zero", "learnable")

subjects = {}
for kind in KINDS:
    model, tokenizer = sllm_jax.load(f"bundled:sink-{kind}")
    subjects[kind] = Subject(model, tokenizer, text, Options(max_tokens=6000, dense_tokens=6000, recompute_every=10))

# %% [markdown]
# ## Where the attention goes
#
# The text is cut into windows of 16 tokens, each read from nothing, and the attention of every head averaged over
# them: the figure 2 of the paper. A bright first column is a sink: wherever the query stands, it looks at
# position 0.

# %%
fig2.maps(subjects["learnable"])

# %% [markdown]
# How much is it over a whole trained context? Windows as long as that: how much of its attention does each head
# pay to the first four positions? If it looked at all alike, it would be 4%.

# %%
maps = {kind: EXPERIMENTS["fig2"].run(subject) for kind, subject in subjects.items()}
maps["learnable"].plot

# %%
maps["learnable"].tables[0]

# %% [markdown]
# Layer by layer, for all three. The model with a sink token has learned to put attention there; the other two,
# small and briefly trained, have not grown a sink by themselves. In models of billions of parameters the ordinary
# kind does, on whatever tokens happen to be first.

# %%
rows = [(kind, *row[:5]) for kind, report in maps.items() for row in report.tables[0].rows]
Table(("trained with", *maps["none"].tables[0].columns[:5]), rows)

# %% [markdown]
# ## Four curves
#
# The same text in one stream, far past the trained context of 128 tokens, and the same size of cache for all:
# `dense` keeps everything, `window` the last tokens, `streaming` a few sinks and the last tokens, and `recompute`
# reads the last tokens anew for each token, which is as good as it gets, and slow.

# %%
curves = EXPERIMENTS["fig3"].run(subjects["learnable"])
curves.plot

# %%
curves.tables[1]

# %% [markdown]
# ## When the sinks go
#
# One cache size, and 0, 1, 2, 4 or 8 of its places for the first tokens of the stream. Perplexity:

# %%
found = {kind: EXPERIMENTS["table2"].run(subject).figures for kind, subject in subjects.items()}
sinks = [f"{row[0]} sinks" for row in found["none"].rows]
Table(("trained with", *sinks), [(kind, *(row[2] for row in table.rows)) for kind, table in found.items()])

# %% [markdown]
# One sink is as good as eight, as in the paper's table 3 for a model trained with one. Without it the heads that
# rely on it have to put their attention on words, and perplexity jumps at the first eviction, and stays there for
# as long as the stream goes on.
