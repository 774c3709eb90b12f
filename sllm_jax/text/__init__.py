"""Text to tokens and back, a piece at a time: tokenizers, chat templates, stop texts, long texts."""
