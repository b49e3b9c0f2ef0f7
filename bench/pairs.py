"""An embedding that knows the last two tokens, for the race against nanoGPT. It is a module of its own so that a checkpoint can name it."""
import torch
from torch import nn
from torch.nn import functional as F

from llm_course.embedding import Embedding

PAIRS = 8192   # rows in the second table; several pairs share one by a hash


class PairEmbedding(Embedding):
    "An embedding to which a second one adds a vector for the last two tokens."
    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.pairs = nn.Parameter(torch.zeros(PAIRS, embedding_dim))

    def forward(self, ids):
        before = F.pad(ids, (1, 0))[..., :-1]   # the first token of a row is taken to follow token 0
        number = (before * self.weight.shape[0] + ids) * 40_503 % 65_536   # spreads neighbours over the table
        return super().forward(ids) + self.pairs[number % PAIRS]
