"""How results and progress look on a terminal, in a pipe and in a log."""
