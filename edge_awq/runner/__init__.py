"""RUN: generation, sampling, metrics, run log."""
