# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
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
# This notebook looks at it on models small enough for two CPU cores. Put names of your own among `MODELS`: what
# the paper shows of billions of parameters shows there.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = None  # where to install from: a clone, a wheel, "git+https://..."; None is the clone around this notebook
if find_spec("sllm_jax") is None:
    clones = [folder for folder in Path.cwd().parents if (folder / "sllm_jax/common/version.py").is_file()]
    assert SOURCE or clones, "sllm_jax is not installed, and no clone is around this notebook: set SOURCE"
    source = [str(SOURCE)] if SOURCE else ["-e", str(clones[0])]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *source, "matplotlib", "pillow"], check=True)

# %%
import sllm_jax
from sllm_jax.common.result_table import Table
from sllm_jax.reproduce import EXPERIMENTS, fig2
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions

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
# Three models of 0.67 million parameters each, trained on the same text in the same order, and alike but for one
# thing. `none` is an ordinary transformer. In `zero` every softmax has one more logit, fixed at 0, so that a head
# can attend to nothing (softmax-off-by-one). `learnable` has a token of its own before every sample, whose only
# use is to be attended to.

# %%
MODELS = {"none": "bundled:sink-none", "zero": "bundled:sink-zero", "learnable": "bundled:sink-learnable"}
CHOSEN = "learnable"  # the one whose curves are drawn

options = ExperimentOptions(max_tokens=6000, dense_tokens=6000, recompute_every=10)
source = TEXT or "written by bundled:llama"
subjects = {
    name: ExperimentInputs(*sllm_jax.load(model), text, options, {"model": model, "text": source})
    for name, model in MODELS.items()
}

# %% [markdown]
# ## Where the attention goes
#
# The text is cut into windows of 48 tokens, each read from nothing, and the attention of every head is averaged
# over them. The model with a sink token first. Look at the first column of layer 0: however far down the query
# stands, it gives some of its attention to position 0, and more than a third of it in head 3. (Layer 2, head 3
# fades with the distance: it looks at all it sees, and that is little at first.)

# %%
fig2.maps(subjects[CHOSEN], length=48)

# %% [markdown]
# And the ordinary one, which has no such column:

# %%
fig2.maps(subjects["none"], length=48)

# %% [markdown]
# How much is it over a whole trained context? The share of its attention that each head pays to the first four
# positions (4% if it were spread evenly), and how far the logit of position 0 stands out:

# %%
maps = {name: EXPERIMENTS["fig2"].run(subject) for name, subject in subjects.items()}
maps[CHOSEN].plot

# %% [markdown]
# Layer by layer, for all. The model with a sink token has learned to put attention there, in its first layer. The
# others, small and briefly trained, have not grown a sink by themselves; models of billions of parameters do, on
# whatever tokens happen to be first.

# %%
rows = [(name, *row[:5]) for name, report in maps.items() for row in report.tables[0].rows]
Table(("trained with", *maps[CHOSEN].tables[0].columns[:5]), rows)

# %% [markdown]
# ## Four curves
#
# The same text in one stream, far past the trained context of 128 tokens. `dense` keeps everything. The others
# have one size: `window` keeps the last tokens, `streaming` a few sinks and the last tokens, and `recompute`
# reads the sink token and the last tokens anew for each token, which is as good as it gets, and slow.

# %%
curves = EXPERIMENTS["fig3"].run(subjects[CHOSEN])
curves.plot

# %% [markdown]
# On the same tokens, one in ten of the text:

# %%
curves.tables[1]

# %% [markdown]
# ## When the sinks go
#
# One cache size, and 0, 1, 2, 4 or 8 of its places for the first tokens of the stream. Perplexity:

# %%
found = {name: EXPERIMENTS["table2"].run(subject).figures for name, subject in subjects.items()}
counts = [f"sinks: {row[0]}" for row in found[CHOSEN].rows]
Table(("trained with", *counts), [(name, *(row[2] for row in table.rows)) for name, table in found.items()])

# %% [markdown]
# One sink is as good as four, as in the paper's table 3 for a model trained with one. Without it the heads that
# rely on it spread their attention over words instead: perplexity jumps at the first eviction, and stays there
# for as long as the stream goes on. The other two models lose nothing, for they have no sink to lose.
