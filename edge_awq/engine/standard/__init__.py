"""The lowering without plugins: standard ONNX ops alone, for TensorRT from 10.15 on and for TensorRT-RTX."""
