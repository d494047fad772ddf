"""Checkpoints that other tools have quantized to 4 bits: read and written bit by bit, never quantized again."""
