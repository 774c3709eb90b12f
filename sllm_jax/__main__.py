"""`python -m sllm_jax` is `sllm-jax`."""

from sllm_jax.cli import main

main()
