"""What the paper itself reports (arXiv 2309.17453), to stand beside our figures; perplexities."""

from __future__ import annotations

from sllm_jax.reproduce.report import Table

SOURCE = "the paper's own figures (arXiv 2309.17453); other models, another text"

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
