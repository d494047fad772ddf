"""The TensorRT engine: lowering, builder and runtime."""
