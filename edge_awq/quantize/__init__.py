"""QUANTIZE: int4 maths, calibration statistics, AWQ scale and clip search."""
