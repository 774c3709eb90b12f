"""The same with int8 weights, which halve the bytes of a step with one stream."""

from decode_7b import EXTEND, figures
from step import Record, run


def measure(record: Record, tiny: bool) -> None:
    """As above."""
    figures(record, tiny, True, {1: (None, 128)} if tiny else EXTEND)


if __name__ == "__main__":
    run(measure)
