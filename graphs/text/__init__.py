"""tokenizer.json of strangers: checked before the tokenizers library reads it, and caught after."""
