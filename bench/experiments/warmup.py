"""What warm-up saves, for chapter 14: deep post-norm and pre-norm models at several rates, with and without it, from five seeds.

`python -m bench.experiments.warmup` writes warmup.json, run by run, and goes on where it was stopped."""
from itertools import product

import torch

from bench.experiments import cells, resume
from llm_course.data import get_batch
from llm_course.schedule import cos_lr_scheduler

BLOCKS, STEPS = 12, 150
RATES = {"post-norm": (3e-3, 6e-3, 1e-2), "pre-norm": (6e-3, 1e-2)}   # for each place of the norms
GRID = [{"order": order, "rate": rate, "warmup": warmup, "seed": seed}
        for seed, order in product(range(5), RATES) for rate, warmup in product(RATES[order], (0, 30))]


def main() -> None:
    "Train on the text of chapter 15, with its blocks, on one thread."
    torch.set_num_threads(1)
    page = cells("15_transformer", "imports-page", "floor", "growing", "post-norm", "stand-ins")
    blocks = {"post-norm": page["PostNorm"], "pre-norm": page["TransformerBlock"]}

    def run(order, rate, warmup, seed):
        torch.manual_seed(seed)
        model = page["Transformer"](256, page["length"], page["d_model"], BLOCKS, 4, 88, block=blocks[order])
        optimizer, losses = page["AdamW"](model.parameters(), betas=(.9, .95)), []
        for i in range(STEPS):
            for group in optimizer.param_groups: group["lr"] = cos_lr_scheduler(i + (warmup > 0), warmup, STEPS, rate / 10, rate)
            inputs, targets = get_batch(page["ids"], 16, page["length"], seed=seed, iteration=i)
            loss = page["cross_entropy"](model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return {"nats": round(sum(losses[-25:]) / 25, 4)}

    resume(__file__, f"Nats a byte over the last 25 of {STEPS} steps of {BLOCKS} blocks.", GRID, run)


if __name__ == "__main__": main()
