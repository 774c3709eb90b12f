"""Measure a chat of many turns in one stream that is never reset (not a test).

    python tests/measure_chat.py MODEL mt_bench_question.jsonl OUT [--turns 60] [--recent-size 1020] [--max-tokens 200]

The questions are those of MT-Bench, two turns each (lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/question.jsonl).
Writes a new folder: `chat.csv` with one row for each turn, `chat.png`, and `chat.md` with every tenth answer.
"""

import argparse
import csv
import json
import time
from itertools import islice
from pathlib import Path

import jax
import numpy as np

import sllm_jax
from sllm_jax.common.plot import Plot
from sllm_jax.common.result_table import Table

COLUMNS = ("turn", "question", "tokens_read", "tokens_written", "ms_per_token", "tokens_seen", "cache_in_use", "end")
SHOWN, CLIPPED = 10, 60  # every tenth answer; characters of a question


def turns_of(path: Path) -> list[tuple[str, str]]:
    """The number and the text of each turn."""
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (f"{one['question_id']}, turn {i}", text) for one in questions for i, text in enumerate(one["turns"], start=1)
    ]


def ask(stream: sllm_jax.Stream, text: str, options: dict) -> tuple[str, int, int, float]:
    """One turn: the answer, tokens read, tokens written, and ms per token from the first piece of the answer on."""
    before = stream.tokens_seen
    pieces = stream.chat(text, **options)
    read, answer, first, since = stream.tokens_seen - before, "", 0, 0.0
    for piece in pieces:
        answer += piece
        if not first:  # the question has been read, and the first block of the answer written
            first, since = stream.tokens_seen, time.perf_counter()
    timed = stream.tokens_seen - first
    milliseconds = 1e3 * (time.perf_counter() - since) / timed if first and timed else float("nan")
    return answer, read, stream.tokens_seen - before - read, milliseconds


def draw(figure, rows):
    """Time per token and cache in use, by turn."""
    top, bottom = figure.subplots(2, 1, sharex=True)
    turns = [row[0] for row in rows]
    top.plot(turns, [row[4] for row in rows], color="#00487A", marker=".")  # none where one block held the answer
    top.set(ylabel="ms per token", ylim=(0, 1.2 * np.nanmax([row[4] for row in rows])))
    bottom.plot(turns, [row[5] for row in rows], color="#E8743B", label="tokens seen")
    bottom.plot(turns, [row[6] for row in rows], color="#00487A", label="in the cache")
    bottom.set(xlabel="Turn", ylabel="Tokens", xlim=(1, turns[-1]))
    bottom.legend(fontsize=9)


def page(rows: list[tuple], shown: list[tuple], asked: argparse.Namespace, stream: sllm_jax.Stream) -> str:
    """The report."""
    tenth = max(1, len(rows) // 10)
    columns = ("turns", "tokens seen", "ms per token, median")
    parts = [
        (f"{part[0][0]} to {part[-1][0]}", part[-1][5], float(np.nanmedian([row[4] for row in part])))
        for part in (rows[:tenth], rows[-tenth:], rows)
    ]
    settings = {
        "model": Path(asked.model).name,
        "questions": f"{len(rows)} turns of MT-Bench, in order, in one stream",
        "cache": f"{asked.start_size} + {stream.cache_size - asked.start_size} tokens kept",
        "answers": f"at most {asked.max_tokens} tokens, temperature {asked.temperature}, top_p {asked.top_p}, seed 0",
        "device": f"{jax.devices()[0].platform} ({jax.devices()[0].device_kind})",
        "sllm-jax": sllm_jax.__version__,
    }
    texts = [
        f"## Turn {turn}: question {number}\n\n*{clipped(text)}*\n\n{quoted(answer)}\n\n({end})"
        for turn, number, text, answer, end in shown
    ]
    tables = [Table(columns, parts).markdown(), Table(("setting", "value"), list(settings.items())).markdown()]
    return "\n\n".join(["# A chat that is never reset", "![chat](chat.png)", *tables, *texts]) + "\n"


def clipped(text: str) -> str:
    """The beginning of a question, on one line."""
    line = " ".join(text.replace("*", "").split())
    return line if len(line) <= CLIPPED else f"{line[:CLIPPED]}..."


def quoted(text: str) -> str:
    """A text as a Markdown quotation, so that its own Markdown stays inside."""
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines()) or "> (nothing)"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("model")
    options.add_argument("questions", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--turns", type=int, default=60)
    options.add_argument("--start-size", type=int, default=4)
    options.add_argument("--recent-size", type=int, default=1020)
    options.add_argument("--max-tokens", type=int, default=200)
    options.add_argument("--temperature", type=float, default=0.7)
    options.add_argument("--top-p", type=float, default=0.9)
    asked = options.parse_args()
    model, tokenizer = sllm_jax.load(asked.model)
    stream = sllm_jax.Stream(model, tokenizer, asked.start_size, asked.recent_size)
    asked.out.mkdir()
    chosen = {"max_tokens": asked.max_tokens, "temperature": asked.temperature, "top_p": asked.top_p}
    rows, shown = [], []
    for turn, (number, text) in enumerate(islice(turns_of(asked.questions), asked.turns), start=1):
        answer, read, written, milliseconds = ask(stream, text, chosen)
        rows.append(
            (turn, number, read, written, milliseconds, stream.tokens_seen, stream.cache_in_use, stream.end_reason)
        )
        print(*rows[-1], answer[:70].replace("\n", " "), sep=" | ", flush=True)
        if turn % SHOWN == 0:
            shown.append((turn, number, text, answer, f"ended by: {stream.end_reason}"))
    with (asked.out / "chat.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    (asked.out / "chat.png").write_bytes(Plot(lambda figure: draw(figure, rows)).render())
    (asked.out / "chat.md").write_text(page(rows, shown, asked, stream), encoding="utf-8")


if __name__ == "__main__":
    main()
