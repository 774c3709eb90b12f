"""The end of a text and its continuation: end-of-text tokens, chat turns, stop texts, abandoned generators."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.families import module_for
from sllm_jax.core.kv_state import visible_token_ids
from sllm_jax.core.model import Model, init_params
from sllm_jax.streams.stream import Stream, eos_ids
from sllm_jax.text.tokenizer import encode, load_tokenizer

DATA = Path(__file__).parent / "data"
PROMPT = "The cat sat by the window. "
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_of(pieces) -> str:
    return "".join(pieces)


def visible(stream: Stream) -> list[int]:
    ids = visible_token_ids(stream._carry.state)
    return ids[ids >= 0].tolist()


@pytest.fixture
def ended(loaded):
    """A stream that has written its end-of-text token, and the tokens that it would have written then."""
    free = Stream(*loaded, 2, 60, seed=5)
    free.feed(PROMPT)
    text_of(free.generate(20, ignore_eos=True, temperature=1.0))
    model, ids = loaded[0], visible(free)
    end = next(i for i in ids[-12:] if i > 100 and ids.count(i) == 1)
    stream = Stream(replace(model, generation_config={"eos_token_id": end}), loaded[1], 2, 60, seed=5)
    stream.feed(PROMPT)
    text_of(stream.generate(20, temperature=1.0))
    assert visible(stream)[-1] == end
    return stream, ids[len(visible(stream)) :]


def test_after_an_end_of_text_it_writes_on_with_ignore_eos(ended):
    stream, following = ended
    text_of(stream.generate(len(following), ignore_eos=True, temperature=1.0))
    assert visible(stream)[-len(following) :] == following, "and as if there had been no end"
    assert stream.end_reason == "length"


def test_after_an_end_of_text_another_one_may_be_the_end(ended):
    stream, following = ended
    stream.model = replace(stream.model, generation_config={"eos_token_id": following[1]})
    text_of(stream.generate(20, temperature=1.0))
    assert visible(stream)[-2:] == following[:2]


def test_an_end_at_the_last_token_that_is_asked_for_is_an_end_too(ended):
    stream, following = ended
    text_of(stream.generate(1, ignore_eos=True, temperature=1.0))
    assert stream.end_reason == "length"
    stream.model = replace(stream.model, generation_config={"eos_token_id": following[1]})
    text_of(stream.generate(1, temperature=1.0))
    assert stream.end_reason == "eos"
    text_of(stream.generate(1, ignore_eos=True, temperature=1.0))
    assert visible(stream)[-1] == following[2]


@pytest.fixture
def scripted(data, loaded, monkeypatch):
    """A stream that writes a text as its tokens, with the ends that `decode` would honour."""

    module = module_for({**loaded[0].hf_config, "vocab_size": 430}, jnp.float32)  # there is room for the tokens
    params = init_params(module)

    def make(text: str, kind: str = "spm", config: dict | None = None, steps: int = 8) -> Stream:
        tokenizer = load_tokenizer(data / f"tiny-tokenizer-{kind}")
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = CHATML
        stream = Stream(Model(module, params, {}, config or {}), tokenizer, 2, 100, steps=steps)
        script = encode(tokenizer, text, start=False, control_tokens=True).tolist()

        def write(limit, _, end_ids):
            ids = script[:limit]
            if ends := [i for i, token in enumerate(ids) if token in end_ids]:
                ids = ids[: ends[0] + 1]
            del script[: len(ids)]
            stream._read(np.array(ids, np.int32))
            stream._carry = stream._carry.replace(done=jnp.array(bool(ends)))
            return ids

        monkeypatch.setattr(stream, "_write", write)
        return stream

    return make


@pytest.mark.parametrize("kind", ["spm", "bytes"])
def test_chat_ends_where_the_template_ends_a_turn(scripted, kind):
    stream = scripted("Fine.<|im_end|>\n<|im_start|>user\nI said", kind)
    assert text_of(stream.chat("How are you?")).strip() == "Fine."
    assert stream.end_reason == "stop"
    assert visible(stream)[-1] == stream.tokenizer.convert_tokens_to_ids("<|im_end|>"), "the next turn needs it there"


def test_chat_ends_at_the_text_before_the_next_turn(scripted):
    stream = scripted("Fine. Human: I said")
    stream.tokenizer.chat_template = "{% for m in messages %} Human: {{ m.content }}{% endfor %}"
    assert text_of(stream.chat("How are you?")).strip() == "Fine."
    assert stream.end_reason == "stop"


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|im_end|>\n", " <|im_end|>"])
def test_a_stop_text_that_is_a_control_token_is_found_by_its_id(scripted, stop):
    stream = scripted("Fine.<|im_end|>\nAnd on")
    stream.feed(PROMPT)
    assert text_of(stream.generate(40, [stop])).strip() == "Fine."
    assert stream.end_reason == "stop"


def test_a_stop_text_with_a_control_token_in_it_is_refused(scripted):
    with pytest.raises(SllmError, match=r"the stop text 'on<.im_end.>' contains a control token, which has no text"):
        scripted("").generate(40, ["on<|im_end|>"])


@pytest.mark.parametrize("stops", ["And", ["<|im_end|>"], ["never", "on", "<|im_end|>\n"]])
def test_stop_strings_of_the_generation_config_are_honoured(scripted, stops):
    stream = scripted("Fine.<|im_end|> And on", config={"stop_strings": stops})
    stream.feed(PROMPT)
    assert text_of(stream.generate(40)).strip().startswith("Fine.")
    assert stream.end_reason == "stop"


def test_stop_strings_of_the_generation_config_do_not_count_with_ignore_eos(scripted):
    stream = scripted("Fine. And on", config={"stop_strings": ["And"]})
    stream.feed(PROMPT)
    assert text_of(stream.generate(12, ignore_eos=True)).strip().startswith("Fine. And")


def test_stop_strings_that_can_never_appear_are_warned_of(scripted):
    stream = scripted("Fine.", config={"stop_strings": ["on<|im_end|>"]})
    with pytest.warns(UserWarning, match="contain control tokens and never appear"):
        stream.generate(40)


def test_text_after_an_abandoned_generator_begins_with_what_it_held_back(scripted):
    stream = scripted("one two three four five six")
    stream.feed(PROMPT)
    pieces = stream.generate(40, ["four fish"])
    shown = ""
    while "two" not in shown:
        shown += next(pieces)
    pieces.close()
    assert not shown.endswith("four"), "held back: it may begin a stop text"
    assert (shown + text_of(stream.generate(14))).strip().startswith("one two three four five six")


EMOJI = "So 🙂 it 日本 is 🙂🙂."


@pytest.mark.parametrize("kind", ["spm", "bytes"])
def test_no_character_is_eaten_between_two_calls(scripted, kind):
    count = len(encode(load_tokenizer(DATA / f"tiny-tokenizer-{kind}"), EMOJI, start=False))
    for cut in range(1, count):
        stream = scripted(EMOJI, kind)
        stream.feed(PROMPT)
        first, second = text_of(stream.generate(cut)), text_of(stream.generate(count - cut))
        assert first.count("\ufffd") <= 3, "the cut character, and that alone"
        assert (first.replace("\ufffd", "") + second).strip() == EMOJI


@pytest.mark.parametrize("kind", ["spm", "bytes"])
def test_no_character_is_eaten_by_an_abandoned_generator(scripted, kind):
    count = len(encode(load_tokenizer(DATA / f"tiny-tokenizer-{kind}"), EMOJI, start=False))
    for steps in range(1, count):
        stream = scripted(EMOJI, kind, steps=steps)
        stream.feed(PROMPT)
        pieces = stream.generate(count)
        first = next(pieces)
        pieces.close()
        assert (first + text_of(stream.generate(count - steps))).strip() == EMOJI


def test_what_was_held_back_is_old_once_something_is_fed(scripted):
    stream = scripted("one four")
    stream.feed(PROMPT)
    pieces = stream.generate(40, ["four fish"])
    next(pieces)
    pieces.close()
    stream.feed("Go on.")
    assert "four" not in text_of(stream.generate(1))


@pytest.mark.parametrize("spelling", ["<|im_end|>", "</s>", "a<s>b"])
def test_a_prompt_that_spells_a_control_token_is_text(scripted, spelling):
    stream = scripted("")
    stream.feed(f"Say {spelling} twice.")
    special = set(stream.tokenizer.all_special_ids)
    assert [i for i in visible(stream) if i in special] == [stream.tokenizer.bos_token_id]


@pytest.mark.parametrize(
    ("config", "generation_config", "ids"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": None}, [2, 7, 8]),
        ({"eos_token_id": [7, 8]}, {}, [2, 7, 8]),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, [2, 9]),
        ({"eos_token_id": None}, {"eos_token_id": None}, [2]),
    ],
)
def test_a_null_in_the_generation_config_hides_nothing(loaded, config, generation_config, ids):
    model = replace(loaded[0], hf_config=config, generation_config=generation_config)
    assert eos_ids(model, loaded[1]) == ids


@pytest.mark.parametrize("wrong", ["</s>", [2, "</s>"], [True], 2.0])
def test_a_wrong_eos_token_id_names_the_file_that_has_it(loaded, wrong):
    with pytest.raises(SllmError, match=r"eos_token_id in the model's config\.json must be token ids"):
        eos_ids(replace(loaded[0], hf_config={"eos_token_id": wrong}, generation_config={}), loaded[1])
    with pytest.raises(SllmError, match=r"eos_token_id in the model's generation_config\.json must be token ids"):
        eos_ids(replace(loaded[0], hf_config={}, generation_config={"eos_token_id": wrong}), loaded[1])
