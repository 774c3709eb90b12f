"""`models`: what is supported."""

from __future__ import annotations


def models() -> None:
    """List the models that are supported, with the options of each.

    MODEL_TYPE and the options are what stands in a model's config.json. An option that is not listed and changes what a
    model computes is refused by name.
    """
    from rich.console import Console
    from rich.table import Table

    from sllm_jax.bundle import bundled_names
    from sllm_jax.models import KINDS
    from sllm_jax.models.config import SINKS
    from sllm_jax.models.layers import ACTIVATIONS
    from sllm_jax.position import ROPE_KINDS

    table = Table("model_type", "models", "options", show_lines=True)
    for model_type, kind in KINDS.items():
        table.add_row(model_type, kind.models, kind.options)
    console = Console()
    console.print(table)
    for name, values in (
        ("rope_scaling", ROPE_KINDS),
        ("activations", ACTIVATIONS),
        ("attention_sink, in models trained here", SINKS),
        ("bundled", bundled_names()),
    ):
        console.print(f"{name}: {', '.join(values)}", highlight=False)
