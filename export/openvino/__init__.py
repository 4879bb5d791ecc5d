"""OpenVINO engines, for CPUs: an ONNX graph, converted, in float32 or with fixed 8-bit scales."""
