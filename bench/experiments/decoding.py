"""Two designs for a token at one text, beside the products alone: python -m bench.experiments.decoding

Processor time, since it can be compared on a busy machine too; there set OMP_WAIT_POLICY=passive, or waiting threads are counted as working."""
import os
import time
from collections import defaultdict
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.cases.generating import only_vectors
from bench.experiments import keep
from llm_course import generating
from llm_course.engine import decoding, loops
from llm_course.engine.kv_cache import new_cache
from llm_course.engine.reader import Reader
from llm_course.linear import Linear
from llm_course.transformer import Transformer


def joined(*layers: Linear) -> Linear:
    "One layer in place of several that read the same; a copy."
    weight = torch.cat([layer.weight.detach() for layer in layers])
    one = Linear(weight.shape[1], len(weight))
    one.weight = nn.Parameter(weight)
    return one


def bind_joined(block, s):
    "As `bind_block`, for one token: queries, keys and values in one product, gate and up in another."
    a, ffn = block.attention, block.ffn
    width = s.q.shape[1] + s.k.shape[1] + s.v.shape[1]
    heads, both, hidden = s.q.as_strided((1, width), (width, 1)), torch.empty(1, 2 * s.gate.shape[1]), torch.empty_like(s.gate)
    gate, up = both.chunk(2, 1)
    norm, ffn_norm = decoding.bind_norm(block.attention_norm, s.x, s.y), decoding.bind_norm(block.ffn_norm, s.x, s.y)
    qkv = decoding.bind_product(joined(a.q_proj, a.k_proj, a.v_proj), s.y, heads)
    output = decoding.bind_product(a.output_proj, s.heard, s.x, add=True)
    gate_up = decoding.bind_product(joined(ffn.w1, ffn.w3), s.y, both)
    down = decoding.bind_product(ffn.w2, hidden, s.x, add=True)

    def run(turn, place, keys, values, mask):
        norm()
        qkv()
        s.pairs.mul_(turn)
        place.copy_(s.new)
        s.answers.copy_(F.scaled_dot_product_attention(s.queries, keys, values, attn_mask=mask))
        output()
        ffn_norm()
        gate_up()
        torch.mul(F.silu(gate), up, out=hidden)
        down()
    return run


class Calls(TorchDispatchMode):
    "Counts what torch is asked for."
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def side(model: Transformer, text: Tensor, how: str):
    "A function that reads one token behind the text."
    caches = [new_cache(block.attention, 1) for block in model.blocks]
    step = decoding.Step(model, caches)
    if how != "loops": step.alone = None
    model(text, caches=caches)
    plain = decoding.bind_block
    if how == "joined": decoding.bind_block = bind_joined
    try: step(text[:, :1])   # binds
    finally: decoding.bind_block = plain

    def again():
        for cache in caches: cache.length = text.shape[1]
        return step(text[:, :1])
    return again


@torch.inference_mode()
def measure(threads: int, laps: int = 40) -> dict:
    "Median milliseconds of processor time for each side, by turns, and its median share of the limit."
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Transformer(10_000, 256, 512, 6, 8, 1344).eval()
    text = torch.randint(10_000, (1, 60))
    sides = {how: side(model, text, how) for how in ("calls", "joined", "loops")}
    for work in sides.values(): torch.testing.assert_close(work(), sides["calls"]())
    sides["limit"] = only_vectors([p.detach() for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embedding")], 1)
    counts, times = {}, {how: [] for how in sides}
    for how, work in sides.items():
        with Calls() as calls: work()
        counts[how] = calls.count
    for lap in range(laps):
        for how, work in list(sides.items())[:: 1 if lap % 2 else -1]:   # each side follows its neighbours in either order
            began = time.process_time()
            work()
            times[how].append(1000 * (time.process_time() - began))
    return {"threads": threads, "sides": {
        how: {"calls": counts[how], "ms": round(median(took), 2), "share": round(median(limit / own for limit, own in zip(times["limit"], took)), 2)}
        for how, took in times.items()}}


def write(rounds: int = 9) -> dict:
    "Where the processor time of a whole text goes, on one thread, beside the products of its tokens."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, prompt = Transformer(10_000, 256, 512, 6, 8, 1344).eval(), torch.randint(10_000, (1, 16))
    limit = only_vectors([p.detach() for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embedding")], 128)
    parts, took = defaultdict(list), {"text": [], "limit": []}

    def timed(part, function, into=parts):
        def run(*given):
            began = time.process_time()
            found = function(*given)
            into[part].append(1e6 * (time.process_time() - began))
            return found
        return run
    whole = timed("text", lambda: generating.generate_ids(model, prompt, 128, temperature=0.), took)
    bare = timed("limit", limit, took)
    whole(), bare()   # compile, and warm up
    took["text"].clear(), took["limit"].clear()
    for _ in range(rounds): whole(), bare()
    with mock.patch.object(loops, "run_token", timed("loops", loops.run_token)), mock.patch.object(Reader, "__call__", timed("reader", Reader.__call__)), \
            mock.patch.object(generating, "pick", timed("pick", generating.pick)), mock.patch.object(Reader, "__init__", timed("ready", Reader.__init__)):
        for _ in range(rounds):
            began = time.process_time()
            for _ in generating.stream_ids(model, prompt, 128, generating.Sampling(0.)):
                parts["token"].append(1e6 * (time.process_time() - began))
                began = time.process_time()
    prompts = parts["reader"][::128]
    per_token = {part: median(spent) for part, spent in parts.items()}
    return {"threads": 1, "ms": round(median(took["text"]) / 1000), "share": round(median(a / b for a, b in zip(took["limit"], took["text"])), 3),
            "ms_of_the_prompt": round((median(prompts) + per_token["ready"]) / 1000, 1), "microseconds": {
                "the products alone": round(median(took["limit"]) / 128), "the loops": round(per_token["loops"]),
                "around them, to read a token": round(per_token["reader"] - per_token["loops"]), "to choose the next one": round(per_token["pick"]),
                "to append it": round(per_token["token"] - per_token["reader"] - per_token["pick"])}}


if __name__ == "__main__":
    runs = [measure(threads) for threads in (1, 2)]
    keep(__file__, {"what": "One token behind 60 others, width 512: by calls, by joined products, by compiled loops, and the products alone.",
                    "waiting": os.environ.get("OMP_WAIT_POLICY"), "runs": runs, "text": write()})
    for run in runs: print(run)
