"""A model to an ONNX graph, and the graph to an engine of a bundle."""
