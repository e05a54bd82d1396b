"""Tokenizer files of a checkpoint, converted to the one form the runtime reads."""
