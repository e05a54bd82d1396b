"""Serves dialogues and completions: requests in, answers out; knows no options."""
