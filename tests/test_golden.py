"""The results of the paper's code on three small checkpoints, token by token, against ours in chunks."""

import numpy as np
import pytest

from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.loading.pretrained import load

TOLERANCE = 1e-4  # of nll, float32 on both sides


@pytest.mark.parametrize("checkpoint", ["llama-gqa", "neox-parallel", "falcon-7b"])
@pytest.mark.parametrize("mode", ["dense", "window", "streaming", "recompute"])
@pytest.mark.parametrize("chunk_size", [1, 7, 32, 33, 96])
def test_nll_equals_that_of_the_papers_code(shared, checkpoint, mode, chunk_size):
    model, tokenizer = load(shared / "golden" / checkpoint, dtype="float32")
    assert tokenizer is None
    golden = np.load(shared / "golden" / checkpoint / f"{mode}.npz")
    sizes = (0, 32) if mode == "window" else (4, 28)
    nll = np.concatenate(list(token_nll(model, golden["tokens"], mode, *sizes, chunk_size)))
    np.testing.assert_allclose(nll, golden["nll"], atol=TOLERANCE)
