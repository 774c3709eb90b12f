"""Streams of text: the text shown is the text in the stream, however it was fed, stopped and continued."""

import signal
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.core.kv_state import visible_token_ids
from sllm_jax.streams.stream import Stream, eos_ids, fit_sizes
from sllm_jax.text.detokenize import Detokenizer
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer

PROMPT = "The cat sat by the window. "


@pytest.fixture
def new_stream(loaded):
    def make(start_size=2, recent_size=60, **options) -> Stream:
        return Stream(*loaded, start_size, recent_size, **options)

    return make


def text_of(pieces) -> str:
    return "".join(pieces)


def shown_of(tokenizer, ids) -> str:
    detokenizer = Detokenizer(tokenizer)
    return detokenizer.add(ids) + detokenizer.flush()


def visible(stream: Stream) -> list[int]:
    ids = visible_token_ids(stream._carry.state)
    return ids[ids >= 0].tolist()


def test_pieces_join_to_the_decode_of_all_tokens(new_stream):
    stream = new_stream()
    stream.feed(PROMPT)
    text = text_of(stream.generate(40, ignore_eos=True, temperature=1.0))
    ids = visible(stream)
    assert stream.tokens_written == 40
    assert shown_of(stream.tokenizer, ids) == PROMPT + text


def test_steps_of_a_call_change_nothing(new_stream):
    texts = []
    for steps in (1, 5, 8):
        stream = new_stream(steps=steps, seed=3)
        stream.feed(PROMPT)
        texts.append(text_of(stream.generate(23, ignore_eos=True, temperature=1.0)))
    assert texts[0] == texts[1] == texts[2]


def test_feeding_and_writing_in_parts_is_one_stream(new_stream):
    whole, parts = new_stream(seed=1), new_stream(seed=1)
    whole.feed(PROMPT)
    parts.feed(PROMPT)
    expected = text_of(whole.generate(30, ignore_eos=True, temperature=0.9))
    found = [text_of(parts.generate(count, ignore_eos=True, temperature=0.9)) for count in (11, 19)]
    assert text_of(found) == expected
    assert visible(parts) == visible(whole)


def test_the_seed_decides(new_stream):
    texts = [text_of(new_stream(seed=seed).generate(30, ignore_eos=True, temperature=1.0)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_prompt_it_begins_with_bos(new_stream):
    stream = new_stream()
    text_of(stream.generate(5, ignore_eos=True))
    assert visible(stream)[0] == stream.tokenizer.bos_token_id
    assert stream.tokens_seen == 6


@pytest.fixture
def one_special_token(data, tmp_path):
    """A tokenizer in the manner of GPT-NeoX, whose BOS is its EOS, with a special token for a sink besides."""
    for path in (data / "tiny-tokenizer-bytes").iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("<|padding|>", "<|sink|>"))
    return load_tokenizer(tmp_path)


def test_a_bos_that_is_the_eos_begins_a_text_and_does_not_end_it(loaded, one_special_token):
    stream = Stream(loaded[0], one_special_token, 2, 60)
    assert one_special_token.bos_token_id == one_special_token.eos_token_id == 0
    assert 0 in eos_ids(loaded[0], one_special_token)
    text = text_of(stream.generate(9))
    ids = visible(stream)
    assert (ids[0], stream.tokens_written, stream.tokens_seen) == (0, 9, 10)
    assert text == decode_text(one_special_token, ids[1:])
    assert "<|" not in text


def test_special_tokens_are_never_shown(loaded, one_special_token, monkeypatch):
    stream = Stream(loaded[0], one_special_token, 2, 60)
    first, second = (encode(one_special_token, text, start=False).tolist() for text in ("One text.", "Another."))
    script = [1, *first, 0, 1, *second, 0]

    def write(limit, *_):
        ids, script[:] = script[:limit], script[limit:]
        stream._read(np.array(ids, np.int32))
        return ids

    monkeypatch.setattr(stream, "_write", write)
    assert text_of(stream.generate(40)) == "One text.Another."
    assert visible(stream)[0] == 0


def test_bos_stands_at_the_start_only(new_stream):
    stream = new_stream()
    stream.feed("The")
    stream.feed("The")
    assert visible(stream).count(stream.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("steps", [1, 8])
def test_a_stop_text_is_neither_shown_nor_kept(new_stream, steps):
    free = new_stream(seed=3)
    free.feed(PROMPT)
    text = text_of(free.generate(40, ignore_eos=True, temperature=1.0))
    stop = text[12:15]
    stream = new_stream(seed=3, steps=steps)
    stream.feed(PROMPT)
    shown = text_of(stream.generate(40, [stop], ignore_eos=True, temperature=1.0))
    assert shown == text[: text.index(stop)]
    kept = shown_of(stream.tokenizer, visible(stream))
    assert (PROMPT + shown).startswith(kept)
    assert len(kept) > len(PROMPT + shown) - 12, "only the token that the stop text cuts in two may be missing"
    assert stream.tokens_written == stream.tokens_seen - len(encode(stream.tokenizer, PROMPT, start=True))


@pytest.mark.parametrize("sizes", [(4, 60), (4, 9), (4, 2), (3, 0), (0, 12)])
def test_after_a_stop_text_the_stream_goes_on_from_what_is_left(new_stream, sizes):
    stream = new_stream(*sizes, seed=3)
    stream.feed(PROMPT)
    sinks = visible(stream)[: sizes[0]]
    free = new_stream(*sizes, seed=3)
    free.feed(PROMPT)
    text = text_of(free.generate(30, ignore_eos=True, temperature=1.0))
    assert (
        text_of(stream.generate(30, [text[11:15]], ignore_eos=True, temperature=1.0)) == text.partition(text[11:15])[0]
    )
    ids = visible(stream)
    assert ids[: sizes[0]] == sinks, "the sinks stay"
    assert ids[-1:] == [stream._last[-1]] or sum(sizes) == sizes[0]
    if sizes == (4, 60):  # nothing was evicted: the same tokens read anew say the same
        other = new_stream(*sizes)
        other._read(np.array(ids, np.int32))
        np.testing.assert_allclose(stream._carry.logits, other._carry.logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["spm", "bytes"])
@pytest.mark.parametrize("stop", ["\n", "\n\nUSER:", "🙂", "SER"])
@pytest.mark.parametrize("steps", [1, 8])
def test_tokens_without_text_of_their_own_are_taken_back_too(data, loaded, monkeypatch, kind, stop, steps):
    tokenizer = load_tokenizer(data / f"tiny-tokenizer-{kind}")
    stream = Stream(loaded[0], tokenizer, 2, 100, steps=steps)
    stream.feed(PROMPT)
    script = encode(tokenizer, f"So it is.{stop} And on", start=False).tolist()

    def write(limit, *_):
        ids, script[:] = script[:limit], script[limit:]
        stream._read(np.array(ids, np.int32))
        return ids

    monkeypatch.setattr(stream, "_write", write)
    shown = text_of(stream.generate(40, [stop]))
    assert shown.endswith("So it is.")
    kept = decode_text(tokenizer, visible(stream))
    assert (PROMPT + shown).startswith(kept)
    assert len(kept) >= len(PROMPT + shown) - 2, "only a token that the stop text cuts in two may be missing"


def test_ctrl_c_never_breaks_a_stream(new_stream):
    stream = new_stream()
    stream.feed(PROMPT)
    for after in (0.01, 0.03, 0.002, 0.05, 0.02, 0.004):
        timer = threading.Timer(after, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            text_of(start(timer, stream.generate(ignore_eos=True, temperature=1.0)))
        assert visible(stream)[-1] == stream._last[-1]
        assert stream.tokens_seen == stream.tokens_written + len(encode(stream.tokenizer, PROMPT, start=True))
    assert text_of(stream.generate(5, ignore_eos=True, temperature=1.0))


def start(timer, pieces):
    timer.start()
    yield from pieces


def test_ctrl_c_while_reading_keeps_what_was_read(new_stream):
    stream = new_stream()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.feed(PROMPT * 100, interrupt)
    assert stream.tokens_seen == 512
    assert text_of(stream.generate(5, ignore_eos=True, temperature=1.0))


def test_a_refused_option_leaves_the_stream_alone(new_stream):
    stream = new_stream()
    with pytest.raises(SllmError, match="top_p"):
        stream.chat("Hello", top_p=5.0)
    assert stream.tokens_seen == 0


def test_it_stops_at_the_end_of_text_and_goes_on_after_more_is_fed(new_stream, loaded):
    model, tokenizer = loaded
    first = new_stream(seed=5)
    first.feed(PROMPT)
    text_of(first.generate(20, ignore_eos=True, temperature=1.0))
    end = visible(first)[-10]
    model = replace(model, generation_config={"eos_token_id": end})
    stream = Stream(model, tokenizer, 2, 60, seed=5)
    stream.feed(PROMPT)
    text_of(stream.generate(20, temperature=1.0))
    assert visible(stream)[-1] == end
    assert stream.tokens_written <= 11
    assert stream.end_reason == "eos"
    assert text_of(stream.generate(20, temperature=1.0)) == "", "the end of text is the end until more is read"
    assert stream.end_reason == "eos"
    stream.feed("So")
    assert text_of(stream.generate(3, ignore_eos=True, temperature=1.0))


def test_memory_of_the_host_is_bounded(new_stream):
    stream = new_stream(recent_size=20)
    text_of(stream.generate(1200, ignore_eos=True, temperature=1.0))
    assert stream.cache_in_use == stream.cache_size == 22
    assert stream.tokens_seen == 1201
    assert len(stream._last) == 512


def test_dense_ends_at_the_trained_context(new_stream):
    stream = new_stream(mode="dense")
    stream.feed(PROMPT)
    text_of(stream.generate(ignore_eos=True))
    assert stream.full
    assert stream.tokens_seen == 128
    with pytest.raises(SllmError, match="dense attention ends at the trained context of 128 tokens"):
        stream.feed("more")


def test_dense_and_streaming_agree_before_eviction(new_stream):
    dense, streaming = new_stream(mode="dense"), new_stream(recent_size=100)
    for stream in (dense, streaming):
        stream.feed(PROMPT)
    assert text_of(dense.generate(60, ignore_eos=True)) == text_of(streaming.generate(60, ignore_eos=True))


def test_chat_is_one_stream_that_is_never_reset(new_stream):
    stream = new_stream(recent_size=100)
    first = text_of(stream.chat("Hello", "Be terse.", max_tokens=6, temperature=1.0))
    seen = stream.tokens_seen
    text_of(stream.chat("And you?", max_tokens=6, temperature=1.0))
    assert stream.tokens_seen > seen
    text = decode_text(stream.tokenizer, visible(stream))
    assert text.startswith(f"Be terse.\n\nUSER: Hello\n\nASSISTANT:{first}")
    assert "USER: And you?\n\nASSISTANT:" in text


def test_defaults_come_from_the_generation_config(loaded, new_stream):
    model, tokenizer = loaded
    sampled = replace(model, generation_config={"do_sample": True, "temperature": 0.9})
    by_default = text_of(Stream(sampled, tokenizer, 2, 60).generate(20, ignore_eos=True))
    assert by_default == text_of(new_stream().generate(20, ignore_eos=True, temperature=0.9))
    greedy = text_of(Stream(sampled, tokenizer, 2, 60).generate(20, ignore_eos=True, temperature=0.0))
    assert greedy == text_of(new_stream().generate(20, ignore_eos=True))


def test_end_of_text_tokens_of_all_sources(loaded):
    model, tokenizer = loaded
    with_ids = replace(model, hf_config={"eos_token_id": 7}, generation_config={"eos_token_id": [8, 9]})
    assert eos_ids(with_ids, tokenizer) == [2, 8, 9]
    assert eos_ids(replace(model, hf_config={"eos_token_id": 7}, generation_config={}), tokenizer) == [2, 7]


def test_sizes_fit_the_trained_context(loaded):
    config = loaded[0].config
    assert fit_sizes(config, 4, None) == (4, 123)
    with pytest.warns(UserWarning, match="a step attends to 129 tokens, but the model was trained on 128"):
        assert fit_sizes(config, 4, 124) == (4, 124)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_sizes(config, 4, 123)


def test_sizes_fit_the_models_own_sliding_window(loaded):
    config = replace(loaded[0].config, sliding_window=50)
    assert fit_sizes(config, 4, None) == (4, 49)
    with pytest.warns(UserWarning, match="last 50 tokens, its sliding window; a recent_size above 49 adds no visible"):
        assert fit_sizes(config, 4, 60) == (4, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_sizes(config, 4, 49)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda make: make().feed(""), "the text is empty"),
        (lambda make: make().generate(0), "max-tokens must be 1 or more; got 0"),
        (lambda make: make().generate(1, [""]), "a stop text is empty"),
        (lambda make: make().generate(1, top_p=2.0), "top_p must be above 0"),
        (lambda make: make().chat("  "), "the message is empty"),
        (lambda make: make(mode="sparse"), "mode 'sparse' is not one of streaming, dense"),
        (lambda make: make(start_size=-1), "start_size must be a non-negative integer; got -1"),
        (lambda make: make(start_size=0, recent_size=0), "a cache of 0 tokens keeps nothing"),
        (lambda make: make(steps=0), "steps must be 1 or more; got 0"),
        (
            lambda make: make(start_size=120, recent_size=None),
            "a start_size of 120 leaves 7 recent tokens of the trained",
        ),
        (
            lambda make: make(start_size=500, recent_size=None),
            "a start_size of 500 leaves 0 recent tokens of the trained",
        ),
        (lambda make: make(recent_size=2**31), "a cache holds 1073741822 tokens at most; got 2 [+] 2147483648"),
        (lambda make: make().generate(1, temperature="hot"), "temperature must be 0 .greedy. or more; got 'hot'"),
        (lambda make: make(seed=-1), "seed must be from 0 to 4294967295; got -1"),
    ],
)
def test_bad_input_is_one_sentence(new_stream, use, message):
    with pytest.raises(SllmError, match=message):
        use(new_stream)


def test_text_needs_a_tokenizer_of_this_model(loaded, tiny):
    with pytest.raises(SllmError, match="text needs a tokenizer"):
        Stream(loaded[0], None)
    with pytest.raises(SllmError, match="is outside the model's vocabulary of 101"):
        Stream(tiny, loaded[1], 2, 20).feed(PROMPT)
