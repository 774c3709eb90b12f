"""Chat with the bundled models: in the form of a novel's dialogue, past the first eviction, one paragraph an answer."""

import itertools

import pytest

from sllm_jax.loading.bundle import DEFAULT_MODEL, bundled_names
from sllm_jax.loading.pretrained import load
from sllm_jax.streams.stream import Stream
from sllm_jax.text.chat import render_turn, turn_end
from sllm_jax.text.tokenizer import decode_text, encode

MESSAGES = ("Who is there?", "Where is the money?", "I do not believe a word of it.", "Hello", 'Did you say "no"?')
SENTENCES = ("bundled:sink-learnable", "bundled:sink-none", "bundled:sink-zero")  # have read sentences, no paragraphs


@pytest.fixture(params=bundled_names(), scope="module")
def bundled(request):
    return request.param, *load(request.param)


def test_turns_and_answers_are_the_template_of_the_whole(bundled):
    name, _, tokenizer = bundled
    answer = "I have it, sir." if name in SENTENCES else '"I have it," said he.'
    messages, text, ids = [{"role": "system", "content": "It was May."}], "", []
    for number, message in enumerate(MESSAGES):
        messages.append({"role": "user", "content": message})
        turn = render_turn(tokenizer, message, "It was May.", number == 0, ids)
        text += tokenizer.decode(turn)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": answer})
        text += answer
        ids += [*turn, *encode(tokenizer, answer, start=False)]


def test_an_answer_ends_where_the_next_speech_begins(bundled):
    name, _, tokenizer = bundled
    assert turn_end(tokenizer) == ((), ('" "' if name in SENTENCES else '\n\n"',))


def test_sampling_and_opening_are_the_models_own(bundled):
    _, model, _ = bundled
    config = model.generation_config
    assert (config["do_sample"], config["temperature"], config["top_p"]) == (True, 0.7, 0.9)
    assert config["opening"].endswith("sat by the fire.")


def test_thirty_turns_stay_a_dialogue_past_the_first_eviction():
    model, tokenizer = load()
    stream = Stream(model, tokenizer, steps=32)
    answers, ends = [], []
    for message in itertools.islice(itertools.cycle(MESSAGES), 30):
        answers.append("".join(stream.chat(message, model.generation_config["opening"], max_tokens=200)))
        ends.append(stream.end_reason)
    assert stream.tokens_seen > 3 * stream.cache_size
    assert all(answer.strip() for answer in answers)
    assert sum(answer.startswith('"') for answer in answers[-20:]) >= 18
    assert ends.count("stop") >= 27
    assert not any("USER" in answer or "ASSISTANT" in answer for answer in answers)


def test_generate_without_a_prompt_continues_the_opening(run):
    opening = load()[0].generation_config["opening"]
    code, out, _ = run("generate", "--max-tokens", 9)
    assert (code, out.startswith(opening)) == (0, True)
    assert out.removeprefix(opening) == run("generate", opening, "--max-tokens", 9)[1]


def test_chat_shows_the_opening_unless_there_is_a_system_text(run):
    opening = load(DEFAULT_MODEL)[0].generation_config["opening"]
    assert f"\n{opening}\n" in run("chat", "--max-tokens", 2, stdin="Hello\n")[2]
    assert opening not in run("chat", "--max-tokens", 2, "--system", "It was May.", stdin="Hello\n")[2]


def test_the_template_is_the_same_text_for_models_of_a_kind(bundled):
    name, _, tokenizer = bundled
    _, other = load("bundled:sink-none" if name in SENTENCES else DEFAULT_MODEL)
    assert tokenizer.chat_template == other.chat_template


def test_a_message_that_spells_a_control_token_stays_text(bundled):
    _, _, tokenizer = bundled
    ids = render_turn(tokenizer, "a <|endoftext|> b", first=False, last_ids=[5])
    assert "<|endoftext|>" in decode_text(tokenizer, ids)
