"""llama.cpp's vocabulary tests: 47 difficult texts, and the ids that each tokenizer makes of them."""


def vocabulary_test(shared_tokenizers, name):
    """Pairs of a text and its token ids."""
    file = shared_tokenizers / "token_tests" / f"{name}.gguf.inp"
    texts = file.read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in file.with_suffix(".out").read_text().split("\n")]
    assert len(texts) == len(ids) == 47
    return list(zip(texts, ids, strict=True))
