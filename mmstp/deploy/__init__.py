"""How the result is used: exports, compact networks, detectors, ONNX."""
