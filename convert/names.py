"""Names of tensors: prefixes that training scripts add, and the prefix that bare models lack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

# Inserted by compiled, checkpointed and sharded modules.
_AMID = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_BEFORE = ("module.", "base_model.model.", "model.")  # data parallel training, PEFT, Lightning
_DEPTH = 4  # maximum number of prefixes


def own_name(name: str, is_known: Callable[[str], bool], frame: str) -> str:
    """The name of a tensor in the family's table, without added prefixes; `name` itself if it is not in the table.

    `frame` is the prefix of all tensors but the head, such as `model.`. Checkpoints of bare models lack it.
    """
    inner = _AMID.sub("", name)
    for _ in range(_DEPTH):
        for candidate in (inner, frame + inner):
            if is_known(candidate):
                return candidate
        prefix = next((prefix for prefix in _BEFORE if inner.startswith(prefix)), None)
        if prefix is None:
            break
        inner = inner.removeprefix(prefix)
    return name


def stray_prefix(names: Iterable[str], is_own: Callable[[str], bool]) -> str | None:
    """A prefix, such as `actor.`, without which most of these unknown names are known; None if there is none."""
    names = list(names)
    prefixes = Counter(prefix for name in names if (prefix := _before_own(name, is_own)))
    prefix, count = prefixes.most_common(1)[0] if prefixes else (None, 0)
    return prefix if 2 * count > len(names) else None


def _before_own(name: str, is_own: Callable[[str], bool]) -> str | None:
    """The prefix of a name that is known without it, or None."""
    parts = name.split(".", _DEPTH)
    rests = (".".join(parts[i:]) for i in range(1, len(parts)))
    return next((name.removesuffix(rest) for rest in rests if is_own(rest)), None)
