#!/usr/bin/env python3
"""Decoding speed of a model in float16 by Hugging Face transformers on the GPU; prints one JSON object.

    trt_peers.py CONFIG_AS_JSON PROMPT_TOKENS STEPS REPEATS

For whichever interpreter has torch and transformers; needs nothing else. The model has random weights, made on the GPU.
What is missing, or does not fit, is a note in the object.
"""

import json
import sys
import time
from statistics import median

WARM_UP_STEPS = 4


def measure(config, prompt_tokens, steps, repeats):
    """The object."""
    try:
        import torch
        import transformers
    except ImportError as error:
        return {"note": f"not installed: {error}"}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if not torch.cuda.is_available():
        return {"note": f"torch {torch.__version__} finds no GPU", **versions}
    try:
        with torch.inference_mode():
            model = make_model(torch, transformers, config)
            run(torch, model, prompt_tokens, WARM_UP_STEPS)
            rates = [1 / median(run(torch, model, prompt_tokens, steps)) for _ in range(repeats)]
    except torch.cuda.OutOfMemoryError as error:
        return {"oom": True, "note": f"out of memory: {str(error).splitlines()[0]}", **versions}
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:  # whatever a version may not take
        return {"note": f"{type(error).__name__}: {str(error).splitlines()[0]}", **versions}
    middle = median(rates)
    return {"tok_s": middle, "tok_s_mad": median(abs(rate - middle) for rate in rates), "rates": rates, **versions}


def make_model(torch, transformers, config):
    """The model of a config.json."""
    table = dict(config)
    settings = transformers.AutoConfig.for_model(table.pop("model_type"), **table)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(settings).half().eval()


def run(torch, model, prompt_tokens, steps):
    """Seconds of each step, the choice of the next token in it."""
    ids = torch.arange(3, 3 + prompt_tokens, device="cuda")[None]
    answer = model(ids, use_cache=True)
    took = []
    for _ in range(steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        token = answer.logits[:, -1:].argmax(-1)
        answer = model(token, past_key_values=answer.past_key_values, use_cache=True)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return took


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))))
