"""Print the README's table of supported models: `python tests/make_supported_models.py`."""

from sllm_jax.convert.families import published


def table() -> list[str]:
    """The lines of the table in Markdown, made from the registry of families."""
    rows = [f"| `{model_type}` | {entry.models} | {entry.options} |" for model_type, entry in published().items()]
    return ["| `model_type` | models | options |", "|---|---|---|", *rows]


if __name__ == "__main__":
    print("\n".join(table()))
