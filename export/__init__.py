"""Checkpoint to bundle. Needs torch, onnx and safetensors: ``pip install 'shoal[export]'``."""
