"""What this machine is and has: processor, cores, memory, and what of it a bundle needs."""
