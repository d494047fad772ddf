"""A run directory as the runner and its meters write them."""

import json

START = {"event": "start", "schema": "edge-awq.run/1", "model": {"name": "llama-2-7b"},
         "power_mode": {"name": "MAXN", "id": 0}, "sampler": {"total_scope": "module"}}
EVENTS = [START,
          {"event": "phase", "name": "prefill", "rep": 0, "t_start_ns": 10**9, "t_end_ns": 15 * 10**8, "tokens": 4},
          {"event": "phase", "name": "decode", "rep": 0, "t_start_ns": 15 * 10**8, "t_end_ns": 3 * 10**9, "tokens": 2},
          {"event": "warning", "code": "interval_slower", "text": "1 s instead of 0.1 s"},
          {"event": "request", "rep": 0, "n_prompt": 4, "n_gen": 2, "prefill_tok_s": 8.0, "decode_tok_s": 10.0,
           "ttft_ms": 500.0, "power": {"mean_w": 11.0},
           "energy": {"prefill_j": 5.0, "decode_j": 0.9, "mj_per_gen_tok": 900.0, "tok_per_j": 1.1,
                      "total_scope": "module"}}]
POWER = ("t_ns,source_uptime_s,total_w,VDD_IN_mw,gpu_mhz,phase,seq\n-100000000,1.0,10.0,10000,918,load,0\n"
         "100000000,1.1,,,918,load,1\n200000000,1.2,12.0,12000,918,prefill,2\n")
TOKENS = "rep,idx,t_ns,phase,token_id\n0,0,1500000000,prefill,\n0,1,1600000000,decode,\n"


def make_run(folder):
    path = folder / "20260101T000000Z-abcdef"
    path.mkdir(parents=True)
    (path / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (path / "power.csv").write_text(POWER)
    (path / "tokens.csv").write_text(TOKENS)
    return path
