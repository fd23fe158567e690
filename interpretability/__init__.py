"""Shows how a trained model works: traces, measurements on held-out text, attention maps, the interactive page."""
