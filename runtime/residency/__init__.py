"""Which experts' bytes are in memory; knows no text."""
