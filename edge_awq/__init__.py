"""edge-awq: AWQ-quantized language models on Jetson, RTX and plain laptops, with tokens/s and joules."""

__version__ = "0.1.0"
