"""Options shared by several commands: types, help texts, and groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from sllm_jax.cli.console import progress
from sllm_jax.loading.bundle import DEFAULT_MODEL, bundled_names

if TYPE_CHECKING:
    from sllm_jax.core.model import Model
    from sllm_jax.core.sampling import SamplingOptions

MODEL, CACHE, SAMPLING = "Model", "Cache", "Sampling"  # panels of --help

ModelName = Annotated[
    str,
    Option(
        "--model",
        "-m",
        autocompletion=bundled_names,
        help=f"A bundled model ({', '.join(bundled_names())}), a Hugging Face name (such as "
        "lmsys/vicuna-7b-v1.5), a Hugging Face folder, a GGUF file, or a converted checkpoint.",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a Hugging Face name.", rich_help_panel=MODEL)]
Dtype = Annotated[
    str | None,
    Option(
        help="Dtype of weights and cache: float32, bfloat16 or float16.",
        show_default="float32 on a CPU, bfloat16 on a GPU or TPU",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    str | None,
    Option(
        help="int8: store the weights of linear layers in a quarter of the memory of float32.",
        show_default="unchanged",
        rich_help_panel=MODEL,
    ),
]

StartSize = Annotated[
    int, Option(help="Number of attention sinks: first tokens of the stream, never evicted.", rich_help_panel=CACHE)
]
RecentSize = Annotated[
    int | None,
    Option(
        help="Window: number of most recent tokens kept besides the sinks.",
        show_default="2000, or what fits the trained context",
        rich_help_panel=CACHE,
    ),
]
ControlTokens = Annotated[
    bool,
    Option(
        "--control-tokens",
        help="Encode the spelling of a control token, such as <|im_end|>, as that token instead of as plain text.",
    ),
]
Json = Annotated[bool, Option("--json", help="Print only a JSON object on standard output.")]
PromptArgument = Annotated[
    str | None,
    Argument(metavar="PROMPT", help='The text to continue; "-" reads standard input.', show_default=False),
]
PromptOption = Annotated[str | None, Option("--prompt", "-p", help="Same as PROMPT.")]
Stop = Annotated[list[str] | None, Option(help="Stop where this text appears; repeatable.")]
Source = Annotated[
    str,
    Argument(
        help="A bundled model, a Hugging Face name or folder, a GGUF file, or a converted checkpoint.", metavar="SRC"
    ),
]
Out = Annotated[Path, Argument(help="The folder to write; it must not exist yet.", metavar="OUT")]


@dataclass(frozen=True)
class ModelGroup:
    """The model and how to load it."""

    model: ModelName = DEFAULT_MODEL
    revision: Revision = None
    tokenizer: Annotated[
        str | None,
        Option(help="Load the tokenizer from this name, folder or file instead.", rich_help_panel=MODEL),
    ] = None
    dtype: Dtype = None
    weights: Weights = None

    def load(self) -> tuple[Model, Any]:
        """Load the model and its tokenizer, with a progress bar. Raises `SllmError`."""
        from sllm_jax.loading.pretrained import load

        with progress("loading") as bar:
            return load(self.model, self.dtype, self.revision, self.tokenizer, bar, self.weights)


@dataclass(frozen=True)
class CacheSizes:
    """The sizes of a cache, named as in `Stream`."""

    start_size: StartSize = 4
    recent_size: RecentSize = None

    def check(self) -> None:
        """Raises `SllmError` for invalid sizes."""
        from sllm_jax.core.kv_state import check_sizes

        check_sizes(self.start_size, self.recent_size or 0)


@dataclass(frozen=True)
class CacheGroup:
    """The mode and sizes of a stream's cache, named as in `Stream`."""

    mode: Annotated[
        str,
        Option(
            help="streaming: keep sinks and window. dense: keep everything, up to the trained context.",
            rich_help_panel=CACHE,
        ),
    ] = "streaming"
    start_size: StartSize = 4
    recent_size: RecentSize = None

    def check(self) -> None:
        """Raises `SllmError` for an invalid mode or invalid sizes."""
        from sllm_jax.core.kv_state import check_sizes
        from sllm_jax.streams.stream import check_stream_mode

        check_stream_mode(self.mode)
        check_sizes(self.start_size, self.recent_size or 0)


@dataclass(frozen=True)
class SamplingGroup:
    """Sampling options; None is the model's default."""

    temperature: Annotated[
        float | None,
        Option(
            help="Softmax temperature; higher is more random, 0 is greedy.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Option(
            help="Sample from the K most probable tokens; 0: all.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            help="Sample from the fewest tokens whose probabilities sum to at least P; 1: all.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Option(
            help="Sample from tokens at least P times as probable as the most probable one; 0: all.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option(
            help="Penalty on tokens in the cache; above 1 makes them less probable.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    greedy: Annotated[
        bool,
        Option(
            "--greedy", help="Always choose the most probable token; same as --temperature 0.", rich_help_panel=SAMPLING
        ),
    ] = False
    seed: Annotated[int, Option(help="Random seed; the same seed gives the same text.", rich_help_panel=SAMPLING)] = 0

    def chosen(self) -> SamplingOptions:
        """The keyword arguments of `Stream.generate` and `Stream.chat`."""
        return {
            "temperature": 0.0 if self.greedy else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }

    def check(self) -> None:
        """Raises `SllmError` for values out of range; `Stream` checks the seed."""
        from sllm_jax.core.sampling import sampling_for

        sampling_for({}, **self.chosen())
