"""EXPORT: the canonical decoder as ONNX; the op contract."""
