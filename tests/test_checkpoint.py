"""Checkpoints: what is written comes back bit for bit; what is damaged, foreign or carries code is refused in one line and never run."""
import builtins
import io
import json
import os
import pickle
import random
import re
import stat
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from llm_course import checkpoint
from llm_course.attention import attention as readable
from llm_course.checkpoint import (
    load_checkpoint,
    load_model,
    pick_device,
    read_checkpoint,
    restore,
    save_checkpoint,
    save_model,
    unwrap_model,
)
from llm_course.engine.exchange import open_both
from llm_course.engine.int8 import at_precision
from llm_course.engine.lora import add_lora
from llm_course.engine.model_files import LARGEST
from llm_course.generating import load_demo
from llm_course.pretrained import export_gguf, export_pretrained
from llm_course.transformer import AdamW, SGDDecay, Transformer

SHAPE = dict(vocab_size=20, max_seq_len=8, d_model=8, num_layers=2, num_heads=2, d_ff=12)


def make(seed=0, device="cpu", **changes):
    torch.manual_seed(seed)
    model = Transformer(**{**SHAPE, **changes}, device=device)
    return model, AdamW(model.parameters(), lr=1e-2)


def steps(model, optimizer, first, last):
    losses = []
    for i in range(first, last):
        ids = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(i)).to(next(model.parameters()).device)
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def run(): # a model and an optimiser that have taken three steps
    model, optimizer = make()
    steps(model, optimizer, 0, 3)
    return model, optimizer


@pytest.fixture
def saved(run, tmp_path):
    save_checkpoint(*run, 3, tmp_path/"checkpoint.pt")
    return tmp_path/"checkpoint.pt"


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refused(read, *arguments):
    "The message, after checking that it is one line."
    with pytest.raises(ValueError) as caught: read(*arguments)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


# ---- There and back

@pytest.mark.parametrize("where", ["path", "string", "memory"])
@pytest.mark.parametrize("changes", [{}, dict(tie=True, num_kv_heads=1)], ids=["plain", "tied and grouped"])
def test_resumed_is_unbroken(where, changes, tmp_path, device):
    model, optimizer = make(device=device, **changes)
    steps(model, optimizer, 0, 3)
    out = {"path": tmp_path/"c.pt", "string": str(tmp_path/"c.pt"), "memory": io.BytesIO()}[where]
    save_checkpoint(model, optimizer, 3, out)
    unbroken = steps(model, optimizer, 3, 6)

    model, optimizer = make(seed=1, device=device, **changes)
    assert load_checkpoint(out, model, optimizer) == 3   # memory need not be rewound
    assert steps(model, optimizer, 3, 6) == unbroken     # bit for bit

    model, optimizer = make(seed=1, device=device, **changes)
    load_checkpoint(out, model)
    assert steps(model, optimizer, 3, 6)[1:] != unbroken[1:]   # the moments matter


def test_everything_comes_back(run, saved):
    model, optimizer = run
    other, theirs = make(seed=1)
    load_checkpoint(saved, other, theirs)
    assert same(other.state_dict(), model.state_dict())
    assert theirs.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for i, moments in optimizer.state_dict()["state"].items(): assert same(theirs.state_dict()["state"][i], moments)


def test_extra_values_travel_along(run):
    file = io.BytesIO()
    save_checkpoint(*run, 3, file, best=1.5, pending=[1., 2.], table={"a": torch.ones(2)})
    state = read_checkpoint(file)
    assert (state["best"], state["pending"], state["iteration"]) == (1.5, [1., 2.], 3) and torch.equal(state["table"]["a"], torch.ones(2))
    assert state["config"] == asdict(run[0].config)


def test_none_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(*run, 3, None)
    assert not os.listdir()


def test_another_optimiser_and_another_kind_of_model(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = SGDDecay(model.parameters(), lr=.5)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    save_checkpoint(model, optimizer, 1, tmp_path/"c.pt")
    other = nn.Linear(3, 2)
    again = SGDDecay(other.parameters(), lr=.1)
    assert load_checkpoint(tmp_path/"c.pt", other, again) == 1
    assert same(other.state_dict(), model.state_dict()) and again.param_groups[0]["t"] == 1 and again.param_groups[0]["lr"] == .5
    assert "does not say what shape" in refused(load_model, tmp_path/"c.pt", "cpu")
    assert "size mismatch for weight" in refused(load_checkpoint, tmp_path/"c.pt", nn.Linear(4, 2))


@pytest.mark.parametrize("changes", [{}, dict(tie=True, num_kv_heads=1, rope_theta=500.)], ids=["plain", "tied and grouped"])
@pytest.mark.parametrize("file", ["checkpoint.pt", "model.safetensors"])
def test_load_model_builds_the_shape_from_the_file(file, changes, tmp_path, device):
    model, optimizer = make(device=device, **changes)
    steps(model, optimizer, 0, 1)
    if file == "checkpoint.pt": save_checkpoint(model, optimizer, 1, tmp_path/file)
    else: save_model(model, tmp_path/file, torch.float32)
    chance = torch.get_rng_state()
    back = load_model(tmp_path/file, device)
    assert torch.equal(torch.get_rng_state(), chance)   # loading draws no random numbers
    assert back.config == model.config and same(back.state_dict(), model.state_dict()) and not back.training
    assert (back.head.weight is back.embedding.weight) == model.config.tie
    assert {p.dtype for p in back.parameters()} == {torch.float32} and {p.device.type for p in back.parameters()} == {device}
    ids = torch.randint(20, (2, 8), device=device)
    assert torch.equal(back(ids), model(ids))
    assert torch.equal(load_model(str(tmp_path/file), torch.device(device))(ids), model(ids))


# ---- Parts of one's own

class Twice(nn.Module):
    "A norm of one's own, with a table that it makes for itself."
    def __init__(self, d_model):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.register_buffer("two", torch.tensor(2.), persistent=False)
    def forward(self, x): return x * self.gain * self.two

def elsewhere(name=Twice.__name__):
    "A class of that name, from another module."
    return type(name, (Twice,), {"__module__": "elsewhere"})

OWN = {"norm": Twice, "attend": readable}

@pytest.mark.parametrize("file", ["checkpoint.pt", "model.safetensors"])
def test_a_model_with_parts_of_ones_own_loads_with_them_and_not_without(file, tmp_path, device):
    path, (model, optimizer) = tmp_path/file, make(parts=OWN, device=device)
    steps(model, optimizer, 0, 2)
    if file == "checkpoint.pt": save_checkpoint(model, optimizer, 2, path)
    else: save_model(model, path, torch.float32)
    ids = torch.randint(20, (2, 8), device=device)
    for twice in Twice, elsewhere():   # a class may have moved
        back = load_model(path, device, parts={**OWN, "norm": twice})
        assert torch.equal(back(ids), model(ids)) and not back.training
    needs = f"{path} needs parts that are not this course's own ("
    assert refused(load_model, path, device) == (f"{needs}norm: {__name__}.Twice, attend: llm_course.attention.attention); name a file that defines them by --parts, "
                                                 "or in Python load its model with parts={'norm': Twice, 'attend': attention}; it cannot be exported to other programs")
    assert refused(load_model, path, device, {"norm": Twice}).startswith(f"{needs}attend: ")
    assert refused(load_model, path, device, {**OWN, "norm": elsewhere("Thrice")}).startswith(f"{needs}norm: ")
    assert "not with head: torch.nn.modules.linear.Linear; leave them out" in refused(load_model, path, device, {**OWN, "head": nn.Linear})


def test_loading_parts_of_ones_own_draws_no_random_numbers(tmp_path):
    model, optimizer = make(parts=OWN)
    save_checkpoint(model, optimizer, 0, tmp_path/"c.pt")
    chance = torch.get_rng_state()
    load_model(tmp_path/"c.pt", "cpu", OWN)
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_run_with_parts_of_ones_own_goes_on_with_them_and_not_without(tmp_path):
    model, optimizer = make(parts=OWN)
    steps(model, optimizer, 0, 3)
    save_checkpoint(model, optimizer, 3, tmp_path/"c.pt")
    unbroken = steps(model, optimizer, 3, 6)
    model, optimizer = make(seed=1, parts=OWN)
    assert load_checkpoint(tmp_path/"c.pt", model, optimizer) == 3 and steps(model, optimizer, 3, 6) == unbroken
    assert "the checkpoint needs parts that are not this course's own (norm: " in refused(load_checkpoint, tmp_path/"c.pt", make()[0])
    save_checkpoint(*make(), 0, tmp_path/"plain.pt")
    assert "not with norm: " in refused(load_checkpoint, tmp_path/"plain.pt", model)


def test_a_file_from_before_there_were_parts_is_read(saved, tmp_path):
    state = torch.load(saved)
    del state["parts"]
    torch.save(state, tmp_path/"old.pt")
    assert load_model(tmp_path/"old.pt", "cpu").parts == {}


def test_a_model_in_half_precision_is_written_and_read(tmp_path):
    model = make()[0].bfloat16()
    save_model(model, tmp_path/"m.safetensors", torch.bfloat16)
    back = load_model(tmp_path/"m.safetensors", "cpu")
    assert all(torch.equal(x.bfloat16(), model.state_dict()[name]) and x.dtype == torch.float32 for name, x in back.state_dict().items())


class Wrapper(nn.Module):
    "What `DistributedDataParallel` does to names."
    def __init__(self, model):
        super().__init__()
        self.module = model

@pytest.mark.parametrize("wrap", [torch.compile, Wrapper, lambda m: torch.compile(Wrapper(m)), lambda m: Wrapper(torch.compile(m))],
                         ids=["compiled", "parallel", "compiled parallel", "parallel compiled"])
def test_wrapped_models_are_saved_and_loaded_bare(wrap, run, tmp_path):
    model, optimizer = run
    wrapped = wrap(model)
    assert unwrap_model(wrapped) is model and unwrap_model(model) is model
    save_checkpoint(wrapped, optimizer, 3, tmp_path/"c.pt")
    plain = load_model(tmp_path/"c.pt", "cpu")
    assert same(plain.state_dict(), model.state_dict())
    other, theirs = make(seed=1)
    load_checkpoint(tmp_path/"c.pt", wrap(other), theirs)
    assert same(other.state_dict(), model.state_dict())
    save_model(wrapped, tmp_path/"m.safetensors")
    assert load_model(tmp_path/"m.safetensors", "cpu").config == model.config


def test_every_die_lies_as_it_lay(run, saved, tmp_path):
    def throws(): return random.random(), np.random.rand(), torch.rand(2).tolist(), *([torch.rand(2, device="cuda").tolist()] if torch.cuda.is_available() else [])
    throws()
    save_checkpoint(*run, 3, saved, random=checkpoint.random_states())
    before = throws()
    assert throws() != before
    checkpoint.set_random_states(read_checkpoint(saved)["random"])
    assert throws() == before
    good = checkpoint.random_states()
    for damage in {"python": 1}, {"python": ()}, {"python": (3, (-1,) * 625, None)}, {"numpy": ("MT19937", [1, 2], 3)}, {"numpy": ("MT19937", [1] * 624, 1 - 2**31)}, {"torch": None}:
        with pytest.raises(ValueError, match="random states of the checkpoint are damaged"): checkpoint.set_random_states(good | damage)
        throws()   # a place outside NumPy's 624 numbers would end the process here


# ---- Sizes and types of exported models

def test_float16_is_a_sixth_of_a_checkpoint(tmp_path):
    model, optimizer = make(d_model=64, d_ff=176, vocab_size=256)
    steps(model, optimizer, 0, 1)
    save_checkpoint(model, optimizer, 1, tmp_path/"c.pt")
    parameters = sum(p.numel() for p in model.parameters())
    for dtype, bytes_each in (torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4):
        save_model(model, tmp_path/"m.safetensors", dtype)
        assert bytes_each <= (tmp_path/"m.safetensors").stat().st_size / parameters < bytes_each * 1.05
        assert {x.dtype for x in load_file(tmp_path/"m.safetensors").values()} == {dtype}
    assert 12 <= (tmp_path/"c.pt").stat().st_size / parameters < 12.6


def test_float16_rounds_and_keeps_one_copy_of_a_tied_matrix(tmp_path):
    model, _ = make(tie=True)
    save_model(model, tmp_path/"m.safetensors")
    assert "head.weight" not in load_file(tmp_path/"m.safetensors")
    for name, x in load_model(tmp_path/"m.safetensors", "cpu").state_dict().items(): assert_close(x, model.state_dict()[name], rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_what_float16_cannot_hold_is_refused(value, run, tmp_path):
    model, _ = run
    save_model(model, tmp_path/"m.safetensors")
    older = (tmp_path/"m.safetensors").read_bytes()
    with torch.no_grad(): model.norm.weight[3] = value
    assert "norm.weight holds numbers that are not finite in torch.float16" in refused(save_model, model, tmp_path/"m.safetensors")
    assert (tmp_path/"m.safetensors").read_bytes() == older and len(os.listdir(tmp_path)) == 1
    if value == 1e5: save_model(model, tmp_path/"m.safetensors", torch.bfloat16)


def test_what_could_not_be_read_back_is_not_written(run, tmp_path):
    "Layers that others took the place of: of rounded numbers, of corrections, of one's own. A run keeps whatever its model has."
    writers = [lambda made: save_model(made, tmp_path/"m.safetensors"),
               lambda made: export_pretrained(made, load_demo("cpu")[1], tmp_path/"export"), lambda made: export_gguf(made, load_demo("cpu")[1], tmp_path/"m.gguf")]
    for parts in {}, {"norm": nn.RMSNorm}:
        rounded = at_precision(make(parts=parts, vocab_size=2000)[0], "int8")
        for write in writers[:1 if parts else 3]: assert "save the model before at_precision" in refused(write, rounded)
    corrected, other, larger = make(vocab_size=2000)[0], make(vocab_size=2000)[0], make(vocab_size=2000, tie=True)[0]
    add_lora(corrected, 2)
    for write in writers: assert "call merge_lora first" in refused(write, corrected)
    other.blocks[1].ffn = nn.Linear(8, 8)
    larger.embedding.weight = nn.Parameter(torch.randn(2001, 8))
    for write in writers:
        assert "blocks.1.ffn.bias is not what the model's configuration asks for" in refused(write, other)
        assert "embedding.weight is not what" in refused(write, larger)
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and not [*(tmp_path/"export").iterdir()]
    for made in corrected, other:
        save_checkpoint(made, run[1], 3, tmp_path/"c.pt")
        assert read_checkpoint(tmp_path/"c.pt")["model"].keys() == made.state_dict().keys()


# ---- Damage

def test_a_file_cut_at_any_length_is_refused(saved):
    whole = saved.read_bytes()
    for n in [*range(0, len(whole), len(whole)//60), len(whole) - 1]:
        saved.write_bytes(whole[:n])
        assert "checkpoint.pt is not a checkpoint of this course: it is damaged or of another kind" in refused(read_checkpoint, saved)
        assert "this file is not a checkpoint" in refused(read_checkpoint, io.BytesIO(whole[:n]))


def test_a_flipped_bit_is_refused_or_changes_nothing(run, saved):
    whole, chance, flipped = saved.read_bytes(), random.Random(0), 0
    model, optimizer = run
    for _ in range(100):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try: state = read_checkpoint(io.BytesIO(data))
        except ValueError as error:
            assert "\n" not in str(error)
            flipped += 1
            continue
        assert same(state["model"], model.state_dict())
        for i, moments in optimizer.state_dict()["state"].items(): assert same(state["optimizer"]["state"][i], moments)
    assert flipped > 33
    place = whole.index(model.embedding.weight.detach().numpy().tobytes()) + 7   # in the numbers, where torch.load would not see it
    data = bytearray(whole)
    data[place] ^= 64
    assert not torch.equal(torch.load(io.BytesIO(data), weights_only=True)["model"]["embedding.weight"], model.embedding.weight)
    assert "damaged" in refused(read_checkpoint, io.BytesIO(data))


def test_noise_is_refused(tmp_path):
    chance = random.Random(0)
    for suffix in "pt", "safetensors":
        for n in (0, 1, 7, 8, 9, 100, 1000):
            (tmp_path/f"noise.{suffix}").write_bytes(chance.randbytes(n))
            assert "noise" in refused(load_model, tmp_path/f"noise.{suffix}", "cpu")


def test_a_cut_safetensors_file_is_refused(run, tmp_path):
    path = tmp_path/"m.safetensors"
    save_model(run[0], path)
    whole = path.read_bytes()
    for n in range(0, len(whole), len(whole)//40):
        path.write_bytes(whole[:n])
        assert "m.safetensors is not a model of this course" in refused(load_model, path, "cpu")


def test_a_missing_file_or_a_folder_is_the_systems_to_report(tmp_path):
    for name in "none.pt", "none.safetensors":
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist; name a checkpoint.pt, a file of save_model, or the folder of a run$"): load_model(tmp_path/name, "cpu")
    with pytest.raises(OSError): read_checkpoint(tmp_path)


# ---- Foreign files, and files that carry code

class Payload:
    "Calls a function when it is unpickled."
    def __init__(self, call, *arguments): self.how = call, arguments
    def __reduce__(self): return self.how

def code_carriers(mark):
    "Files that would make the folder `mark`."
    payload = Payload(os.mkdir, str(mark))
    inside = {"iteration": 1, "config": None, "model": {"w": payload}, "optimizer": {}}
    for state in payload, inside, Payload(builtins.exec, f"import os; os.mkdir({str(mark)!r})"):
        for old in True, False:
            file = io.BytesIO()
            torch.save(state, file, _use_new_zipfile_serialization=not old)
            yield file.getvalue()
        yield pickle.dumps(state)

def test_code_is_refused_and_never_run(tmp_path):
    mark = tmp_path/"ran"
    files = list(code_carriers(mark))
    torch.load(io.BytesIO(files[0]), weights_only=False)
    assert mark.exists()   # this is what an unguarded reader does
    mark.rmdir()
    for i, data in enumerate(files):
        (tmp_path/"gift.pt").write_bytes(data)
        for read in read_checkpoint, lambda path: read_checkpoint(path, lazy=True), lambda path: load_model(path, "cpu"), lambda path: load_checkpoint(path, make()[0]):
            message = refused(read, tmp_path/"gift.pt")
            assert "gift.pt is not a checkpoint" in message and ("carries code, which is never run" in message) == (i % 3 == 1)   # the others are no zip archives, and are not even opened
        assert not mark.exists()
    (tmp_path/"gift.safetensors").write_bytes(files[0])
    refused(load_model, tmp_path/"gift.safetensors", "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("state", [
    torch.ones(2), [1], {"weights": torch.ones(2)},
    {"iteration": 1, "config": None, "model": {}},                                  # no optimiser
    {"iteration": "1", "config": None, "model": {}, "optimizer": {}},
    {"iteration": 1, "config": [], "model": {}, "optimizer": {}},
    {"iteration": 1, "config": None, "model": torch.ones(2), "optimizer": {}},
], ids=range(7))
def test_foreign_files_are_refused(state, tmp_path):
    torch.save(state, tmp_path/"foreign.pt")
    assert "foreign.pt is not a checkpoint of this course: it lacks" in refused(read_checkpoint, tmp_path/"foreign.pt")


@pytest.mark.parametrize("config, message", [
    ({"sliding_window": 4, "flavour": 1}, "was written by a newer version of this course: it has flavour, sliding_window"),
    ({"d_model": "8"}, "its d_model should be of type int, but is of type str"), ({"d_model": True}, "its d_model should be of type int, but is of type bool"), ({"tie": 1}, "its tie should be of type bool"),
    ({"num_heads": 3}, "num_heads must divide d_model"), ({"num_heads": ...}, "it lacks num_heads"), ({"rope_theta": ...}, "it lacks rope_theta"),
    ({"num_layers": 3}, "lacks the tensor blocks.2.attention_norm.weight"), ({"num_layers": 1}, "holds the tensor blocks.1.attention.k_proj.weight and 8 more, for which"),
    ({"d_ff": 16}, "holds blocks.0.ffn.w1.weight in the shape (12, 8), but its configuration asks for (16, 8)"), ({"tie": True}, "head.weight differs from embedding.weight"),
    # what would take memory or time
    ({"num_layers": 10**7}, "asks for 10,000,000 blocks, but holds 21 tensors"), ({"max_seq_len": 10**9}, "max_seq_len = 1,000,000,000, which no model has"),
    ({"max_seq_len": LARGEST - 1}, "whose table of 67,108,860 angles is larger than the model"), ({"d_k": 10**8}, "d_k = 100,000,000, which no model has"), ({"d_k": LARGEST - 2}, "angles"),
    ({"vocab_size": LARGEST - 1}, "in the shape"), ({"norm_eps": 1e300}, "norm_eps = 1e+300"), ({"norm_eps": 10**400}, "norm_eps = 10,000"), ({"rope_scaling": {"factor": "x"}}, "its factor should be of type float"),
    ({"rope_scaling": 3}, "its rope_scaling should be of type RopeScaling"), ({"rope_scaling": {"factor": 8., "what": 1}}, "it has what"), ({"num_kv_heads": 2**63}, "which no model has")], ids=str)
def test_a_shape_that_does_not_fit_its_file_is_refused(config, message, run, saved, tmp_path):
    state = read_checkpoint(saved)
    config = {name: value for name, value in {**state["config"], **config}.items() if value is not ...}
    torch.save({**state, "config": config}, tmp_path/"odd.pt")
    save_file(run[0].state_dict(), tmp_path/"odd.safetensors", {"config": json.dumps(config)})
    for name in "odd.pt", "odd.safetensors": assert message in refused(load_model, tmp_path/name, "cpu")

def repacked(data, change=lambda name, inside: inside, packing=zipfile.ZIP_STORED):
    "A file of `torch.save` with other records, and checksums that fit them."
    old, made = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as new:
        for info in old.infolist(): new.writestr(info.filename, change(info.filename, old.read(info)))
    return made.getvalue()

def laughs():
    found = ["ha"]
    for _ in range(40): found = [found, found]
    return found

BOMB = b"\x80\x02c__builtin__\nbytearray\nq\x00\x8a\x05\x00\xe4\x0bT\x02\x85q\x01Rq\x02."   # bytearray(10**10)

@pytest.mark.parametrize("change", [
    lambda state, data: repacked(data, packing=zipfile.ZIP_DEFLATED), lambda state, data: repacked(data, lambda name, inside: BOMB if name.endswith("data.pkl") else inside),
    lambda state, data: state["config"].update(d_model=laughs()), lambda state, data: state.update(more=laughs()), lambda state, data: state["model"].update({"norm.weight": torch.zeros(1).expand(10**12)}),
    lambda state, data: state.update(more=torch.ones(3).to_sparse()), lambda state, data: state.update(more=torch.ones(3, device="meta")), lambda state, data: state.update(iteration=-1),
    lambda state, data: state.update(iteration=2**63)], ids=["packed", "bytearray", "laughs as a size", "laughs", "stride 0", "sparse", "meta", "before the first", "never"])
def test_a_small_file_stays_small(change, saved):
    "Every checksum is right, and nothing is code."
    state = read_checkpoint(saved)
    data = change(state, saved.read_bytes())
    if data is None: torch.save(state, saved)
    else: saved.write_bytes(data)
    for read in read_checkpoint, lambda path: read_checkpoint(path, lazy=True), lambda path: load_model(path, "cpu"), lambda path: load_checkpoint(path, make()[0]): assert "is not a checkpoint of this course" in refused(read, saved)


@pytest.mark.parametrize("value, message", [
    (lambda x: x > 0, "as torch.bool; weights must be floating-point tensors"), (lambda x: x.int(), "as torch.int32"), (lambda x: x.to(torch.complex64), "as torch.complex64"), (lambda x: x.tolist(), "as list"),
    (lambda x: x * torch.nan, "holds numbers in blocks.1.ffn.w2.weight that are not finite"), (lambda x: x.double() * 1e300, "not finite"), (lambda x: x[:0], "in the shape (0, 12)"),
    (lambda x: x[:1, :1].clone().expand(8, 12), "holds fewer numbers|is damaged or of another kind")], ids=["bool", "integers", "complex", "a list", "nan", "beyond float32", "empty", "one for all"])
def test_weights_are_numbers_to_compute_with(value, message, run, saved, tmp_path):
    state, name = read_checkpoint(saved), "blocks.1.ffn.w2.weight"
    state["model"][name] = value(state["model"][name])
    torch.save(state, tmp_path/"odd.pt")
    found = [refused(load_model, tmp_path/"odd.pt", "cpu"), refused(load_checkpoint, tmp_path/"odd.pt", make()[0])]
    if isinstance(state["model"][name], torch.Tensor):
        save_file({name: x.contiguous() for name, x in state["model"].items()}, tmp_path/"odd.safetensors", {"config": json.dumps(state["config"])})
        if "fewer" not in message: found.append(refused(load_model, tmp_path/"odd.safetensors", "cpu"))
    for said in found: assert any(part in said for part in message.split("|")), said


def test_names_that_share_their_numbers_are_not_believed(saved, tmp_path):
    "A hundred blocks of one matrix would take a hundred times what the file has."
    model, _ = make(num_layers=1)
    save_checkpoint(model, AdamW(model.parameters()), 0, saved)
    state = read_checkpoint(saved)
    state["config"]["num_layers"] = 100
    for name in list(state["model"]):
        for i in range(1, 100): state["model"][name.replace("blocks.0.", f"blocks.{i}.")] = state["model"][name]
    torch.save(state, tmp_path/"odd.pt")
    assert "odd.pt holds fewer numbers than its tensors have" in refused(load_model, tmp_path/"odd.pt", "cpu")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{"}, {"config": "[1]"}, {"config": "null"}, {"config": "[" * 100_000}, {"config": '{"d_ff": 1, "d_ff": 2}'}], ids=str)
def test_safetensors_of_others_are_refused(metadata, run, tmp_path):
    save_file(run[0].state_dict(), tmp_path/"m.safetensors", metadata)
    assert "m.safetensors" in refused(load_model, tmp_path/"m.safetensors", "cpu")


# ---- Another shape

def test_differing_fields_are_named_and_nothing_is_changed(saved):
    other, optimizer = make(seed=1, num_layers=3, d_ff=16, tie=True)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    message = refused(load_checkpoint, saved, other, optimizer)
    assert message == ("the checkpoint is of another model: num_layers is 2 in the checkpoint and 3 here, "
                       "d_ff is 12 in the checkpoint and 16 here, tie is False in the checkpoint and True here")
    assert same(other.state_dict(), before) and not optimizer.state


def test_a_newer_checkpoint_is_refused_by_restore(run, saved):
    state = read_checkpoint(saved)
    state["config"]["flavour"] = 1
    assert "newer version of this course: it has flavour" in refused(restore, state, run[0])


def test_an_older_checkpoint_gets_the_defaults_of_new_fields(run, saved, tmp_path):
    state = read_checkpoint(saved)
    for newer in "norm_eps", "d_k", "qkv_bias", "qk_norm", "rope_scaling", "variant": del state["config"][newer]
    torch.save(state, tmp_path/"old.pt")
    assert load_model(tmp_path/"old.pt", "cpu").config == run[0].config


def test_an_optimiser_of_other_parameters_is_refused(saved):
    model, _ = make(seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = AdamW(list(model.parameters())[:3])
    assert "another model or optimiser" in refused(load_checkpoint, saved, model, optimizer)
    assert same(model.state_dict(), before)


def test_moments_that_fit_no_parameter_are_refused(run, saved):
    state = read_checkpoint(saved)
    state["optimizer"]["state"][0]["exp_avg"] = torch.ones(3)
    assert "exp_avg of parameter 0 is [3]" in refused(restore, state, *run)


# ---- Whole or not at all

@pytest.mark.parametrize("bytes_until_death", [0, 1, 1500])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_failing_write_keeps_the_older_file(bytes_until_death, error, run, saved, monkeypatch):
    older, written = saved.read_bytes(), 0

    class Dying(io.FileIO):
        def write(self, data):
            nonlocal written
            written += len(data)
            if written > bytes_until_death: raise error
            return super().write(data)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, mode="r", **more: Dying(path, "w") if str(path).endswith(".partial") else real(path, mode, **more))
    for write in lambda: save_checkpoint(*run, 9, saved), lambda: save_model(run[0], saved):
        written = 0
        with pytest.raises(type(error)): write()
        assert saved.read_bytes() == older and os.listdir(saved.parent) == ["checkpoint.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_fsync_or_rename_keeps_the_older_file(call, run, saved, monkeypatch):
    older = saved.read_bytes()
    def fail(*_): raise OSError(5, "Input/output error")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"): save_checkpoint(*run, 9, saved)
    assert saved.read_bytes() == older and os.listdir(saved.parent) == ["checkpoint.pt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody open a folder")
def test_a_file_is_on_disk_before_it_is_renamed_and_its_name_after(run, saved, monkeypatch):
    events, fsync, move = [], os.fsync, os.replace
    def synced(place):
        found = os.fstat(place)
        events.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        fsync(place)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("renamed"), move(*paths)))
    save_checkpoint(*run, 9, saved)
    assert events == [saved.stat().st_size, "renamed", "folder"]


def test_saving_replaces_the_older_file(run, saved):
    whole, lazy = read_checkpoint(saved), read_checkpoint(saved, lazy=os.name == "posix")   # Windows keeps a file that is in use
    save_checkpoint(*make(seed=1), 9, saved)
    assert read_checkpoint(saved)["iteration"] == 9 and os.listdir(saved.parent) == ["checkpoint.pt"]
    assert same(lazy["model"], whole["model"]), "what was not used yet is still that of the older file"


# ---- Devices

def test_pick_device_takes_what_is_there(device):
    assert pick_device(device).type == device and pick_device(torch.device(device)).type == device
    assert pick_device() == pick_device(None)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available(): assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["teapot", "cuda:99", "meta", "cpu cpu", *["mps"]*(not torch.backends.mps.is_available())])
def test_pick_device_refuses_what_is_not(name, saved):
    assert f"--device {name} is not on this machine; it has " in refused(pick_device, name)
    assert f"--device {name}" in refused(load_model, saved, name)


def test_pick_device_prefers_the_fastest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert pick_device() == torch.device("cuda")


def test_pick_device_tries_what_it_picks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    def absent(*_, device): raise RuntimeError("invalid device ordinal")
    monkeypatch.setattr(torch, "empty", absent)
    assert "--device cuda:9 is not on this machine" in refused(pick_device, "cuda:9")


# ---- The command

@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_export_command(dtype, run, saved, tmp_path, capsys):
    checkpoint.main(["--model_path", str(saved), "--output", str(tmp_path/"new"/"m.safetensors"), "--dtype", dtype])
    assert re.search(f"MB in {dtype}\nto generate with it, copy the tokenizer.json", capsys.readouterr().out)
    with pytest.raises(ValueError, match=r"m\.safetensors has no tokenizer.json beside it; copy the one"): open_both(tmp_path/"new"/"m.safetensors", None, "cpu")
    back = load_model(tmp_path/"new"/"m.safetensors", "cpu")
    for name, x in back.state_dict().items(): assert_close(x, run[0].state_dict()[name].to(getattr(torch, dtype)).float(), rtol=0, atol=0)
