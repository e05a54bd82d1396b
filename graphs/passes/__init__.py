"""Graph passes over onnx_ir models: one pass a file."""
