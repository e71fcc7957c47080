"""Running one demo model: predictions, work per image, latency beside dense runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import dynprune_rt
from dynprune_rt.benchmark.peers import PEERS, DenseNetwork
from dynprune_rt.benchmark.timing import Runner, measure
from dynprune_rt.demo.gallery import DemoModel

#: Runtimes the demo compares with, where installed.
PEER_NAMES = ("openvino", "onnxruntime")

#: Images that the latency measurement cycles through.
_TIMED_IMAGES = 16


@dataclass
class Trial:
    """What one model did. Per image: logits [N, 10], MACs [N], live share of every gated layer [N, L]."""

    model: DemoModel
    isa: str
    threads: int
    logits: np.ndarray
    macs: np.ndarray
    dense_macs: int
    layer_shares: np.ndarray
    bit_identical: bool
    latency_ms: dict[str, float]
    skipped_peers: dict[str, str]
    dense_accuracy: float | None

    @property
    def predictions(self) -> np.ndarray:
        result: np.ndarray = self.logits.argmax(1)
        return result

    @property
    def margins(self) -> np.ndarray:
        """Distance between the two best logits: small for images that are hard to tell."""
        ordered = np.sort(self.logits, axis=1)
        result: np.ndarray = ordered[:, -1] - ordered[:, -2]
        return result

    def accuracy(self, labels: np.ndarray) -> float:
        return float((self.predictions == labels).mean())


def try_model(
    model: DemoModel,
    images: np.ndarray,
    labels: np.ndarray,
    threads: int = 1,
    rounds: int = 15,
    progress: Callable[[int, int], None] | None = None,
) -> Trial:
    """Classify ``images`` f32[N, 3, 32, 32] one by one with the program and measure its latency at batch 1.

    Raises DynpruneError if the program cannot be read or run.
    """
    session = dynprune_rt.load(model.program, threads=threads)
    logits, macs, shares, identical = [], [], [], True
    dense_macs = 0
    for i in range(len(images)):
        image = images[i : i + 1]
        logits.append(session.run(image))
        identical &= np.array_equal(logits[-1], session.run(image, skip=False))
        profile = session.profile(image)
        macs.append(profile.macs)
        dense_macs = profile.dense_macs
        shares.append([layer["macs"] / layer["dense_macs"] for layer in profile.layers])
        if progress is not None:
            progress(i + 1, len(images))
    varied = np.asarray(shares)
    varied = varied[:, varied.min(0) < 1.0]

    timed = [images[i : i + 1] for i in range(min(_TIMED_IMAGES, len(images)))]
    runners: dict[str, Runner] = {
        "skipping": lambda i: session.run(timed[i]),
        "without skipping": lambda i: session.run(timed[i], skip=False),
    }
    network = DenseNetwork(onnx=model.dense_onnx.read_bytes() if model.dense_onnx.is_file() else None)
    skipped = {}
    dense_accuracy = None
    for name in PEER_NAMES:
        reason = PEERS[name].missing(network)
        if reason is not None:
            skipped[name] = reason
            continue
        if dense_accuracy is None:
            every = PEERS[name].prepare(network, [images[i : i + 1] for i in range(len(images))], threads)
            dense_accuracy = float(np.mean([int(every(i).argmax()) == labels[i] for i in range(len(images))]))
        runners[f"{name}, dense network"] = PEERS[name].prepare(network, timed, threads)
    samples = measure(runners, rounds, len(timed), slot_ms=10.0, settle_ms=30.0 if threads > 1 else 0.0)
    return Trial(
        model=model,
        isa=session.isa,
        threads=session.threads,
        logits=np.concatenate(logits),
        macs=np.asarray(macs),
        dense_macs=dense_macs,
        layer_shares=varied,
        bit_identical=identical,
        latency_ms={name: found.median for name, found in samples.items()},
        skipped_peers=skipped,
        dense_accuracy=dense_accuracy,
    )
