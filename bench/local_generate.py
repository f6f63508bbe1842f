"""The baseline's process: reads `{"prompt", "tokens"}` lines, answers with tokens a second."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from swarmd.compute.source import resolve_model


class _Times(BaseStreamer):
    """Notes when each token comes; the first call is the prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


def main() -> None:
    folder = resolve_model(None).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in sys.stdin:
        request = json.loads(line)
        ids = tokenizer(request["prompt"], return_tensors="pt").input_ids
        times = _Times()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request["tokens"],
                min_new_tokens=request["tokens"],
                do_sample=False,
                streamer=times,
            )
        tokens = times.at[1:]
        rate = (len(tokens) - 1) / (tokens[-1] - tokens[0])
        print(json.dumps({"tokens_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
