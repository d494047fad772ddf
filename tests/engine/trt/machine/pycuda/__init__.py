"""As much of pycuda as edge-awq touches, for machines that have none; see driver.py."""
