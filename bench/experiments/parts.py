"""What each part of a block is worth: chapter 15's runs with one part exchanged, whole and from four seeds. `python -m bench.experiments.parts` writes parts.json."""
import torch

from bench.experiments import cells, keep

SEEDS = 4


def functions() -> dict:
    "The text, the variants and the training of the page."
    return cells("15_transformer", "imports-page", "floor", "growing", "train", "stand-ins", "changes")


def main() -> None:
    "Train each variant from each seed, on one thread."
    torch.set_num_threads(1)
    page, found = functions(), {}
    for name in page["changes"]:
        found[name] = [round(page["exchanged"](name, seed), 4) for seed in range(SEEDS)]
        print(f"{name:13}", *found[name], flush=True)
    keep(__file__, {"what": "Nats a byte over the last 25 of 200 steps, for each seed.", "nats": found})


if __name__ == "__main__": main()
