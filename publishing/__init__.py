"""What export.py puts into its folder: the tensors by the names of Qwen3, a GGUF file, and the model card."""
