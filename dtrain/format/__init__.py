"""How runs and checkpoints lie on disk; what of it is no tensor is read without torch or NumPy."""
