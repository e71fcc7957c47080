"""The CUDA back end: kernels of the module _cu, torch for memory, streams, graph capture and rare operators."""
