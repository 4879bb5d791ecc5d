"""From a release to a bundle that answers without torch: ONNX export, verification, runtime, benchmarks."""
