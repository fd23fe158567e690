"""Shows how a trained model works: traces, measurements, attention maps, the interactive page, patching, probes, steering."""
