"""How a model works: activations, measurements, attention maps, the page, patching, probes, steering."""
