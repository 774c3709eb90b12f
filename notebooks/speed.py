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
# # Speed, and what bounds it
#
# To write one token a model reads all its weights, and every key and value in its cache, once. Nothing can be
# faster than these bytes at the speed at which the machine reads memory. This notebook measures both on the
# machine at hand.

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

# %% [markdown]
# `bundled:llama` is small, 4 million parameters: it runs anywhere, and on a GPU or a TPU it is far too small to
# keep the machine busy. A larger model tells more there; any Hugging Face name or folder will do.

# %%
import time

import sllm_jax
from sllm_jax.benchmark.run import BenchmarkSettings, run_benchmark
from sllm_jax.common.result_table import Table
from sllm_jax.reproduce import EXPERIMENTS
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions

NAME = "bundled:llama"
START_SIZE, RECENT_SIZE = 4, 251

begin = time.perf_counter()
model, tokenizer = sllm_jax.load(NAME)
load_seconds = time.perf_counter() - begin
results = run_benchmark(model, BenchmarkSettings(START_SIZE, RECENT_SIZE, streams=(1, 16), rounds=5), load_seconds)
results.tables()[0]

# %% [markdown]
# ## Decoding
#
# With a full cache, streams side by side, each of its own length. `fraction of read bandwidth` says how near a
# step comes to the limit: the bytes that it must read, at the speed at which this machine was seen to read
# memory, between the calls. Weights that fit the processor's own cache are read faster than that, so that a small
# model on a CPU can be beyond 1.

# %%
results.tables()[1]

# %% [markdown]
# ## Reading
#
# A prompt is read in chunks, many tokens a call:

# %%
results.tables()[2]

# %% [markdown]
# ## The first token
#
# Cold is the first time, when both programs are compiled; warm any time after that.

# %%
results.tables()[3]

# %% [markdown]
# ## Streaming against re-computation
#
# Without streaming the only way to write past the trained context, and stay as good, is to read the whole window
# anew for each token. Streaming reads one. This is the paper's figure 10: the same model, in the same process,
# their calls in turns.

# %%
options = ExperimentOptions(start_size=START_SIZE, cache_sizes=(64, 128, 256))  # 256 to 4,096 in the paper
report = EXPERIMENTS["fig10"].run(ExperimentInputs(model, tokenizer, text="", options=options))
report.plot

# %%
report.tables[0]

# %% [markdown]
# ## An endless stream does not slow down
#
# The time of a token does not depend on how many there were: the same program, on arrays of the same shape.

# %%
stream = sllm_jax.Stream(model, tokenizer, START_SIZE, RECENT_SIZE, steps=250)
rows = []
for _ in range(6):
    begin = time.perf_counter()
    text = "".join(stream.generate(max_tokens=1000, ignore_eos=True, temperature=1.0))
    rows.append((stream.tokens_seen, 1000 / (time.perf_counter() - begin)))
Table(("tokens seen", "tokens per second"), rows[1:])  # without the first, which has the programs compiled
