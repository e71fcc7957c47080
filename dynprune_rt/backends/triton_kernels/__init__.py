"""The GPU kernels in Triton, for installations without the CUDA module; same formats, same semantics."""
