"""The picture of `sllm-jax demo` in docs/demo.svg: its last frame in a terminal of 100 x 30.

python tests/make_demo_picture.py docs/demo.svg
"""

import io
import sys

from rich.console import Console

import sllm_jax
from sllm_jax.cli.columns import Columns
from sllm_jax.cli.demo import BELOW, MODEL, NEXT, explanation
from sllm_jax.evaluate.side_by_side import RUNNING, SideBySide

if __name__ == "__main__":
    model, tokenizer = sllm_jax.load(MODEL)
    opening = model.generation_config["opening"]
    trio = SideBySide(model, tokenizer, opening)
    console = Console(file=io.StringIO(), record=True, width=100, height=30, force_terminal=True)
    columns = Columns(trio, RUNNING, f"{MODEL}, seed 0: {opening}")
    for _ in trio.write():
        columns.frame(console, BELOW)  # lines are wrapped as they come
    console.print(columns.frame(console, BELOW))
    console.print(f"\n{explanation(trio)}\n{NEXT}", highlight=False)
    console.save_svg(sys.argv[1], title="sllm-jax demo")
