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
# # Inside the cache
#
# For contributors. Everything shown is read from the library's state, `KVState`: arrays of fixed shape, allocated
# once and updated in place.

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
import jax
import jax.numpy as jnp
import numpy as np

import sllm_jax
from sllm_jax.common.result_table import Table
from sllm_jax.core import kv_state
from sllm_jax.core.attention import plan, query_rotations
from sllm_jax.core.decode import extend, extend_program, init_carry, prefill
from sllm_jax.evaluate import ring_picture
from sllm_jax.models.position import rotate
from sllm_jax.text.tokenizer import encode

jax.config.update("jax_default_matmul_precision", "highest")  # a TPU would round matrix products
model, tokenizer = sllm_jax.load("bundled:llama", dtype="float32")  # shows small differences
text = "the cat sat by the window and saw the rain come down on the hill and in the old garden"
ids = encode(tokenizer, text, start=True)

# %% [markdown]
# ## Slots
#
# A cache of 2 sinks and 7 recent tokens has 10 slots: the current token needs one too. The first tokens are written
# to the first slots and stay there. The others fill the window slot by slot. Then the window is a ring: each new token
# replaces the oldest one. Nothing is ever moved.
#
# The number below a token is its *cache position*: its index in the list that the paper's code keeps (the sinks, then
# the window, oldest first). It follows from the slot and two counters, `next_slot` and `filled`. Laps are counted from
# the next token: once the ring is full and the next token goes to the beginning of the window, all tokens in the
# window belong to the previous lap.

# %%
carry = init_carry(model, start_size=2, recent_size=7)
states = {}
for i in range(len(ids)):
    carry = extend(model, carry, ids[i : i + 1], np.int32(1))
    states[i + 1] = carry.state.copy()  # `extend` donates its state

ring_picture.steps({i: states[i] for i in (1, 2, 3, 6, 9, 10, 11, 14, 17, 18, 19)}, lambda i: tokenizer.decode([i]))

# %% [markdown]
# Between two calls, the slot of the next token is dead: its token is evicted already. The age of a slot alone decides
# whether it is live, so evicting tokens only decreases one counter:

# %%
state = states[14]
smaller = kv_state.evict_for_space(state, num_coming=4)
ring_picture.steps({"14": state, "14, room\nfor 4": smaller}, lambda i: tokenizer.decode([i]))

# %% [markdown]
# ## The state
#
# All arrays, with shapes. The number of slots is rounded up to `A`, a multiple of 128, because other sizes make XLA
# copy the cache on GPUs and TPUs. The additional slots stay unused.

# %%
Table(
    ("array", "shape", "dtype"),
    [(jax.tree_util.keystr(path), str(leaf.shape), str(leaf.dtype)) for path, leaf in jax.tree.leaves_with_path(state)],
)

# %% [markdown]
# ## Three rotations of the query
#
# Rotary embeddings rotate keys and queries by their positions; only the difference matters. A key is rotated once, by
# the number of its slot, when it is written. Cache positions shift at every step, so the *query* is rotated in three
# ways: by its cache position for the sinks, by its own slot for window slots of the current lap, and by its slot plus
# the window size for slots of the previous lap. The slot alone decides which of the three rotations scores its key.
#
# The number above each bar is the difference: the distance of the two tokens in cache positions.

# %%
ring_picture.rotations(state)

# %% [markdown]
# A numerical check: a query and the keys of one layer and head, scored as in the library, and with everything rotated
# by its cache position, as the paper's code does at every step:

# %%
planned = plan(state.ring, 1, jnp.int32(1))
rotations, choice = query_rotations(state.ring, planned)
angles = kv_state.angle_table(model.config.rope, state.ring, state.ring)
query = jax.random.normal(jax.random.key(0), (1, model.config.head_dim))

order = kv_state.cache_order(state.ring)
keys = state.k[0][0].T[order]  # [9, D], layer 0, head 0, rotated by their slots
ours = jnp.stack(
    [rotate(query, angles(rotations[choice[slot]][None]))[0] @ key for slot, key in zip(order, keys, strict=True)]
)

positions = jnp.arange(state.ring.cache_size)
unrotated, _ = kv_state.keys_and_values((state.k[0], state.v[0]), state.ring, positions, angles)  # [K, 9, D]
papers = rotate(unrotated[0], angles(positions)) @ rotate(query, angles(planned.position))[0]

Table(
    ("cache position", "slot", "score here", "score the paper's way"),
    [(i, int(order[i]), float(ours[i]), float(papers[i])) for i in range(state.ring.cache_size)],
)

# %%
assert np.allclose(ours, papers, atol=1e-4)
print(f"largest difference: {abs(ours - papers).max():.1e}")

# %% [markdown]
# ## Any chunking gives the same result
#
# The window of a token does not depend on how the stream is cut into chunks. A prompt can therefore be read in chunks
# of any length, even longer than the cache, with the same result as token by token. Here, the model reads its own text
# with five chunk sizes:

# %%
stream = sllm_jax.Stream(model, tokenizer, seed=5)
long = encode(tokenizer, "".join(stream.generate(max_tokens=300, ignore_eos=True, temperature=0.9)), start=True)[:300]

found = {}
for size in (1, 7, 64, 128, 300):
    carry = init_carry(model, start_size=4, recent_size=59)
    for start in range(0, len(long), size):
        chunk = long[start : start + size]
        padded = np.pad(chunk, (0, size - len(chunk)))
        carry = extend(model, carry, padded, np.int32(len(chunk)))
    found[size] = carry

# %%
one = found[1]
rows = []
for size, carry in found.items():
    same_tokens = bool((kv_state.visible_token_ids(carry.state) == kv_state.visible_token_ids(one.state)).all())
    keys_off = max(float(abs(a - b).max()) for a, b in zip(carry.state.k, one.state.k, strict=True))
    rows.append((size, same_tokens, keys_off, float(abs(carry.logits - one.logits).max())))
    assert same_tokens
    assert np.allclose(carry.logits, one.logits, atol=1e-4)
Table(("chunk", "same tokens visible", "keys differ by at most", "logits differ by at most"), rows)

# %% [markdown]
# ## One program
#
# A stream of any length runs the same compiled program: the shapes never change, and every number in a state stays
# below twice the number of slots. Reading 20,000 more tokens compiles nothing (`_cache_size` is the number of programs
# that JAX has compiled for a function):

# %%
carry = prefill(model, carry, long)
before = extend_program._cache_size()
carry = prefill(model, carry, np.tile(long, 67))
compiled = extend_program._cache_size() - before
print(f"{compiled} programs compiled, next_slot {carry.state.ring.next_slot}, filled {carry.state.filled}")

# %% [markdown]
# Further reading: `sllm_jax/core/kv_state.py` (the state), `attention.py` (the plan of a chunk, one token and many),
# `decode.py` (the two jitted programs), and `tests/reference.py` (the paper's list-based cache, the reference of the
# tests).
