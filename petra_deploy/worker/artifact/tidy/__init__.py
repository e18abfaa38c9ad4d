"""Rewrites of ONNX graphs, one a file: each has `rewrite(bench) -> int`, the number of changes."""
