"""All benchmarks: python -m benchmarks [--json FILE] [--compare FILE]. Each also runs alone."""

from startup import run_script

from benchmarks import encoder, extraction, loading, reward, scaling, scoring, search, start_up, training
from benchmarks.report import run_benchmarks

EVERY = (start_up, extraction, encoder, loading, training, search, reward, scoring, scaling)

if __name__ == "__main__":
    run_script(lambda: run_benchmarks([module.benchmark for module in EVERY]))
