"""The options of the commands: their types and what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sllm_jax.loading.bundle import bundled_names

MODEL, CACHE, SAMPLING = "Model", "Cache", "Sampling"

Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        autocompletion=bundled_names,
        help=f"A model that comes with the package ({', '.join(bundled_names())}), a Hugging Face name (such as "
        "lmsys/vicuna-7b-v1.5), a Hugging Face folder, or a converted checkpoint.",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a Hugging Face name.", rich_help_panel=MODEL)]
Tokenizer = Annotated[
    str | None,
    Option(help="Take the tokenizer from this name, folder or file instead of the model's.", rich_help_panel=MODEL),
]
Dtype = Annotated[
    str | None,
    Option(
        help="float32, bfloat16 or float16, of weights and cache.",
        show_default="float32 on a CPU, bfloat16 on a GPU or TPU",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    str | None,
    Option(
        help="int8: weights of linear layers in a quarter of the memory of float32.",
        show_default="as they are",
        rich_help_panel=MODEL,
    ),
]

StartSize = Annotated[
    int, Option(help="Attention sinks: the first tokens of the stream, never evicted.", rich_help_panel=CACHE)
]
RecentSize = Annotated[
    int | None,
    Option(
        help="Most recent tokens kept besides the sinks.",
        show_default="2000, or what fits the trained context",
        rich_help_panel=CACHE,
    ),
]
Mode = Annotated[
    str,
    Option(help="streaming: without end. dense: keep everything, up to the trained context.", rich_help_panel=CACHE),
]

Temperature = Annotated[
    float | None,
    Option(help="Above 1 livelier, below 1 safer, 0 is greedy.", show_default="the model's", rich_help_panel=SAMPLING),
]
TopK = Annotated[
    int | None,
    Option(
        help="Choose among the K most probable tokens; 0: all.", show_default="the model's", rich_help_panel=SAMPLING
    ),
]
TopP = Annotated[
    float | None,
    Option(
        help="Choose among the fewest tokens whose probabilities add up to P; 1: all.",
        show_default="the model's",
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    Option(
        help="Choose among tokens at least P times as probable as the most probable one; 0: all.",
        show_default="the model's",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    Option(
        help="Above 1: make tokens less probable that are still in the cache.",
        show_default="the model's",
        rich_help_panel=SAMPLING,
    ),
]
Greedy = Annotated[
    bool, Option("--greedy", help="Always the most probable token: --temperature 0.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int, Option(help="The same seed writes the same text.", rich_help_panel=SAMPLING)]

ControlTokens = Annotated[
    bool,
    Option(
        "--control-tokens",
        help="Let text that spells a control token, such as <|im_end|>, stand for that token; else it is plain text.",
    ),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object on standard output and nothing else.")]
Stop = Annotated[list[str] | None, Option(help="End where this text appears (may be given several times).")]
Source = Annotated[
    str, Argument(help="A bundled model, a Hugging Face name or folder, or a converted checkpoint.", metavar="SRC")
]
Out = Annotated[Path, Argument(help="The folder to write; it must not exist yet.", metavar="OUT")]
