"""Self-speculative decoding: guessing tokens, checking them, deciding when it pays."""
