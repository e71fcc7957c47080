"""Machine facts are JSON-like and name the CPU; cores are real ones."""

import json
import os

from dynprune_rt.benchmark.machine import distinct_cores, machine_facts, usable_cores


def test_facts_are_json_and_complete():
    facts = json.loads(json.dumps(machine_facts()))
    assert facts["cpu"]
    assert facts["logical_cores"] == os.cpu_count()
    assert "numpy" in facts["versions"]


def test_distinct_cores_are_the_usable_ones_reordered():
    assert sorted(distinct_cores()) == usable_cores()
