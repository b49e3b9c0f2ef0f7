"""Part V: SmolLM2-135M-Instruct, its weights in float32, beside Hugging Face's library on the same weights."""
from functools import cache

import torch

from bench.cases.generating import VECTORS, only_vectors
from bench.runner import case


@cache
def pair(device):
    "The model in our classes and in theirs, and 512 tokens to read."
    from llm_course.pretrained import as_transformers, load_pretrained
    model, tokenizer = load_pretrained("smollm2-135m", device, max_seq_len=1024)
    ids = tokenizer.encode("Once upon a time a fox counted geese: 1, 2, 3, 14 and then 159 of them, all asleep on the ice. " * 20)[:512]
    theirs = as_transformers(model)
    theirs.generation_config.update(eos_token_id=None, pad_token_id=0)   # neither stops before its time
    return model, theirs.to(device), torch.tensor([ids], device=device)


@case(peer="transformers generate", package="transformers", limit=VECTORS)
def smollm2_writing(device):
    "32 tokens behind a prompt of 64, greedily, by SmolLM2-135M."
    from llm_course.generating import generate_ids
    model, theirs, ids = pair(device)
    prompt = ids[:, :64]
    ours = lambda: generate_ids(model, prompt, 32, temperature=0.)
    peer = lambda: theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False)
    assert torch.equal(ours(), peer()), "the greedy texts differ"
    matrices = [p.detach() for p in model.parameters() if p.ndim == 2]   # the embedding too, which is the last product's matrix
    return ours, peer, only_vectors(matrices, 32)


@case(peer="transformers, logits of the last place", package="transformers")
def smollm2_reading(device):
    "A prompt of 512 tokens read into the cache, and the scores of the next, by SmolLM2-135M."
    from llm_course.engine.reader import Reader
    model, theirs, ids = pair(device)
    ours = lambda: Reader(model, longest=ids.shape[1])(ids)
    peer = torch.inference_mode()(lambda: theirs(ids, use_cache=True, logits_to_keep=1).logits[:, -1])
    torch.testing.assert_close(ours(), peer(), rtol=1e-3, atol=1e-3)
    return ours, peer
