"""The op set of the ONNX domain ``shoal``: one file for each op."""
