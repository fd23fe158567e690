"""Measures how good a trained model is: perplexity, samples, facts, minimal pairs, case endings."""
