"""The table of results, in under 8,000 characters, and how each step ended. Needs only Python."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST = 7900
COLUMNS = {  # step, rows: columns
    ("ceilings", "products"): ("size", "dtype", "ms", "tflops"),
    ("agreement", "cases"): (
        "model",
        "precision",
        "bound",
        "logits",
        "logits_of_cpu",
        "chunkings",
        "streams",
        "greedy_same",
        "sampled_same",
        "written",
        "off",
    ),
    ("decode_7b", "decode"): (
        decode := (
            "streams",
            "ms_per_step",
            "tokens_per_second",
            "gb_per_second",
            "fraction_of_read_bandwidth",
            "fraction_of_copy_bandwidth",
            "program_memory_mb",
            "compile_seconds",
        )
    ),
    ("decode_7b", "extend"): (extend := ("streams", "chunk", "ms", "tokens_per_second", "tflops")),
    ("int8_7b", "decode"): decode,
    ("int8_7b", "extend"): extend,
    ("against_recompute", "ratio"): ("cache_size", "ours_ms_per_step", "their_ms_per_step", "ratio_to_ours"),
    ("against_transformers", "ratio"): ("layers", "ours_ms_per_step", "their_ms_per_step", "ratio_to_ours"),
    ("launches", "text"): ("weights", "layers", "kernels", "command_buffers", "by_kind"),
    ("launches", "profile"): ("weights", "kernels_per_step", "busy_us_per_step", "us_per_step", "launches_per_step"),
    ("most_streams", "tries"): ("streams", "ms_per_step", "tokens_per_second", "program_memory_mb"),
}
FIGURES = {  # step: single figures
    "machine": ("card", "kind", "missing"),
    "ceilings": ("copy_gb_per_second", "read_gb_per_second"),
    "launches": ("kernels_per_layer", "kernels_outside_layers"),
    "most_streams": ("free_gb", "stream_gb", "fit_by_size", "most_streams"),
}


def main() -> None:
    """Put how the steps ended into results.json, write table.txt and print it."""
    out = Path(sys.argv[1])
    results = out / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    lines = (out / "steps.txt").read_text().splitlines() if (out / "steps.txt").exists() else []
    found["steps"] = [dict(zip(("step", "seconds", "status"), line.split("\t"), strict=True)) for line in lines]
    results.write_text(json.dumps(found, indent=1) + "\n")
    text = table(found)
    (out / "table.txt").write_text(text + "\n")
    print(text)


def table(found: Mapping[str, Any]) -> str:
    """A line for each step and its figures, cut where it would be too long."""
    parts = []
    for ended in found["steps"]:
        step, figures = ended["step"], found.get(ended["step"], {})
        parts.append(f"## {step}: {ended['status']}, {ended['seconds']} s")
        parts += [f"{name}: {figures[name]}" for name in ("skipped", "error") if name in figures]
        parts += [f"{name}: {short(figures[name])}" for name in FIGURES.get(step, ()) if name in figures]
        for (owner, rows), columns in COLUMNS.items():
            if owner == step and rows in figures:
                parts += [f"- {rows}", *aligned(columns, figures[rows])]
    text = "\n".join(parts)
    return text if len(text) <= LONGEST else text[:LONGEST] + "\n... (the rest is in results.json)"


def aligned(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of equal width, those that no row has left out; a row's error stands at its end."""
    kept = [name for name in columns if any(name in row for row in rows)]
    cells = [kept, *([short(row.get(name)) for name in kept] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ends = ["", *(row.get("error", row.get("skipped", ""))[:120] for row in rows)]
    lines = ("  ".join(map(str.ljust, line, widths)) for line in cells)
    return [f"{line} {end}".rstrip() for line, end in zip(lines, ends, strict=True)]


def short(value: Any) -> str:
    """Four significant digits, large numbers in full."""
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {short(one)}" for name, one in value.items())
    return "" if value is None else str(value)[:300]


if __name__ == "__main__":
    main()
