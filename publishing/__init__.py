"""What export.py puts into the exported folder beside the weights: a GGUF file, and the model card."""
