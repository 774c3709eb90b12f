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
# A language model trained on a few hundred or thousand tokens reads and writes without end: its cache keeps the first
# few tokens of the text, the *attention sinks*, and a window of the most recent ones. Memory and speed stay constant
# ([StreamingLLM](https://arxiv.org/abs/2309.17453), here in JAX).
#
# This notebook runs on a CPU, GPU or TPU. In Colab, choose the device under *Runtime*.

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
# ## Ten lines
#
# `bundled:llama` comes with the package: 4 million parameters, trained on old novels, with a context of 256 tokens. It
# writes prose in their style and has no knowledge. Here it writes three times its trained context.

# %%
import sllm_jax

model, tokenizer = sllm_jax.load("bundled:llama")
stream = sllm_jax.Stream(model, tokenizer, start_size=4, recent_size=251, seed=1)
stream.feed("It was a cold evening in November, and")
for piece in stream.generate(max_tokens=768, ignore_eos=True):
    print(piece, end="", flush=True)

# %% [markdown]
# The tokens read and written, and those still in the cache:

# %%
print(f"{stream.tokens_seen} tokens seen, {stream.cache_in_use} of {stream.cache_size} in the cache, trained on 256")

# %% [markdown]
# ## A chat that outlives its context
#
# Every turn continues where the last one ended: nothing is read again, and nothing is truncated. Evicted tokens are
# forgotten, though: streaming makes a chat endless, but does not extend its context. The bundled model was trained on
# novels only, and answers like a character in one.

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
# Llama, Mistral, Qwen, Pythia, GPT-NeoX, Falcon and MPT checkpoints load by name or from a folder. With
# `"HuggingFaceTB/SmolLM2-135M-Instruct"` (270 MB), the same code chats with an instruction-tuned model, using its own
# chat template.

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
# - `inside_the_cache`: how the ring works, for contributors.
# - `speed`: decoding speed against the memory bandwidth limit.
