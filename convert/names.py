"""Names of tensors: what training scripts put around a model's own names, and what was saved without its frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

# A compiled, checkpointed or sharded module has a name of its own amid the others.
_AMID = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_BEFORE = ("module.", "base_model.model.", "model.")  # data parallel training, PEFT, Lightning
_DEPTH = 4  # wrappings of one name


def own_name(name: str, is_known: Callable[[str], bool], frame: str) -> str:
    """The name that a tensor has in the family's table, without what was put around it; `name` itself if there is none.

    `frame` is the module around all but the head, such as `model.`: it is missing where a bare model was saved.
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
    """The prefix, such as `actor.`, without which most of these unknown names are the model's own; None without one."""
    names = list(names)
    prefixes = Counter(prefix for name in names if (prefix := _before_own(name, is_own)))
    prefix, count = prefixes.most_common(1)[0] if prefixes else (None, 0)
    return prefix if 2 * count > len(names) else None


def _before_own(name: str, is_own: Callable[[str], bool]) -> str | None:
    """What stands before the model's own name, if anything does."""
    parts = name.split(".", _DEPTH)
    rests = (".".join(parts[i:]) for i in range(1, len(parts)))
    return next((name.removesuffix(rest) for rest in rests if is_own(rest)), None)
