"""What config.json means: keys, values, rotary scaling, families; no tensors, no graphs."""
