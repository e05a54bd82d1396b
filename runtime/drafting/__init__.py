"""Self-speculative decoding: guessing tokens ahead, checking them, deciding when it pays."""
