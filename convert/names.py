"""Names of tensors: what training scripts put around a model's own names, and what was saved without its frame."""

from __future__ import annotations

import re
from collections.abc import Callable

# A compiled, checkpointed or sharded module has a name of its own amid the others.
_AMID = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_BEFORE = ("module.", "base_model.model.", "model.")  # data parallel training, PEFT, Lightning


def own_name(name: str, is_known: Callable[[str], bool], frame: str) -> str:
    """The name that a tensor has in the family's table, without what was put around it; `name` itself if there is none.

    `frame` is the module around all but the head, such as `model.`: it is missing where a bare model was saved.
    """
    inner = _AMID.sub("", name)
    while True:
        for candidate in (inner, frame + inner):
            if is_known(candidate):
                return candidate
        prefix = next((prefix for prefix in _BEFORE if inner.startswith(prefix)), None)
        if prefix is None:
            return name
        inner = inner.removeprefix(prefix)
