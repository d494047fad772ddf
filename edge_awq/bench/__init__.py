"""BENCH: results of measurements, the figure they are compared with, reports."""
