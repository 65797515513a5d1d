"""Samples to metrics: feature extractors, references, the evaluation contract, sampling by several processes."""
