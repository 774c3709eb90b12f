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
# # Speed and its limit
#
# To generate one token, a model reads all its weights, and every key and value in its cache, once. Memory bandwidth
# therefore limits the speed. This notebook measures both on this machine.

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

# %% [markdown]
# `bundled:llama` has 4 million parameters. It runs anywhere, but is far too small to saturate a GPU or TPU. Use a
# larger model there: any Hugging Face name or folder.

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
# With a full cache, for one stream and for a batch of streams of different lengths. `fraction of read bandwidth`
# compares a step with the limit: the bytes that it must read, divided by the read bandwidth measured in alternation
# with it. Weights that fit into the processor cache are read faster, so a small model on a CPU can exceed 1.

# %%
results.tables()[1]

# %% [markdown]
# ## Prefill
#
# A prompt is read in chunks, many tokens per call:

# %%
results.tables()[2]

# %% [markdown]
# ## The first token
#
# Cold includes the compilation of both programs; warm does not.

# %%
results.tables()[3]

# %% [markdown]
# ## Streaming against re-computation
#
# Without streaming, the only way to generate past the trained context at the same quality is to read the whole window
# again for each token. Streaming reads one token. This is the paper's figure 10: the same model in the same process,
# with alternating calls.

# %%
options = ExperimentOptions(start_size=START_SIZE, cache_sizes=(64, 128, 256))  # 256 to 4,096 in the paper
report = EXPERIMENTS["fig10"].run(ExperimentInputs(model, tokenizer, text="", options=options))
report.plot

# %%
report.tables[0]

# %% [markdown]
# ## An endless stream does not slow down
#
# The time per token does not depend on the number of previous tokens: the same program runs on arrays of the same
# shape.

# %%
stream = sllm_jax.Stream(model, tokenizer, START_SIZE, RECENT_SIZE, steps=250)
rows = []
for _ in range(6):
    begin = time.perf_counter()
    text = "".join(stream.generate(max_tokens=1000, ignore_eos=True, temperature=1.0))
    rows.append((stream.tokens_seen, 1000 / (time.perf_counter() - begin)))
Table(("tokens seen", "tokens per second"), rows[1:])  # the first row includes compilation
