"""Attention whose heads and inputs can be cut: rewritten, read and pinned."""
