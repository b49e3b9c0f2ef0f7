"""How much of SmolLM2's weakness do its four bits explain? `python -m bench.four_bits` disturbs the weights again, as rounding did, and writes four_bits.json.

The weights before rounding are not at hand. But rounding to a grid of step d adds an error that is spread evenly over ±d/2, and such an error can be added
once more, and again. What each further dose costs tells what the first one did."""
import datetime
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bench.machine import machine
from bench.runner import commit, root
from llm_course.engine.commands import output_path, run_command, whole_file
from llm_course.loss import cross_entropy
from llm_course.pretrained import chatml, load_pretrained

sys.path.insert(0, str(root/"web"))
import book

CAPITALS = dict(pair.split(":") for pair in (
    "France:Paris Italy:Rome Spain:Madrid Germany:Berlin Austria:Vienna Greece:Athens Russia:Moscow Japan:Tokyo China:Beijing Egypt:Cairo "
    "Poland:Warsaw Portugal:Lisbon Ireland:Dublin Norway:Oslo Cuba:Havana Peru:Lima Kenya:Nairobi Hungary:Budapest Turkey:Ankara Iran:Tehran").split())


def prose(size: int = 12_000) -> str:
    "Sentences of this book, which the model cannot have read: paragraphs of the first chapters without formulas, code or tables."
    cells = [cell for page in book.pages() if book.number(page) in range(4, 10) for cell in book.cells(page) if cell["cell_type"] == "markdown"]
    paragraphs = "\n\n".join("".join(cell["source"]) for cell in cells).split("\n\n")
    return "\n\n".join(text for text in paragraphs if len(text) > 80 and not set(text) & set("$`|<#*[→"))[:size]


def questions() -> dict[str, list[tuple[str, str, str]]]:
    "What is asked, how the answer begins, and how it should go on."
    rng = Random(0)
    add = lambda low, high, n: [(f"What is {a} + {b}?", f"{a} + {b} = ", str(a + b)) for a, b in ((rng.randint(low, high), rng.randint(low, high)) for _ in range(n))]
    return {"capitals": [(f"What is the capital of {land}?", f"The capital of {land} is", f" {city}") for land, city in CAPITALS.items()],
            "sums of one digit": add(2, 9, 20), "sums of two digits": add(10, 99, 40)}


@torch.inference_mode()
def right(model, tokenizer, asked: str, begun: str, answer: str) -> bool:
    "Is every token of the answer the likeliest?"
    start = chatml([{"role": "user", "content": asked}]) + begun
    given, ids = len(tokenizer.encode(start)), tokenizer.encode(start + answer)
    return model(torch.tensor(ids[:-1]))[given - 1:].argmax(-1).tolist() == ids[given:]


@torch.inference_mode()
def bits_per_byte(model, ids: list[int], size: int, row: int = 512) -> float:
    "What a text costs, read in rows of 512 tokens."
    rows = [torch.tensor(ids[i:i + row]) for i in range(0, len(ids) - 1, row)]
    return sum(cross_entropy(model(x[:-1]), x[1:]).item() * (len(x) - 1) for x in rows) / math.log(2) / size


@torch.no_grad()
def disturb(model, doses: int, seed: int) -> None:
    "Add the error of rounding to four bits, in groups of 32, so many times."
    generator = torch.Generator().manual_seed(seed)
    for p in model.blocks.parameters():
        if p.ndim != 2: continue   # gains are kept in float32
        groups = p.reshape(-1, 32)
        step = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / 15
        for _ in range(doses): groups += (torch.rand(groups.shape, generator=generator) - .5) * step


@dataclass(frozen=True)
class Config:
    "Measure what four bits cost SmolLM2, dose by dose; what is kept of the same text is not measured again.\n\nExample: python -m bench.four_bits --most 1 --seeds 1"
    most: int = 3    # Doses of the error of rounding, at most
    seeds: int = 2   # Runs of each, with errors of their own
    output: Path = Path("bench/four_bits.json")   # File that collects the results


def main(config: Config) -> None:
    "Measure after each dose, and keep each result as soon as it is there."
    path, text = output_path(config.output, "--output"), prose()
    model, tokenizer = load_pretrained("smollm2-135m", "cpu", max_seq_len=1024)
    kept, ids = {name: p.clone() for name, p in model.state_dict().items()}, tokenizer.encode(text)
    about = {"what": "SmolLM2-135M-Instruct in four bits, and after further doses of the same error.", "bytes": len(text.encode()), "tokens": len(ids),
             "asked": {kind: len(asked) for kind, asked in questions().items()}}
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found = found.get("found", []) if about.items() <= found.items() else []
    for doses, seed in [(0, 0), *((doses, seed) for doses in range(1, config.most + 1) for seed in range(config.seeds))]:
        if any((each["doses"], each["seed"]) == (doses, seed) for each in found): continue
        model.load_state_dict(kept)
        disturb(model, doses, seed)
        shares = {kind: sum(right(model, tokenizer, *each) for each in asked) / len(asked) for kind, asked in questions().items()}
        found.append({"doses": doses, "seed": seed, "bits_per_byte": round(bits_per_byte(model, ids, about["bytes"]), 4), "right": shares})
        print(found[-1], flush=True)
        result = about | {"found": found, "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
        with whole_file(path, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.four_bits")
