"""Rotary positions, with mistakes."""
import torch
from torch import nn


def table(d, length, theta, first=0): return torch.arange(first, first + length)[:, None].double() * theta ** -(torch.arange(0, d, 2) / d).double()

def neighbours(x, angle):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

def halves(x, angle):
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

def mirrored(x, angle):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * angle.cos() + b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

def added(x, angle): return x + torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def version(name, angles=table, turn=neighbours, saved=False, deaf=False, narrow=False):
    "A `RoPE` that is right but for what is given."
    class Part(nn.Module):
        def __init__(self, d_k, max_seq_len, theta=10000.0):
            super().__init__()
            self.angles = angles(d_k, max_seq_len, theta)
            if saved: self.register_buffer("table", self.angles)

        def forward(self, x, token_positions=None):
            angle = self.angles[:x.shape[-2]] if deaf or token_positions is None else self.angles[token_positions]
            return turn(x, angle.to(x.dtype)) if narrow else turn(x.double(), angle).to(x.dtype)
    Part.__name__ = name
    return Part


FAULTY = {"RoPE": [
    version("pairs_the_halves", turn=halves),
    version("turns_backwards", turn=lambda x, angle: neighbours(x, -angle)),
    version("not_a_rotation", turn=mirrored),
    version("adds_instead_of_turning", turn=added),
    version("one_speed_for_all", lambda d, length, theta: table(d, length, theta)[:, :1].expand(-1, d // 2)),
    version("counts_from_one", lambda d, length, theta: table(d, length, theta, first=1)),
    version("exponent_without_two", lambda d, length, theta: table(d, length, theta ** .5)),
    version("theta_is_fixed", lambda d, length, theta: table(d, length, 10000.)),
    version("does_not_hear_positions", deaf=True),
    version("saves_its_table", saved=True),
    version("angles_in_half_precision", narrow=True),
    version("does_nothing", turn=lambda x, angle: x),
]}
