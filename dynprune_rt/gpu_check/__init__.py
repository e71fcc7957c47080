"""Checks and measures the GPU back end on a machine that has a GPU: `python -m dynprune_rt.gpu_check`."""
