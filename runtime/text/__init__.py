"""Between text and token ids: tokenizer, chat templates, text that arrives token by token."""
