"""The ``shoal`` command: its verbs, options and output."""
