"""From reference modules to the ONNX graphs of a bundle."""
