"""Part IV: what the training loop costs beyond the steps that it takes."""
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.runner import case


@case(peer="the bare step: forward, backward, AdamW")
def loop(device):
    "Ten steps of training (V 1,024, d 128, 4 layers, T 64, B 12) with data, schedule, clipping, vital numbers and logging, validation and saving apart."
    from llm_course.engine.run_config import optimizer_for
    from llm_course.loss import cross_entropy
    from llm_course.training import TrainConfig, advance, batches_of, settle, start
    folder = Path(tempfile.mkdtemp(prefix="loop"))
    for name in "train.bin", "val.bin": np.random.default_rng(0).integers(1024, size=500_000).astype(np.uint16).tofile(folder/name)
    run = start(settle(TrainConfig(
        train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"run", vocab_size=1024, max_seq_len=64, d_model=128, num_layers=4,
        num_heads=4, d_ff=352, batch_size=12, iterations=10**7, val_interval=10**7, checkpoint_interval=10**7, precision="float32", device=device)))
    torch.manual_seed(run.config.seed)
    model = type(run.model)(1024, 64, 128, 4, 4, 352).to(device)
    optimizer, [batch] = optimizer_for(model, run.config), batches_of(run)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters()))

    def ours():
        for _ in range(10): advance(run)

    def bare():
        for _ in range(10):
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()

    ours(), bare()
    assert run.done == 10 and len(run.history) == 2   # the first step and the tenth
    return ours, bare
