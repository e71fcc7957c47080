"""What is benchmarked: a gated program, its dense counterpart, inputs, and reference outputs."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynprune_rt.benchmark.peers import DenseNetwork
from dynprune_rt.errors import DynpruneError
from dynprune_rt.program import Program


@dataclass
class Case:
    """One benchmark.

    ``dense`` is the same network without gates, where there is one. ``inputs`` are different batches
    f32[N, C, H, W] that every contender cycles through. ``reference`` and ``dense_reference`` are what torch
    computes on them. ``dtype``: what the programs were quantized to.
    """

    name: str
    program: Program
    inputs: list[np.ndarray]
    dense: Program | None = None
    network: DenseNetwork = field(default_factory=DenseNetwork)
    reference: list[np.ndarray] | None = None
    dense_reference: list[np.ndarray] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    dtype: str = "f32"

    def quantized(self, dtype: str) -> Case:
        """The case with its programs in "int8", calibrated on the inputs, or in "bf16".

        Outputs of gated networks may then be far from the references, where a gate's score lies near its threshold:
        with random weights that is common.
        """
        from dynprune_rt.quantization import quantize

        def narrow(program: Program) -> Program:
            return quantize(program, self.inputs if dtype == "int8" else (), dtype)

        return replace(
            self,
            program=narrow(self.program),
            dense=None if self.dense is None else narrow(self.dense),
            facts={**self.facts, "dtype": dtype},
            dtype=dtype,
        )


def zoo_case(
    name: str,
    gate: str = "random",
    share: float = 0.5,
    batch: int = 1,
    images: int = 4,
    input_size: int | None = None,
    seed: int = 0,
    onnx: bool = True,
) -> Case:
    """A network of the zoo under a gate, with random weights, and the same network dense; converts both.

    ``images``: number of different batches. ``onnx``: export the dense network for the peers that need it.
    Raises DynpruneError for unknown names.
    """
    from dynprune_rt.frontend.torch_version import require_torch

    torch = require_torch()
    from dynprune_rt import convert, models

    size = input_size or models.entry(name).input_size
    inputs = [models.synthetic_images(batch, size, seed=seed + 1 + i) for i in range(images)]
    gated = models.create(name, gate, seed=seed, share=share, input_size=size)
    dense = models.create(name, seed=seed, input_size=size)
    with torch.no_grad():
        reference = [gated(x).numpy() for x in inputs]
        dense_reference = [dense(x).numpy() for x in inputs]
    return Case(
        name=name,
        program=convert(gated, inputs[0]),
        dense=convert(dense, inputs[0]),
        inputs=[np.ascontiguousarray(x.numpy()) for x in inputs],
        network=DenseNetwork(onnx=export_onnx(dense, inputs[0]) if onnx else None, module=dense),
        reference=reference,
        dense_reference=dense_reference,
        facts={"model": name, "gate": gate, "share": share, "batch": batch, "input_size": size, "seed": seed},
    )


def program_case(
    path: str | os.PathLike[str],
    batch: int = 1,
    images: int = 4,
    inputs: Sequence[np.ndarray] | None = None,
    onnx: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Case:
    """A ``.dpr`` file; ``onnx`` is the dense network for the peers that take ONNX.

    Without ``inputs`` (batches f32[N, C, H, W]) they are normally distributed noise, which leaves some
    gates unmoved: give real images for meaningful live shares. Raises DynpruneError for unreadable files and
    for programs that do not have exactly one input.
    """
    program = Program.load(path)
    types = list(program.inputs.values())
    if len(types) != 1:
        raise DynpruneError(f"{path} has {len(types)} inputs; the benchmark drives programs with one")
    given = inputs is not None
    if inputs is None:
        generator = np.random.default_rng(seed)
        inputs = [generator.standard_normal((batch, *types[0].shape[1:]), dtype=np.float32) for _ in range(images)]
    exported = None
    if onnx is not None:
        try:
            with open(onnx, "rb") as file:
                exported = file.read()
        except OSError as error:
            raise DynpruneError(f"cannot read {onnx}: {error.strerror}") from None
    facts = {"model": os.fspath(path), "batch": len(inputs[0]), "inputs": "given" if given else "noise", "seed": seed}
    return Case(os.path.basename(path), program, list(inputs), network=DenseNetwork(onnx=exported), facts=facts)


def export_onnx(module: Any, example: Any) -> bytes | None:
    """The module as ONNX with the example's fixed shape and BN folded; None if the onnx package is missing."""
    import importlib.util

    import torch

    if importlib.util.find_spec("onnx") is None:
        return None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter is the one that folds batch norms without further tools.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            do_constant_folding=True,
        )
    return buffer.getvalue()
