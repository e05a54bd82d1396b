"""How layers are wired, one file for each way; ``ModelConfig.wiring`` names the file."""
