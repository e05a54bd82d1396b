"""What export and runtime agree on: the op set, graph passes, the bundle contract, errors."""
