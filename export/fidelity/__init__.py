"""What quantization costs, measured while the weights pass by; calibration of 4-bit rounding."""
