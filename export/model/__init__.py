"""PyTorch reference modules of the DeepSeek architectures; what the exporter traces."""
