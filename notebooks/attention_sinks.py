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
# Why can a model not simply drop its oldest tokens? Large language models pay much of their attention to the first
# tokens of a text, whatever their content: attention weights must sum to 1, and the first tokens are visible to all
# others. If they are evicted, the model breaks
# ([StreamingLLM](https://arxiv.org/abs/2309.17453), sections 3.1 and 3.3).
#
# This notebook demonstrates the effect on models small enough for two CPU cores. Add larger models to `MODELS` to
# reproduce the paper's results.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = None  # install from: a clone, a wheel, "git+https://..."; None: the clone around this notebook
if find_spec("sllm_jax") is None:
    clones = [folder for folder in Path.cwd().parents if (folder / "sllm_jax/common/version.py").is_file()]
    assert SOURCE or clones, "sllm_jax is not installed, and this notebook is not in a clone: set SOURCE"
    source = [str(SOURCE)] if SOURCE else ["-e", str(clones[0])]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *source, "matplotlib", "pillow"], check=True)

# %%
import sllm_jax
from sllm_jax.common.result_table import Table
from sllm_jax.reproduce import EXPERIMENTS, fig2
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions

# %% [markdown]
# ## A text and three models
#
# Use your own text file, if you have one. Otherwise `bundled:llama` generates some pages in the style of the novels
# that all bundled models were trained on.

# %%
TEXT = None  # or a file, such as "book.txt"

if TEXT:
    text = Path(TEXT).read_text()
else:
    writer = sllm_jax.Stream(*sllm_jax.load("bundled:llama"), seed=3, steps=250)
    text = "".join(writer.generate(max_tokens=5000, ignore_eos=True, temperature=0.9))
print(f"{len(text)} characters: {text[:300]} ...")

# %% [markdown]
# Three models of 0.67 million parameters, trained on the same text in the same order, differ only in their sink.
# `none` is an ordinary transformer. In `zero`, every softmax has an additional logit fixed at 0, so that a head can
# attend to nothing (softmax-off-by-one). In `learnable`, a dedicated sink token precedes every sample.

# %%
MODELS = {"none": "bundled:sink-none", "zero": "bundled:sink-zero", "learnable": "bundled:sink-learnable"}
CHOSEN = "learnable"  # the model whose maps and curves are plotted

options = ExperimentOptions(max_tokens=6000, dense_tokens=6000, recompute_every=10)
source = TEXT or "written by bundled:llama"
subjects = {
    name: ExperimentInputs(*sllm_jax.load(model), text, options, {"model": model, "text": source})
    for name, model in MODELS.items()
}

# %% [markdown]
# ## Where the attention goes
#
# The text is cut into independent windows of 48 tokens, and the attention of every head is averaged over them. First,
# the model with a sink token. See the first column of layer 0: every query pays some of its attention to position 0,
# and more than a third of it in head 3. (The rows of layer 2, head 3 get fainter further down: it attends to all
# visible positions, and their number grows.)

# %%
fig2.maps(subjects[CHOSEN], length=48)

# %% [markdown]
# The ordinary model has no such column:

# %%
fig2.maps(subjects["none"], length=48)

# %% [markdown]
# The same over whole trained contexts: the share of attention that each head pays to the first four positions (4% if
# it were uniform), and the logit of position 0 above the mean of the rest:

# %%
maps = {name: EXPERIMENTS["fig2"].run(subject) for name, subject in subjects.items()}
maps[CHOSEN].plot

# %% [markdown]
# The same for all models, by layer. The model with a sink token has learned to use it in its first layer. The others
# are small and were trained briefly, and developed no sink. Models of billions of parameters do, on whatever tokens
# come first.

# %%
rows = [(name, *row[:5]) for name, report in maps.items() for row in report.tables[0].rows]
Table(("trained with", *maps[CHOSEN].tables[0].columns[:5]), rows)

# %% [markdown]
# ## Perplexity in four modes
#
# The same text in one stream, far past the trained context of 128 tokens. `dense` keeps everything. The others have
# the same cache size: `window` keeps the last tokens, `streaming` a few sinks and the last tokens. `recompute` reads
# the sink token and the last tokens again for each token, which is the best possible result, and slow.

# %%
curves = EXPERIMENTS["fig3"].run(subjects[CHOSEN])
curves.plot

# %% [markdown]
# On the same tokens, every tenth of the text:

# %%
curves.tables[1]

# %% [markdown]
# ## Without sinks
#
# Perplexity at one total cache size, with 0, 1, 2, 4 or 8 sinks:

# %%
found = {name: EXPERIMENTS["table2"].run(subject).figures for name, subject in subjects.items()}
counts = [f"sinks: {row[0]}" for row in found[CHOSEN].rows]
Table(("trained with", *counts), [(name, *(row[2] for row in table.rows)) for name, table in found.items()])

# %% [markdown]
# One sink is as good as four, as in the paper's table 3 for a model trained with a sink token. Without it, the heads
# that rely on it spread their attention over other tokens: perplexity jumps at the first eviction and stays high. The
# other two models have no sink and lose nothing.
