"""Honest latency: interleaved rounds, medians and p99, pinned cores, peers in the same run.

``dynprune bench`` and the suites under benchmarks/ call the same code. Networks of the zoo and most
peers need torch; benchmarking a ``.dpr`` file does not.
"""

from dynprune_rt.benchmark.case import Case, program_case, zoo_case
from dynprune_rt.benchmark.driver import BenchmarkOptions, run_benchmark
from dynprune_rt.benchmark.report import Report

__all__ = ["BenchmarkOptions", "Case", "Report", "program_case", "run_benchmark", "zoo_case"]
