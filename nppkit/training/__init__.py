"""Codes to a trained model: batches, the trainer, a step as a CUDA graph, event files."""
