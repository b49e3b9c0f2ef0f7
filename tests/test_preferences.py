"DPO: the bet, the loss and its gradient by hand, rows against single rows, what is impossible or huge, pairs whose lengths tell the winner, and trl as the referee."
import importlib.util
import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from apart import apart

from llm_course.generating import load_demo
from llm_course.loss import cross_entropy
from llm_course.preferences import Pair, answer_rows, bradley_terry, dpo_loss, preference_faults, sum_answer_logprobs
from llm_course.pretrained import export_pretrained
from llm_course.transformer import Transformer

ASKED = [[5, 6, 7, 8], [9], [10, 11]]
SAID = [[1, 2], [3, 4, 5, 6, 7, 8, 9], []]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Transformer(40, 32, 16, 1, 2, 24).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1: p.normal_(std=.5)
    return made


def log_p(model, prompts, answers):
    inputs, targets, learnt = answer_rows(prompts, answers)
    return sum_answer_logprobs(model(inputs), targets, learnt)


# ---- What an answer's probability is

def test_rows_of_unequal_length_are_single_rows(model):
    together = log_p(model, ASKED, SAID)
    torch.testing.assert_close(together, torch.cat([log_p(model, [p], [a]) for p, a in zip(ASKED, SAID)]))
    for prompt, answer, found in zip(ASKED, SAID, together):   # the plainest way: one id after the other
        ids = [*prompt, *answer]
        each = [cross_entropy(model(torch.tensor([ids[:at]]))[0, -1:], torch.tensor(ids[at:at + 1])).item() for at in range(len(prompt), len(ids))]
        assert found.item() == pytest.approx(-sum(each), abs=1e-9)
    assert together[2] == 0   # an empty answer is certain


def test_all_answers_of_one_length_add_up_to_one(model):
    answers = [[a, b] for a in range(40) for b in range(40)]
    assert log_p(model, [[3, 1]] * len(answers), answers).exp().sum().item() == pytest.approx(1)


def test_prompt_and_padding_have_no_effect(model):
    inputs, targets, learnt = answer_rows(ASKED, SAID)
    logits = model(inputs).detach().requires_grad_()
    found = sum_answer_logprobs(logits, targets, learnt)
    found.sum().backward()
    assert ((logits.grad != 0).any(-1) == learnt.bool()).all() and learnt.sum(1).tolist() == [2, 7, 0]
    broken = logits.detach().masked_fill(learnt[..., None] == 0, math.nan)
    assert torch.equal(sum_answer_logprobs(broken, targets, learnt), found)
    with pytest.raises(ValueError, match="prompt"): answer_rows([[]], [[1]])
    with pytest.raises(ValueError): answer_rows([[1]], [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_added_up_in_float32(dtype):
    logits = torch.zeros(1, 600, 2, dtype=dtype)
    found = sum_answer_logprobs(logits, torch.ones(1, 600, dtype=torch.int64), torch.ones(1, 600, dtype=torch.int64))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(-600 * math.log(2), rel=1e-5)


# ---- The loss

def four(*values, dtype=torch.float64): return [torch.tensor([value], dtype=dtype, requires_grad=True) for value in values]


def test_the_loss_and_its_gradient_by_hand():
    numbers = four(-8., -13., -10., -10.)
    loss = dpo_loss(*numbers, beta=.5)   # the scores are 1 and −1.5
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2.5)))
    wrong = 1 / (1 + math.exp(2.5))
    assert [x.grad.item() for x in numbers] == pytest.approx([-.5 * wrong, .5 * wrong, .5 * wrong, -.5 * wrong])


def test_the_gradient_is_that_of_differences():
    torch.manual_seed(0)
    numbers = [(-20 * torch.rand(5, dtype=torch.float64)).requires_grad_() for _ in range(4)]
    for beta in .03, 1., 3.: assert torch.autograd.gradcheck(partial(dpo_loss, beta=beta), numbers)
    assert torch.autograd.gradcheck(bradley_terry, numbers[:2])
    one = torch.stack([dpo_loss(*(x[i:i + 1] for x in numbers)) for i in range(5)])
    torch.testing.assert_close(dpo_loss(*numbers), one.mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0., .1, 100.])
def test_equal_models_cost_ln_2(dtype, beta):
    better, worse = torch.tensor([-3., -600.], dtype=dtype), torch.tensor([-9000., 0.], dtype=dtype)
    loss = dpo_loss(better, worse, better, worse, beta)
    assert loss.item() == pytest.approx(math.log(2)) and loss.dtype == torch.promote_types(dtype, torch.float32)


def test_beta_scales_the_bet_and_a_common_shift_changes_nothing():
    better, worse, ref = torch.tensor([-3., -5.]), torch.tensor([-9., -2.]), torch.tensor([-4., -4.])
    for beta in .1, 2.:
        wanted = bradley_terry(beta * (better - ref), beta * (worse - ref))
        torch.testing.assert_close(dpo_loss(better, worse, ref, ref, beta), wanted)
        torch.testing.assert_close(dpo_loss(better - 7, worse - 7, ref, ref, beta), wanted)   # both may fall
    assert bradley_terry(torch.tensor(3.).log(), torch.tensor(0.)).item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_huge_margins_and_impossible_answers(dtype):
    far = 6e4
    for better, worse, loss, slope in ((0., -far, 0., 0.), (-far, 0., far, -1.), (0., -math.inf, 0., 0.), (-math.inf, 0., math.inf, -1.)):
        numbers = four(better, worse, 0., 0., dtype=dtype)
        found = dpo_loss(*numbers, beta=1.)
        found.backward()
        assert found.item() == pytest.approx(loss, rel=5e-3)
        assert [x.grad.item() for x in numbers[:2]] == pytest.approx([slope, -slope])
    for ref in -math.inf, math.nan:
        with pytest.raises(ValueError, match="finite"): dpo_loss(*four(-1., -1., -1., ref, dtype=dtype))


def test_learning_widens_the_margin(model):
    policy = deepcopy(model)
    pairs = [Pair([1, 2], [3, 4], [5, 6, 7]), Pair([8], [4], [7, 7])]
    prompts, better, worse = zip(*pairs)
    with torch.no_grad(): ref = log_p(model, prompts, better), log_p(model, prompts, worse)
    optimizer = torch.optim.SGD(policy.parameters(), lr=.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = dpo_loss(log_p(policy, prompts, better), log_p(policy, prompts, worse), *ref)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2)) and losses == sorted(losses, reverse=True)


# ---- What goes wrong silently

def pairs_of(*lengths): return [Pair([i], [2] * better, [3] * worse) for i, (better, worse) in enumerate(lengths)]


def test_names_pairs_that_length_decides():
    even = pairs_of(*[(10, 30), (30, 10), (20, 20)] * 20)
    assert preference_faults(even) == {}
    assert "shorter" in preference_faults(pairs_of(*[(10, 30), (30, 10), (20, 20)] * 20, *[(5, 9)] * 60))["length decides"]
    assert "longer" in preference_faults(pairs_of(*[(9, 5)] * 20))["length decides"]
    assert preference_faults(pairs_of((5, 9), (5, 9), (5, 9))) == {}   # three coins may fall alike
    assert preference_faults(pairs_of(*[(5, 5)] * 50)) == {}


def test_names_pairs_that_contradict_or_repeat_each_other_or_are_not_there():
    pairs, scores = pairs_of(*[(5, 5)] * 20), torch.zeros(20)
    exchanged = [Pair(pair.prompt, pair.worse, pair.better) for pair in pairs]
    assert preference_faults(pairs[:1] + exchanged[:1])["contradiction"] == "1 of the pairs are there with their answers exchanged, too"
    assert "3 of the pairs" in preference_faults(pairs + exchanged[:3] * 2)["contradiction"]
    assert preference_faults([*pairs, Pair([99], pairs[0].worse, pairs[0].better)]) == {}   # to another prompt
    assert "contradiction" not in preference_faults([Pair([1], [2], [2])] * 2)
    assert preference_faults(pairs[:1] * 30) == {"repeated": "of 30 pairs, only 1 are different"}
    assert preference_faults(pairs + pairs[:1]) == {} and "repeated" in preference_faults(pairs + pairs[:3])
    for none in [], (): assert preference_faults(none) == preference_faults(none, scores, scores) == {"no pairs": "there is nothing to learn from"}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_names_scores_that_are_no_numbers(bad):
    pairs, fine, wrong = pairs_of(*[(10, 10)] * 4), torch.zeros(4), torch.tensor([0., bad, 0., 0.])
    for better, worse in (wrong, fine), (fine, wrong), (wrong, wrong): assert "not finite" in preference_faults(pairs, better, worse)
    assert preference_faults(pairs, fine, fine) == {}


SHAPES_AND_NONE = """
import torch
from llm_course.preferences import Pair, bradley_terry, dpo_loss, preference_faults
from llm_course.rewards import kl_estimate, policy_loss
def refused(function, *shapes, **more):
    try: function(*(torch.zeros(shape) for shape in shapes), **more)
    except ValueError as error: return str(error)
    raise AssertionError((function, shapes))
for better, worse in ((3,), (1,)), ((1,), (3,)), ((3, 1), (3,)), ((3,), ()), ((0,), (0,)):
    assert "better and worse must have one shape and not be empty" in refused(bradley_terry, better, worse)
    for four in (better, worse, worse, worse), (better, better, worse, worse), (better, worse, better, worse), (better, better, better, worse): assert "ref_worse" in refused(dpo_loss, *four), four
    assert "better (" in refused(lambda a, b: preference_faults([Pair([1], [2], [3])], a, b), better, worse)
assert abs(bradley_terry(torch.tensor(1.), torch.tensor(0.)) - .3133) < 1e-4
for logprobs, old, said in ((4, 3), (1, 3), (4, 3)), ((4, 3), (4, 3), (4, 1)), ((4, 3), (4, 3), (3,)), ((0, 3), (0, 3), (0, 3)):
    assert "answer_mask" in refused(kl_estimate, logprobs, old, said)
    assert "answer_mask" in refused(policy_loss, logprobs, old, said, rewards=torch.ones(2, 2))
for groups, g in (1, 1), (1, 3), (2, 4):   # for four answers
    try: policy_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 3).bool(), torch.ones(groups, g), "reinforce")
    except RuntimeError as error: assert "is invalid for input of size" in str(error)
    else: raise AssertionError((groups, g))
"""


def test_numbers_that_do_not_belong_together_are_refused():
    done = apart(["-c", SHAPES_AND_NONE])   # where nothing checks annotations
    assert done.returncode == 0, done.stderr


def test_names_answers_that_are_the_same():
    twice = [*pairs_of(*[(2, 3), (3, 2)] * 8), Pair([1], [2, 3], [2, 3])]
    assert "pair 16" in preference_faults(twice)["no difference"]


def test_names_likelihoods_that_fall_together():
    pairs = pairs_of(*[(10, 10)] * 4)
    fine, fell = torch.tensor([2., -1., 3., 0.]), torch.tensor([-30., -40., -35., -50.])
    assert preference_faults(pairs, fine, fell) == {}
    assert "both fell" in preference_faults(pairs, fell + 5, fell)
    assert preference_faults(pairs, torch.tensor([-.1] * 4), fell) == {}   # hardly


# ---- The referee

@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl: pip install -e .[evaluation-referee]")
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm"])
def test_the_loss_and_its_gradients_are_those_of_trl(loss_type, tmp_path, monkeypatch):
    for name in "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE": monkeypatch.setenv(name, "1")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    reference, tokenizer = load_demo("cpu")
    torch.manual_seed(0)
    policy = deepcopy(reference)
    with torch.no_grad():
        for p in policy.parameters(): p.add_(.05 * p.std() * torch.randn_like(p))
    for name, ours in ("policy", policy), ("reference", reference): export_pretrained(ours, tokenizer, tmp_path/name)
    texts = [("ROMEO:\n", "My lord, I know not what to say to thee.\n\n", "Ay.\n\n"), ("JULIET:\nO Romeo, Romeo!\n\nNURSE:\n", "Peace!\n\n", "Madam, the county stays for you below, and more.\n\n")]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path/"policy"), ref_model=AutoModelForCausalLM.from_pretrained(tmp_path/"reference"),
        processing_class=AutoTokenizer.from_pretrained(tmp_path/"policy"), train_dataset=Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), text)) for text in texts]),
        args=DPOConfig(str(tmp_path/"run"), beta=.7, loss_type=[loss_type], per_device_train_batch_size=2, use_cpu=True, report_to=[], gradient_checkpointing=False, bf16=False, fp16=False,
                       disable_dropout=True))
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    pairs = []   # the batch as they have made it: all that was preferred, then all that was not
    for ids, used, said in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["completion_mask"].tolist()):
        ids = [id for id, counts in zip(ids, used) if counts]
        start = said.index(1)
        pairs.append((ids[:start], ids[start:]))
    prompts, answers = zip(*pairs)
    lengths = torch.tensor([len(answer) for answer in answers]) if loss_type == "sigmoid_norm" else 1
    with torch.no_grad(): ref = log_p(reference, prompts, answers) / lengths
    ours = log_p(policy, prompts, answers) / lengths
    loss = dpo_loss(*ours.chunk(2), *ref.chunk(2), beta=.7)
    loss.backward()
    print(f"\n{loss_type}: ours {loss.item():.7f}, trl's {theirs.item():.7f}")
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5) and abs(loss.item() - math.log(2)) > .01
    wanted = trainer.model.lm_head.weight.grad
    torch.testing.assert_close(policy.head.weight.grad, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
