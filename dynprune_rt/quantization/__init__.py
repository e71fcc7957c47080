"""Post-training quantization: a float program in, the same program with int8 layers out."""

from dynprune_rt.quantization.post_training import quantize

__all__ = ["quantize"]
