"""How a trained model works: traces, measurements, attention maps, the page, patching, probes, steering."""
