"""Answers as data: what a model said, how it ended, and the dialogue so far."""
