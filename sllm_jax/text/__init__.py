"""Text processing: tokenizers, incremental detokenization, chat templates, stop texts, long texts."""
