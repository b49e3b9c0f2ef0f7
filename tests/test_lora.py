"LoRA: merged equal to unmerged, files of PEFT in both directions, and what must be refused."
import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llm_course.engine.lora import LoraLinear, add_lora, load_adapter, lora_layers, merge_lora, projection, save_adapter
from llm_course.linear import Linear
from llm_course.pretrained import as_transformers
from llm_course.transformer import Transformer

ALL = "q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"
ENDS = {"q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "output_proj": "self_attn.o_proj",
        "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}


def model(**more):
    torch.manual_seed(0)
    return Transformer(50, 16, 16, 2, 4, 24, num_kv_heads=2, **more).eval()


def tuned(targets=ALL, **more):
    "A model whose corrections matter."
    made = model(**more)
    add_lora(made, 3, 12., targets)
    with torch.no_grad():
        for _, layer in lora_layers(made): layer.lora_B.normal_(std=.2)
    return made


IDS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("targets", [("q_proj",), ("k_proj", "w2"), ALL, ("head",)], ids=str)
def test_merged_is_unmerged(targets):
    made, plain = tuned(targets), model()
    before = made(IDS)
    assert (before - plain(IDS)).abs().max() > 1e-3
    merge_lora(made)
    torch.testing.assert_close(made(IDS), before, rtol=0, atol=1e-5)
    exact, double = tuned(targets).double(), tuned(targets).double()
    merge_lora(double)
    torch.testing.assert_close(double(IDS), exact(IDS), rtol=0, atol=1e-6)
    assert not any(lora_layers(made)) and [n for n, _ in made.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(p.requires_grad for p in made.parameters())
    with pytest.raises(ValueError, match="no LoRA layers"): merge_lora(made)


def test_only_the_corrections_learn_and_begin_at_nothing():
    made, plain = model(), model()
    add_lora(made, 2, 4., ALL)
    assert torch.equal(made(IDS), plain(IDS))
    made(IDS).square().mean().backward()
    for name, p in made.named_parameters():
        assert (p.grad is not None) == ("lora_" in name)
        if name.endswith("lora_B"): assert p.grad.abs().max() > 0
    assert len(list(lora_layers(made))) == 14


def test_is_the_formula_with_a_bias_too():
    base = Linear(5, 4, bias=True)
    layer = LoraLinear(base, 2, 6.)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 5)
    wanted = nn.functional.linear(x, base.weight + 3 * layer.lora_B @ layer.lora_A, base.bias)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("change, why", [
    (dict(rank=0), "rank"), (dict(rank=17), "rank"), (dict(targets=("qproj",)), "qproj"), (dict(tie=True, targets=("head",)), "embedding")])
def test_refuses_corrections_that_cannot_be(change, why):
    made = model(tie=change.pop("tie", False))
    with pytest.raises(ValueError, match=why): add_lora(made, **change)


def test_refuses_a_second_set():
    with pytest.raises(ValueError, match="already"): add_lora(tuned())


def by_hand(folder, alpha=12., rank=3, **said):
    "An adapter as PEFT writes it, and the sum of each weight of transformers' model and its correction."
    theirs, tensors = as_transformers(model()), {}
    torch.manual_seed(1)
    for name, weight in theirs.named_parameters():
        layer = name.removesuffix(".weight")
        if not layer.endswith(tuple(ENDS.values())): continue
        a, b = torch.randn(rank, weight.shape[1]), .2 * torch.randn(weight.shape[0], rank)
        tensors |= {f"base_model.model.{layer}.lora_A.weight": a, f"base_model.model.{layer}.lora_B.weight": b}
        with torch.no_grad(): weight.data = weight + alpha / rank * b @ a
    folder.mkdir(exist_ok=True)
    (folder/"adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": "all-linear", "bias": "none"} | said), "utf-8", newline="\n")
    save_file(tensors, folder/"adapter_model.safetensors", {"format": "pt"})
    return theirs


def test_reads_an_adapter_made_by_hand(tmp_path):
    pytest.importorskip("transformers")
    theirs, ours = by_hand(tmp_path/"adapter"), model()
    load_adapter(ours, tmp_path/"adapter")
    with torch.no_grad(): torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    assert len(list(lora_layers(ours))) == 14


def test_writes_what_it_reads_in_the_layout_of_peft(tmp_path):
    pytest.importorskip("transformers")
    by_hand(tmp_path/"theirs")
    made = model()
    load_adapter(made, tmp_path/"theirs")
    save_adapter(made, tmp_path/"ours", "owner/model")
    theirs, ours = (load_file(tmp_path/who/"adapter_model.safetensors") for who in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    said = json.loads((tmp_path/"ours"/"adapter_config.json").read_text("utf-8"))
    assert (said["r"], said["lora_alpha"], said["peft_type"], said["base_model_name_or_path"]) == (3, 12., "LORA", "owner/model")
    assert said["target_modules"] == sorted(end.rpartition(".")[2] for end in ENDS.values())


@pytest.mark.parametrize("said, why", [
    ({"use_dora": True}, "use_dora"), ({"use_rslora": True}, "use_rslora"), ({"bias": "all"}, "bias"), ({"peft_type": "IA3"}, "peft_type"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"), ({"r": "3"}, "must say r"),
    ({"r": 4}, "shapes")])
def test_refuses_an_adapter_of_another_kind(tmp_path, said, why):
    by_hand(tmp_path/"adapter", **said) if "r" not in said else by_hand(tmp_path/"adapter")
    path = tmp_path/"adapter"/"adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | said), "utf-8", newline="\n")
    made = model()
    with pytest.raises(ValueError, match=why): load_adapter(made, tmp_path/"adapter")
    assert not any(lora_layers(made)) and torch.equal(made(IDS), model()(IDS))


def test_refuses_an_adapter_that_does_not_fit(tmp_path):
    by_hand(tmp_path/"adapter")
    path = tmp_path/"adapter"/"adapter_model.safetensors"
    whole = load_file(path)
    first = min(whole)
    for tensors, why in (({k: v for k, v in whole.items() if k != first}, "does not fit"), ({}, "holds no tensor"),
                         (whole | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": whole[first].clone()}, "does not fit"),
                         (whole | {first: torch.full_like(whole[first], torch.nan)}, "not finite")):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=why): load_adapter(model(), tmp_path/"adapter")
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="damaged"): load_adapter(model(), tmp_path/"adapter")
    path.unlink()
    with pytest.raises((ValueError, OSError), match="adapter_model"): load_adapter(model(), tmp_path/"adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sees_that_it_would_be_merged_twice(tmp_path, dtype):
    made = tuned()
    save_adapter(made, tmp_path)
    share = projection(made)
    base = model().to(dtype)
    load_adapter(base, tmp_path)
    assert abs(projection(base) - share) < .02
    merge_lora(made)
    made.to(dtype)
    before = made(IDS)
    with pytest.raises(ValueError, match="already"): load_adapter(made, tmp_path)
    assert not any(lora_layers(made)) and torch.equal(made(IDS), before)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft: pip install -e .[evaluation-referee]")
def test_peft_reads_ours_and_we_read_peft(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    made = tuned()
    save_adapter(made, tmp_path/"ours")
    theirs = PeftModel.from_pretrained(as_transformers(model()), tmp_path/"ours").eval()
    with torch.no_grad(): torch.testing.assert_close(theirs(IDS).logits, made(IDS), rtol=1e-5, atol=1e-5)

    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(as_transformers(model()), config).eval()
    theirs.save_pretrained(tmp_path/"theirs")
    read = model()
    load_adapter(read, tmp_path/"theirs")
    with torch.no_grad():
        assert (theirs(IDS).logits - model()(IDS)).abs().max() > 1e-2
        torch.testing.assert_close(read(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
