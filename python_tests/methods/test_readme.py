"""The README's example of training runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import torch

import dynprune_rt
from dynprune_rt.methods import Batches
from python_tests.methods.networks import Residual, coloured, settle

README = Path(__file__).resolve().parents[2] / "README.md"


def test_training_example(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "methods.train(" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    loader = Batches(coloured(64), 32, augment=True, shift=1)
    held_out = Batches(coloured(48, seed=3), 24)
    names = {"model": settle(Residual()), "loader": loader, "held_out": held_out}
    exec(compile(example, "README.md", "exec"), names)
    assert re.search(r"accuracy \d+\.\d+%, MACs left [45]\d\.\d%", capsys.readouterr().out)
    assert (tmp_path / "runs" / "fbs50" / "checkpoint.pt").is_file()
    session = dynprune_rt.load(tmp_path / "fbs50.dpr")
    assert session.run(np.zeros((1, 3, 12, 12), np.float32)).shape == (1, 4)
