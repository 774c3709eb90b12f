"""StreamingLLM in JAX: endless text from language models, in constant memory and at constant speed.

    model, tokenizer = sllm_jax.load()  # the bundled model, or a Hugging Face name or folder
    stream = sllm_jax.Stream(model, tokenizer)
    stream.feed("Once upon a time")
    for piece in stream.generate():
        print(piece, end="", flush=True)

Names are imported when they are first used, so that `import sllm_jax` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sllm_jax.common.version import __version__

if TYPE_CHECKING:
    from sllm_jax.common.errors import SllmError
    from sllm_jax.core.model import Model
    from sllm_jax.evaluate.perplexity import token_nll
    from sllm_jax.loading.pretrained import load
    from sllm_jax.streams.kv_cache import StartRecentKVCache, enable_streaming_llm
    from sllm_jax.streams.stream import Stream

_HOMES = {
    "Model": "core.model",
    "SllmError": "common.errors",
    "StartRecentKVCache": "streams.kv_cache",
    "Stream": "streams.stream",
    "enable_streaming_llm": "streams.kv_cache",
    "load": "loading.pretrained",
    "token_nll": "evaluate.perplexity",
}

__all__ = [
    "Model",
    "SllmError",
    "StartRecentKVCache",
    "Stream",
    "__version__",
    "enable_streaming_llm",
    "load",
    "token_nll",
]


def __dir__() -> list[str]:
    """Public names, including those not imported yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sllm_jax' has no attribute {name!r}")
    return getattr(import_module(f"sllm_jax.{_HOMES[name]}"), name)
