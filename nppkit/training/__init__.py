"""Codes to a trained model: batches, the trainer, checkpoints, processes and devices."""
