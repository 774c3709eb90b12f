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
# # Quickstart: text without end
#
# A language model that was trained on a few hundred or thousand tokens, and reads and writes for ever: its cache
# keeps the first few tokens of the text, the *attention sinks*, and a window of the most recent ones. Memory and
# speed stay the same however long the text gets ([StreamingLLM](https://arxiv.org/abs/2309.17453), here in JAX).
#
# Runs on a CPU, a GPU or a TPU, whichever JAX finds. In Colab a GPU or a TPU is chosen under *Runtime*.

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
# ## Ten lines
#
# `bundled:llama` comes with the package: 4 million parameters, trained on old novels, context 256 tokens. It
# writes prose in their manner and knows nothing. Here it writes three times what it was trained to see.

# %%
import sllm_jax

model, tokenizer = sllm_jax.load("bundled:llama")
stream = sllm_jax.Stream(model, tokenizer, start_size=4, recent_size=251, seed=1)
stream.feed("It was a cold evening in November, and")
for piece in stream.generate(max_tokens=768, ignore_eos=True):
    print(piece, end="", flush=True)

# %% [markdown]
# What it has read and written, and what of that it still sees:

# %%
print(f"{stream.tokens_seen} tokens seen, {stream.cache_in_use} of {stream.cache_size} in the cache, trained on 256")

# %% [markdown]
# ## A chat that outlives its context
#
# Every turn goes on where the last one ended: nothing is read a second time, and nothing has to be cut off. What
# has left the window is forgotten, though: streaming makes a chat endless, not its memory longer. The bundled
# model was trained on novels alone: it answers as a character of theirs would.

# %%
chat = sllm_jax.Stream(model, tokenizer, start_size=4, recent_size=251)
for question in ("Who stood at the door?", "What did she say to him?", "And what became of the letter?") * 2:
    print(f"\n\nUSER: {question}\nMODEL: ", end="")
    for piece in chat.chat(question, max_tokens=80):
        print(piece, end="", flush=True)
    print(f"  [{chat.tokens_seen} tokens seen, {chat.cache_in_use} in the cache]", end="")

# %% [markdown]
# ## With a Hugging Face name
#
# Llama, Mistral, Qwen, Pythia, GPT-NeoX, Falcon and MPT checkpoints load by their name, or from a folder. With
# `"HuggingFaceTB/SmolLM2-135M-Instruct"` (270 MB) the same lines are a chat with a model that answers; nothing
# else changes, and its own chat template is used.

# %%
NAME = "bundled:gpt-neox"  # or "HuggingFaceTB/SmolLM2-135M-Instruct", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", a folder

model, tokenizer = sllm_jax.load(NAME)
chat = sllm_jax.Stream(model, tokenizer, start_size=4)  # the window: 2,000 tokens, or what fits the trained context
for question in ("Tell me a story of the sea.", "How does it end?"):
    print(f"\n\nUSER: {question}\nMODEL: ", end="")
    for piece in chat.chat(question, max_tokens=120):
        print(piece, end="", flush=True)

# %% [markdown]
# ## Next
#
# - `attention_sinks`: why the first tokens matter.
# - `inside_the_cache`: how the ring works, for those who will change it.
# - `speed`: how near this machine comes to what its memory allows.
