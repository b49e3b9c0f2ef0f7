"""What each branch of chapter 15's small models is worth: its ladder from five seeds, beside the best table of pairs on the same batches.

`python -m bench.experiments.growing` writes growing.json, run by run, and goes on where it was stopped."""
from itertools import product

import torch

from bench.experiments import cells, resume

SEEDS, STEPS, LAST = range(5), 200, 25
TABLE = "best table"   # the shares that the page counts; nothing is trained


def functions() -> dict:
    "The text, the models and the training of the page."
    return cells("15_transformer", "imports-page", "floor", "growing", "train", "ladder-parts", "exact")


def grid(names) -> list[dict]:
    "Every run, seed by seed, so that a part of them is fair, too."
    return [{"model": name, "seed": seed} for seed, name in product(SEEDS, [TABLE, *names])]


def run(page: dict, model: str, seed: int) -> dict:
    "Train a model and give its loss over the last steps; for those that see one byte, over the whole text, too."
    if model == TABLE:
        batches = [page["get_batch"](page["ids"], 16, page["length"], seed=seed, iteration=i) for i in range(STEPS - LAST, STEPS)]
        return {"nats": round(sum(-page["share"][x, y].log().mean().item() for x, y in batches) / LAST, 4)}
    trained = page["grown"](model, seed)
    found = {"nats": round(sum(page["train"](trained, STEPS, seed=seed)[-LAST:]) / LAST, 4)}
    return found | ({"whole": round(page["exact"](trained), 4)} if model in ("bigram", "+ feed-forward") else {})


def main() -> None:
    "Train each model that is not there yet, on one thread."
    torch.set_num_threads(1)
    page = functions()
    resume(__file__, f"Nats a byte over the last {LAST} of {STEPS} steps; `whole`: over the whole text.", grid(page["ladder"]), lambda **settings: run(page, **settings))


if __name__ == "__main__": main()
