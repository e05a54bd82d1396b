"""GGUF files of llama.cpp's deepseek2 architecture as checkpoints."""
