"""Table and plot of finished runs."""

import json
import sys
import xml.etree.ElementTree as ET

from dynprune_rt.recipes import cifar10_table
from dynprune_rt.recipes.cifar10_methods import RECIPES, equal_macs
from dynprune_rt.recipes.static_front import static_accuracy, static_front
from dynprune_rt.recipes.tradeoff_plot import Panel, Point, draw


def row(method, accuracy, left, **more):
    activity = {"macs_left": left, "static_share": 0.8}
    return {"arch": "cifar_resnet20", "method": method, "epochs": 4, "epochs_before": 0, "test_accuracy": accuracy,
            "activity": activity, **more}  # fmt: skip


ROWS = {
    "a": row("manidp", 0.9011, 0.5, latency_ms={"pruned": 0.2, "dense": 0.4}),
    "b": row("di", 0.9, 0.52, epochs_before=18),
}


def test_table_and_plot_from_a_file(tmp_path, monkeypatch, capsys):
    results, plot = tmp_path / "r.json", tmp_path / "p.svg"
    results.write_text(json.dumps(ROWS))
    monkeypatch.setattr(sys, "argv", ["table", str(results), "--plot", str(plot)])
    assert cifar10_table.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "90.11%" in lines[2]
    assert "400 epochs" in lines[2]
    assert "pruned 0.200, dense 0.400" in lines[2]
    assert "4 (after 18)" in lines[3]
    assert "not measured" in lines[3]
    tree = ET.parse(plot)
    assert len(tree.getroot().findall("{*}g")) == 2


def test_a_broken_file_is_named(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "r.json"
    broken.write_text("{")
    monkeypatch.setattr(sys, "argv", ["table", str(broken)])
    assert cifar10_table.main() == 1
    assert "r.json" in capsys.readouterr().err


def test_points_lie_inside_their_panel_and_labels_are_escaped():
    root = ET.fromstring(draw([Panel("x", [Point(0.5, 0.9, "a<b", True), Point(0.5, 0.9, "c", False)])]))
    assert [t.text for t in root.findall(".//{*}text")].count("a<b") == 1
    (circle,) = root.findall(".//{*}circle")
    assert 0 < float(circle.get("cx")) < 460
    assert 0 < float(circle.get("cy")) < 340


def test_what_static_networks_reach_at_the_cost_of_a_gated_one(tmp_path):
    dense = {"dense_accuracy": 0.92}
    rows = {
        "gated": row("fbs", 0.9, 0.6, latency_ms={"pruned": 0.3, "dense": 0.4}, **dense),
        "small": row("di", 0.88, 0.4, latency_ms={"pruned": 0.2, "dense": 0.4}, **dense),
        "beaten": row("cwp", 0.85, 0.5, latency_ms={"pruned": 0.25, "dense": 0.4}, **dense),
        "elsewhere": {**row("di", 0.93, 0.6), "arch": "cifar_resnet56"},
    }
    assert static_front(rows, "cifar_resnet20", "macs") == [(0.4, 0.88), (1.0, 0.92)]
    assert abs(static_accuracy(rows, "gated", "macs") - (0.88 + 0.04 / 3)) < 1e-12
    assert abs(static_accuracy(rows, "gated", "latency") - 0.90) < 1e-12
    assert static_accuracy(rows, "small", "macs") is None
    assert static_accuracy({"a": rows["gated"]}, "a", "macs") is None
    assert "| 89.33%, 90.00% |" in cifar10_table.markdown(rows)
    assert "| -, - |" in cifar10_table.markdown(rows)
    drawn = ET.fromstring(draw([cifar10_table.panel(rows, "macs", "MACs")]))
    assert len(drawn.findall(".//{*}path[@stroke-dasharray]")) == 2


def test_the_static_rival_has_the_same_macs_and_as_many_epochs():
    rival = equal_macs(RECIPES["resnet20_fbs50_continued"], 0.47)
    assert (rival.method, rival.target) == ("di", 0.47)
    recipe = RECIPES["resnet20_fbs50_continued"]
    assert rival.settings.epochs == recipe.settings.epochs + recipe.start_epochs
    assert rival.settings.learning_rate == 0.05
