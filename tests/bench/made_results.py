"""Results made up for the tests of the report."""

from pathlib import Path

from edge_awq.bench.results import Provenance, Result, StoredResult

AGX = {"device": "Jetson AGX Orin 64GB", "profile": "jetson-agx-orin-64gb"}
H200 = {"device": "H200", "profile": "h200", "power_mode": None}
CPU = {"device": "laptop", "profile": "cpu", "power_mode": None}


def result(power_mode="MAXN", **changes):
    values = {
        "model": "llama-2-7b", "engine": "edge-awq", "precision": "w4a16", "protocol": "figure", "prompt_tokens": 4,
        "generated_tokens": 200, "repeats": 5, "tok_s_median": 40.0, "tok_s_mad": 0.2, "j_per_token": None,
        "oom": False, "valid": True,
        "provenance": Provenance("2026-01-01T00:00:00Z", "0.1.0", power_mode=power_mode), **changes}
    if values["oom"]:
        values |= {"tok_s_median": None, "tok_s_mad": None}
    return Result(**values)


def stored(file="a.json", **changes):
    return StoredResult(result(**changes), Path(file))
