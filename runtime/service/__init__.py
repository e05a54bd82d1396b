"""``shoal run --loop``: lines in, answers out."""
