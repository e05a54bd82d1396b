"""``shoal bench``: how fast a bundle runs on this machine."""
