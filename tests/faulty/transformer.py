"""Blocks and whole models, with mistakes."""
import torch
from torch import nn

from llm_course.transformer import FFN, Embedding, Linear, MultiHeadAttention, RmsNorm
from llm_course.transformer import TransformerBlock as Block


def block(name, flow):
    "A `TransformerBlock` that is right but for the way of the stream."
    class Part(nn.Module):
        def __init__(self, d_model, num_heads, d_ff, max_seq_len=2048, theta=10000., num_kv_heads=None):
            super().__init__()
            self.attention_norm, self.ffn_norm = RmsNorm(d_model), RmsNorm(d_model)
            self.attention, self.ffn = MultiHeadAttention(d_model, num_heads, num_kv_heads, max_seq_len, theta), FFN(d_model, d_ff)
        def forward(self, x): return flow(x, self.attention_norm, self.attention, self.ffn_norm, self.ffn)
    Part.__name__ = name
    return Part


def model(name, flow=lambda s, ids: s.head(s.norm(s.stack(s.embedding(ids)))), std=None, blocks=None, finish=lambda s: None, tied=True):
    "A `Transformer` that is right but for what is given."
    class Part(nn.Module):
        def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads, d_ff, rope_theta=10000., num_kv_heads=None, tie=False):
            super().__init__()
            make = lambda: Block(d_model, num_heads, d_ff, max_seq_len, rope_theta, num_kv_heads)
            self.embedding, self.norm, self.head = Embedding(vocab_size, d_model), RmsNorm(d_model), Linear(d_model, vocab_size)
            self.blocks = nn.ModuleList(make() for _ in range(num_layers)) if blocks is None else blocks(make, num_layers)
            with torch.no_grad():
                for b in self.blocks:
                    for last in b.attention.output_proj, b.ffn.w2: last.weight *= (2 * num_layers)**-.5
                if tie: self.embedding.weight *= d_model**-.5
                else: self.head.weight *= .1
                if std: self.head.weight.normal_(0, std)
            if tie and tied: self.head.weight = self.embedding.weight
            finish(self)
        def stack(self, x):
            for b in self.blocks: x = b(x)
            return x
        def forward(self, ids): return flow(self, ids)
    Part.__name__ = name
    return Part


@torch.no_grad()
def cut_off(s): s.norm.weight.requires_grad_(False)

def future(s, ids):
    x = s.stack(s.embedding(ids))
    return s.head(s.norm(x + .1 * x.mean(-2, keepdim=True)))

def forgetful(s, ids): return s.head(s.norm(torch.stack([s.stack(s.embedding(ids[..., max(0, t - 1):t + 1]))[..., -1, :] for t in range(ids.shape[-1])], -2)))


FAULTY = {
    "TransformerBlock": [
        block("post_norm", lambda x, n1, a, n2, f: n2((h := n1(x + a(x))) + f(h))),
        block("no_residual", lambda x, n1, a, n2, f: f(n2(a(n1(x))))),
        block("residual_from_the_norm", lambda x, n1, a, n2, f: (h := (n := n1(x)) + a(n)) + f(n2(h))),
        block("first_residual_missing", lambda x, n1, a, n2, f: (h := a(n1(x))) + f(n2(h))),
        block("second_residual_from_the_input", lambda x, n1, a, n2, f: x + f(n2(x + a(n1(x))))),
        block("one_norm_for_both", lambda x, n1, a, n2, f: (h := x + a(n1(x))) + f(n1(h))),
        block("no_norms", lambda x, n1, a, n2, f: (h := x + a(x)) + f(h)),
        block("side_by_side", lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x))),
        block("network_first", lambda x, n1, a, n2, f: (h := x + f(n2(x))) + a(n1(h))),
        block("norm_behind_each_branch", lambda x, n1, a, n2, f: (h := x + n1(a(x))) + n2(f(h))),
        block("half_of_each", lambda x, n1, a, n2, f: (h := x + .5 * a(n1(x))) + .5 * f(n2(h))),
    ],
    "Transformer": [
        model("no_last_norm", lambda s, ids: s.head(s.stack(s.embedding(ids)))),
        model("softmax_at_the_end", lambda s, ids: s.head(s.norm(s.stack(s.embedding(ids)))).softmax(-1)),
        model("last_place_only", lambda s, ids: s.head(s.norm(s.stack(s.embedding(ids))))[..., -1, :]),
        model("sure_from_the_start", std=1.),
        model("one_block_many_times", blocks=lambda make, n: nn.ModuleList([make()] * n)),
        model("a_block_too_few", blocks=lambda make, n: nn.ModuleList(make() for _ in range(n - 1))),
        model("a_block_left_out", lambda s, ids: s.head(s.norm(s.blocks[0](s.embedding(ids))))),
        model("backwards", lambda s, ids: s.head(s.norm(s.stack_back(s.embedding(ids)))), finish=lambda s: setattr(s, "stack_back", lambda x: [x := b(x) for b in reversed(s.blocks)][-1])),
        model("leaks_through_a_mean", future), model("sees_two_tokens", forgetful),
        model("never_tied", tied=False), model("norm_does_not_learn", finish=cut_off),
        model("embedding_scaled", lambda s, ids: s.head(s.norm(s.stack(s.embedding(ids) * s.embedding.weight.shape[1]**.5)))),
        model("double_precision_out", lambda s, ids: s.head(s.norm(s.stack(s.embedding(ids)))).double()),
    ],
}
