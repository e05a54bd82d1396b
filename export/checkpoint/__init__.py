"""Files that hold weights: one module per format, and which tensors make which parameter."""
