"""Bundle to tokens. numpy and onnxruntime only."""
