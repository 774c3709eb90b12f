"""The figures reported by the paper (arXiv 2309.17453), shown beside ours."""

from __future__ import annotations

from sllm_jax.common.result_table import Table

SOURCE = "figures of the paper (arXiv 2309.17453), for other models and another text"

TABLE1 = Table(
    ("Llama-2-13B, the paper's Table 1", "perplexity"),
    [
        ("0 + 1024 (window)", 5158.0),
        ("4 + 1020", 5.40),
        ('4 "\\n" + 1020', 5.60),
        ("re-computation", 5.43),
    ],
)
TABLE2 = Table(
    ("the paper's Table 2", "0 sinks", "1", "2", "4", "8"),
    [
        ("Llama-2-7B", 3359.95, 11.88, 10.51, 9.59, 9.54),
        ("Falcon-7B", 17.90, 12.12, 12.12, 12.12, 12.12),
        ("MPT-7B", 460.29, 14.99, 15.00, 14.99, 14.98),
        ("Pythia-12B", 21.62, 11.95, 12.09, 12.09, 12.02),
    ],
)
TABLE5 = Table(
    (
        "the paper's Table 5, exact match (%)",
        *(f"Llama-2-{size}-Chat, {name}" for size in ("7B", "13B", "70B") for name in ("ARC-Easy", "ARC-Challenge")),
    ),
    [
        ("one-shot", 71.25, 53.16, 78.16, 63.31, 91.29, 78.50),
        ("window", 3.58, 1.39, 0.25, 0.34, 0.12, 0.32),
        ("streaming", 71.34, 55.03, 80.89, 65.61, 91.37, 80.20),
    ],
)
TABLE6 = (
    Table(
        ("the paper's Table 6", "4 + 252", "4 + 508", "4 + 1020", "4 + 2044"),
        [
            ("Falcon-7B", 13.61, 12.84, 12.34, 12.84),
            ("MPT-7B", 14.12, 14.25, 14.33, 14.99),
            ("Pythia-12B", 13.17, 12.52, 12.08, 12.09),
        ],
    ),
    Table(
        ("the paper's Table 6", "4 + 508", "4 + 1020", "4 + 2044", "4 + 4092"),
        [("Llama-2-7B", 9.73, 9.32, 9.08, 9.59)],
    ),
)
TABLE7 = Table(
    ("lines back, the paper's Table 7 (Llama-2-7B-32K-Instruct, 4 + 2044)", "accuracy"),
    [(20, 0.8580), (40, 0.8035), (60, 0.7915), (80, 0.7530), (100, 0.0)],
)
FIG10 = Table(
    (
        "cache (tokens), the paper's figure 10 (A6000)",
        *(f"Llama-2-{size}, {name}" for size in ("7B", "13B") for name in ("streaming (ms)", "re-computation (ms)")),
        "Llama-2-13B, speed-up",
    ),
    [
        (256, 31, 63, 48, 99, 99 / 48),
        (512, 31, 103, 52, 169, 169 / 52),
        (1024, 35, 223, 60, 361, 361 / 60),
        (2048, 45, 523, 75, 860, 860 / 75),
        (4096, 65, 1411, 106, 2355, 2355 / 106),
    ],
)
