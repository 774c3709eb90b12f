"""StreamingLLM in JAX: endless text from language models in constant memory."""

from sllm_jax.version import __version__

__all__ = ["__version__"]
