"""ONNX graphs to TensorRT plans, by NVIDIA's `tensorrt` or `tensorrt_rtx`. To run them is `export.runtime`'s."""
