"Learning from rewards: the exact gradient, what each method expects, sampling, and every collapse by its name."
import itertools
import json
import shutil
import sys
from copy import deepcopy

import pytest
import torch

from bench.experiments.rewards import couplet, is_enough, metre, rhyme, rhyme_alone, rhymes
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import save_model
from llm_course.engine.rollouts import (
    COLLAPSES,
    diagnose_rewards,
    judge,
    load_reward,
    main,
    read_prompts,
    reward_signs,
    sample_groups,
)
from llm_course.optim import AdamW
from llm_course.rewards import (
    METHODS,
    advantages,
    kl_estimate,
    learn_from,
    make_rollout,
    pass_at_k,
    policy_loss,
    sample_answers,
    token_logprobs,
)
from llm_course.transformer import Transformer

END, LONGEST = 2, 3


def tiny(vocab=3, seed=0, spread=.4, **more):
    torch.manual_seed(seed)
    model = Transformer(**dict(vocab_size=vocab, max_seq_len=16, d_model=8, num_layers=1, num_heads=2, d_ff=16) | more)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.normal_(std=spread)
    return model


@pytest.fixture(scope="module")
def world():
    "A model of three ids, all fifteen answers that it can give to a prompt, and a reward for each."
    model = tiny().double()
    answers = [list(a) for n in range(1, LONGEST + 1) for a in itertools.product(range(3), repeat=n)
               if END not in a[:-1] and (a[-1] == END or n == LONGEST)]
    draw = torch.Generator().manual_seed(0)
    rewards = torch.rand(len(answers), generator=draw, dtype=torch.float64).round(decimals=1)
    return model, make_rollout([[0, 1]] * len(answers), answers), rewards


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def exact(world):
    "The gradient of the expected reward, from the sum over all answers; and their probabilities."
    model, (ids, said), rewards = world
    chances = (token_logprobs(model, ids) * said).sum(-1).exp()
    return gradient(model, (chances * rewards).sum()), chances.detach()


def expected(world, method, g=2):
    "What the loss's gradient is on average, over all groups that can be drawn, each as often as it is."
    model, (ids, said), rewards = world
    _, chances = exact(world)
    picks = torch.tensor(list(itertools.product(range(len(ids)), repeat=g)))
    weights = chances[picks].prod(-1)
    logprobs = token_logprobs(model, ids)
    total = 0.
    for weight, pick in zip(weights, picks):
        total = total + weight * policy_loss(logprobs[pick], logprobs[pick].detach(), said[pick], rewards[pick][None], method)
    return -gradient(model, total)


def test_all_answers_are_there(world):
    assert exact(world)[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("method, share", [("reinforce", 1), ("rloo", 1), ("dr_grpo", 1/2)])
def test_the_average_gradient_is_the_exact_one(world, method, share):
    torch.testing.assert_close(expected(world, method), share * exact(world)[0])


def test_grpo_points_elsewhere(world):
    wanted, got = exact(world)[0], expected(world, "grpo")
    assert .2 < torch.cosine_similarity(wanted, got, 0) < .995


def test_grpo_blames_long_wrong_answers_less_and_easy_prompts_more():
    "Liu et al. 2025: the share of one id is 1 / length, and a group's is 1 / standard deviation."
    logprobs = torch.zeros(4, 8, requires_grad=True)
    said = torch.zeros(4, 8, dtype=torch.bool)
    said[0, :2] = said[1, :2] = said[2, :8] = said[3, :2] = True
    def shares(method):
        loss = policy_loss(logprobs, torch.zeros(4, 8), said, torch.tensor([[1., 1., 0., 0.]]), method)
        return torch.autograd.grad(loss, logprobs)[0]
    for method, ratio in ("dr_grpo", 1), ("rloo", 1), ("grpo", 1 / 4):
        grad = shares(method)
        assert float(grad[2, 0] / grad[3, 0]) == pytest.approx(ratio)
        assert (grad[~said] == 0).all()
    hard, easy = torch.tensor([[1.] + [0.] * 15]), torch.tensor([[1., 0.] * 8])
    for method, same in ("dr_grpo", True), ("grpo", False):
        deviation = [advantages(rewards, method).abs().max() / (rewards - rewards.mean()).abs().max() for rewards in (hard, easy)]
        assert (abs(float(deviation[0] - deviation[1])) < 1e-6) is same


def test_rloo_is_the_unbiased_form_times_a_number():
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(advantages(rewards, "rloo"), advantages(rewards, "dr_grpo") * 4 / 3)


@pytest.mark.parametrize("ratio, reward, passes", [(1.1, 1., True), (1.3, 1., False), (.7, 1., True), (.9, -1., True), (.7, -1., False), (1.3, -1., True)])
def test_the_clip_stops_what_has_moved_far_enough(ratio, reward, passes):
    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    loss = policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.tensor([[reward]]), "reinforce", clip=.2)
    [grad] = torch.autograd.grad(loss, logprobs)
    assert float(grad) == pytest.approx(-reward * ratio if passes else 0)


def test_the_distance_is_unbiased_and_pulls_towards_the_start(world):
    model, (ids, said), _ = world
    other = deepcopy(model)
    with torch.no_grad():
        for p in other.parameters(): p.add_(.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    _, chances = exact(world)
    logprobs, start = token_logprobs(model, ids), token_logprobs(other, ids).detach()
    each = torch.stack([kl_estimate(logprobs[i:i + 1], start[i:i + 1], said[i:i + 1]) for i in range(len(ids))])
    wanted = (chances * ((logprobs - start) * said).sum(-1)).sum()
    assert (each >= 0).all() and (chances * each).sum().item() == pytest.approx(wanted.item())
    before = wanted.item()
    step = gradient(model, (chances * each).sum())
    moved, at = deepcopy(model), 0
    with torch.no_grad():
        for p in moved.parameters():
            p -= .01 * step[at:at + p.numel()].view_as(p)
            at += p.numel()
    logprobs = token_logprobs(moved, ids)
    chances = (logprobs * said).sum(-1).exp()
    assert (chances * ((logprobs - start) * said).sum(-1)).sum().item() < before


def test_refuses():
    with pytest.raises(ValueError, match="needs 2 or more, but has 1"): advantages(torch.ones(2, 1), "rloo")
    with pytest.raises(ValueError, match="one of reinforce, rloo, grpo, dr_grpo, but is ppo"): advantages(torch.ones(2, 2), "ppo")
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.4"): pass_at_k(torch.ones(2, 4).bool(), 5)


def test_pass_at_k_counts_all_choices():
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    for k in range(1, 5):
        wanted = [any(row[i] for i in pick) for row in right.tolist() for pick in itertools.combinations(range(4), k)]
        assert pass_at_k(right, k) == pytest.approx(sum(wanted) / len(wanted))


@pytest.mark.parametrize("sample", [sample_answers, sample_groups])
def test_draws_what_the_model_says(world, sample):
    model, rows, _ = world
    said = sample(model, [[0, 1]], 4000, LONGEST, END, torch.Generator().manual_seed(0))
    keys = [tuple(row[2:][mask[1:]].tolist()) for row, mask in zip(rows.ids, rows.answer_mask)]
    assert set(map(tuple, said)) <= set(keys)
    often = torch.tensor([said.count(list(key)) for key in keys]) / len(said)
    chances = exact(world)[1]
    error = (chances * (1 - chances) / len(said)).sqrt()
    assert ((often - chances).abs() < 4 * error + 1e-3).all()


def test_prompts_of_different_lengths_are_read_as_if_alone():
    model = tiny(vocab=9)
    prompts = [[1, 2], [3, 4, 5, 6], [7]]
    said = sample_answers(model, prompts, 2, 5, 8, torch.Generator().manual_seed(0))
    assert len(said) == 6 and all(8 not in answer[:-1] for answer in said)
    rows = make_rollout([p for p in prompts for _ in range(2)], said)
    got = token_logprobs(model, rows.ids)
    for row, (prompt, answer) in enumerate(zip((p for p in prompts for _ in range(2)), said)):
        alone = token_logprobs(model, torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1:]
        torch.testing.assert_close(got[row][rows.answer_mask[row]], alone)


# ---- Learning, and how it goes wrong

VOCAB, STOP, STEPS = 8, 7, 40


def run(reward, steps=STEPS, rate=5e-3, longest=4, updates=1, clip=.2, beta=0., method="dr_grpo", stop=STOP, seed=0):
    "Learn from a reward, which is given the prompt and the answer; the diary."
    model = tiny(VOCAB, seed, .3, d_model=16)
    reference, optimizer = deepcopy(model), AdamW(model.parameters(), lr=rate, betas=(.9, .95), weight_decay=0.)
    dice, history, prompts = torch.Generator().manual_seed(seed), [], [[i] for i in range(6)]
    for step in range(1, steps + 1):
        said = sample_answers(model, prompts, 16, longest, stop, dice)
        rewards = torch.tensor([reward(prompts[i // 16], answer) for i, answer in enumerate(said)]).view(6, 16)
        rows = make_rollout([p for p in prompts for _ in range(16)], said)
        old, start = learn_from(model, optimizer, reference, rows, rewards, method, clip=clip, beta=beta, steps=updates)
        history.append({"iteration": step, **reward_signs(said, rewards, old, start, rows.answer_mask)})
    return history


def next_id(prompt, answer): return float(answer[0] == (prompt[0] + 1) % 6)


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_run_learns_and_is_not_blamed(method):
    history = run(next_id, rate=2e-2, longest=1, stop=None, steps=32, method=method)
    assert history[0]["reward"] < .4 and history[-1]["reward"] > .9
    assert {*diagnose_rewards(history)} <= {"KL running away"}, "it had to move far from a model that knew nothing"


BROKEN = {
    "groups without variance": lambda: run(lambda prompt, answer: 0., steps=6),
    "KL running away": lambda: run(lambda prompt, answer: answer.count(3) / 4, rate=3e-2, steps=24),
    "length drift": lambda: run(lambda prompt, answer: len(answer) / 12, rate=1e-2, longest=12, steps=24),
    "entropy collapse": lambda: run(lambda prompt, answer: .5 * (answer[0] == 3), rate=3e-2, longest=1, stop=None, steps=32),
    "one answer for all": lambda: run(lambda prompt, answer: (answer[:1] == [3]) * .5, rate=3e-2, longest=1, stop=None, steps=24),
    "reward lost": lambda: run(next_id, rate=2e-2, longest=1, stop=None, steps=20) + run(lambda prompt, answer: 0., steps=6),
}


@pytest.mark.parametrize("fault", COLLAPSES)
def test_each_collapse_has_a_name(fault):
    found = diagnose_rewards(BROKEN[fault]())
    assert fault in found, found


@pytest.mark.parametrize("prompts", [1, 2])
def test_equal_answers_to_a_single_prompt_are_no_sign(prompts):
    answers, said = [[3, 7]] * 4 * prompts, torch.ones(4 * prompts, 2, dtype=torch.bool)
    logprobs = torch.full((4 * prompts, 2), -.1)
    line = reward_signs(answers, torch.full((prompts, 4), .5), logprobs, logprobs, said)
    assert line["same_answer"] == (prompts > 1)
    assert ("one answer for all" in diagnose_rewards([line] * 5)) == (prompts > 1)


def test_a_short_diary_says_nothing():
    assert diagnose_rewards([]) == {} == diagnose_rewards([{"reward": 0., "flat_groups": 1., "length": 3.}] * 4)


# ---- In groups, and the command

@pytest.mark.parametrize("prompts", [[[1, 2], [3, 4]], [[1, 2], [3, 4, 5, 6], [6]]], ids=["even", "padded"])
def test_groups_are_drawn_as_single_rows(prompts):
    model = tiny(VOCAB)
    dice = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert sample_groups(model, prompts, 3, 6, None, dice[0]) == sample_answers(model, prompts, 3, 6, None, dice[1])


def test_rows_that_leave_do_not_change_the_others():
    "A model that is nearly sure of what comes next says the same, whoever sits beside it."
    model = tiny(VOCAB, 11, spread=1.)
    with torch.no_grad(): model.head.weight *= 50
    prompts = [[i, j] for i in range(7) for j in range(7)]
    said = sample_groups(model, prompts, 2, 8, STOP, torch.Generator().manual_seed(0))
    lengths = {len(answer) for answer in said}
    assert len(lengths) > 5, "rows must leave at different times"
    assert all(STOP not in answer[:-1] and (answer[-1] == STOP or len(answer) == 8) for answer in said)
    rows = make_rollout([p for p in prompts for _ in range(2)], said)
    logprobs = token_logprobs(model, rows.ids)[rows.answer_mask]
    assert logprobs.mean() > -.1 and logprobs.min() > -9, "each id is one that its own row makes likely"


def test_groups_refuse_what_the_model_cannot_read():
    with pytest.raises(ValueError, match="a prompt of 10 tokens and an answer of 9 are more than the 16"): sample_groups(tiny(), [[0] * 10], 2, 9)


def vowels(record, text): return record["weight"] * sum(letter in "aeiou" for letter in text) / 8


def half(record, text): return .5
def too_much(record, text): return 1.5


@pytest.fixture
def folder(tmp_path):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])
    tokenizer.save(tmp_path/"tokenizer.json")
    save_model(tiny(257, max_seq_len=32), tmp_path/"model.safetensors")
    (tmp_path/"prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt, "weight": 1}) + "\n" for prompt in ("ab", "c", "def")), "utf-8", newline="\n")
    return tmp_path


def command(folder, name, *more, reward="vowels", steps=4):
    main(["--prompts", str(folder/"prompts.jsonl"), "--reward", f"{__name__}:{reward}", "--init_from", str(folder/"model.safetensors"), "--output", str(folder/name),
          "--iterations", str(steps), "--batch_size", "2", "--group", "3", "--max_tokens", "8", "--device", "cpu", "--checkpoint_interval", "2", "--lr_max", "1e-3", "--lr_min", "1e-3", *more])


def test_a_run_that_was_stopped_is_the_run_that_was_not(folder, capsys):
    command(folder, "whole")
    said = capsys.readouterr().out
    assert "mean reward" in said and "samples.jsonl" in said
    command(folder, "parts", steps=2)
    with open(folder/"parts"/"samples.jsonl", "a", encoding="utf-8", newline="\n") as file: file.write('{"iteration": 3, "answer": "of a step after the checkpoint"}\n')
    command(folder, "parts", "--resume")
    for name in "metrics.jsonl", "samples.jsonl", "export/model.safetensors":
        assert (folder/"whole"/name).read_bytes() == (folder/"parts"/name).read_bytes(), name
    samples = [json.loads(line) for line in (folder/"whole"/"samples.jsonl").read_text("utf-8").splitlines()]
    assert len(samples) == 4 * 3 and {*samples[0]} == {"iteration", "prompt", "answer", "reward"}
    assert all(sample["reward"] == vowels({"weight": 1}, sample["answer"]) for sample in samples)


def test_another_batch_size_on_resume_needs_override_and_so_do_other_prompts(folder, capsys):
    command(folder, "run", steps=2)
    (folder/"prompts.jsonl").write_text('{"prompt": "ab", "weight": 1}\n', "utf-8", newline="\n")
    with pytest.raises(SystemExit): command(folder, "run", "--resume")
    assert "the number of prompts in" in (told := capsys.readouterr().err) and "was 3 when" in told and "let it change with --override" in told
    command(folder, "run", "--resume", "--override", "--batch_size", "1", steps=3)
    assert capsys.readouterr().err.count("from now on") == 2
    assert not json.loads((folder/"run"/"config.json").read_text("utf-8")).keys() & {"resume", "override"}


@pytest.mark.parametrize("flag, was, now", [("method", "dr_grpo", "grpo"), ("group", "3", "4"), ("max_tokens", "8", "4"), ("stop", "None", "a"), ("updates", "1", "2"), ("clip", "0.2", "0.1"), ("beta", "0.01", "0.5"),
                                           ("reward", f"{__name__}:vowels", f"{__name__}:half"), ("prompts", "FOLDER/prompts.jsonl", "FOLDER/others.jsonl")])
def test_a_flag_that_changes_on_resume_is_told(folder, flag, was, now, capsys):
    shutil.copy(folder/"prompts.jsonl", folder/"others.jsonl")
    command(folder, "run", steps=1)
    capsys.readouterr()
    was, now = (text.replace("FOLDER", str(folder)) for text in (was, now))
    command(folder, "run", "--resume", f"--{flag}", now, steps=2)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: --{flag} was {was}, and is {now} from now on"]


def test_the_first_model_cannot_change_on_resume(folder, capsys):
    "What a nat of distance costs is counted from it."
    shutil.copy(folder/"model.safetensors", folder/"other.safetensors")
    command(folder, "run", steps=1)
    for flags, message in (["--init_from", str(folder/"other.safetensors")], f"--init_from was {folder/'model.safetensors'} when the run in {folder/'run'} began"), (["--seed", "4"], "use 0, name another folder, or let it change with --override\n"):
        with pytest.raises(SystemExit): command(folder, "run", "--resume", *flags, steps=2)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("code, told", [("def (:", "SyntaxError: invalid syntax (broken_rules.py, line 1)"), ("x = 3\n1/0", "ZeroDivisionError in FOLDER/broken_rules.py, line 2: division by zero"),
                                        ("def rule(record, text):\n    return record['answer']", "the reward failed for the answer ")])
def test_what_a_reward_does_wrong_is_told_with_its_place(folder, code, told, monkeypatch, capsys):
    (folder/"broken_rules.py").write_text(code, "utf-8", newline="\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "broken_rules", raising=False)
    with pytest.raises(SystemExit): command(folder, "run", "--reward", "broken_rules:rule")
    error, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told.replace("FOLDER", str(folder)) in error
    if "failed" in told: assert error.endswith(f"KeyError in {folder/'broken_rules.py'}, line 2: 'answer'")


@pytest.mark.parametrize("more, message", [
    (("--method", "ppo"), "--method ppo is not one of reinforce, rloo, grpo, dr_grpo"), (("--group", "1"), "--group must be at least 2, but is 1"),
    (("--clip", "-1"), "--clip must be 0 or more"), (("--stop", "ab"), "--stop 'ab' must be one token, but is 2"), (("--reward", "nothing"), "reward must be module:function"),
    (("--reward", "nothing:at_all"), "No module named 'nothing'"), (("--reward", f"{__name__}:too_much"), "a reward must be a number from 0 to 1"),
    (("--max_tokens", "31"), "are more than the 32 that the model reads"), (("--updates", "0"), "--updates must be at least 1")], ids=lambda value: value[0][2:] if isinstance(value, tuple) else "")
def test_the_command_refuses(folder, capsys, more, message):
    with pytest.raises(SystemExit): command(folder, "run", *more)
    assert message in capsys.readouterr().err


def test_a_reward_may_stand_in_this_folder(folder, monkeypatch):
    (folder/"rules_of_this_folder.py").write_text("def score(record, text): return .25", "utf-8", newline="\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(folder)
    assert load_reward("rules_of_this_folder:score")({}, "") == .25


def test_prompts_and_rewards_are_checked(folder):
    (folder/"bad.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\n', "utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: it must be an object with a prompt"): read_prompts(folder/"bad.jsonl")
    with pytest.raises(ValueError, match="is not a function"): load_reward(f"{__name__}:END")
    for bad in (None, float("nan"), "much", -.1):
        with pytest.raises(ValueError, match="a number from 0 to 1"): judge(lambda record, text, bad=bad: bad, {}, "text")
    assert judge(lambda record, text: True, {}, "text") == 1
    with pytest.raises(ValueError, match="a number from 0 to 1"): judge(lambda record, text: 10**400, {}, "text")
    record = {"prompt": "a", "list": [1]}
    assert judge(lambda record, text: len(record.pop("prompt")) * record["list"].pop(), record, "text") == 1 and record == {"prompt": "a", "list": [1]}


# ---- The rules of the experiment

@pytest.mark.parametrize("one, other, found", [
    ("for my name,\n", "of his fame.\n", 1), ("day\n", "to say!\n", 1), ("the love\n", "remove\n", 1), ("to come\n", "a name\n", .25), ("the cold\n", "cold,\n", 0), ("to me\n", "to you\n", 0), ("\n", "--\n", 0)])
def test_what_rhymes(one, other, found): assert rhyme(one, other) == rhyme(other, one) == found


def test_a_couplet_is_two_whole_lines_of_ten_syllables_that_rhyme():
    first, second = "Shall I compare thee to a summer's day\n", "And think of all the things that we can say\n"
    assert metre(first) == metre(second) == 1 and metre(first[:-1]) == 0
    assert couplet(first + second) == 1 and couplet(first + second[:-1]) == pytest.approx(.25, abs=1e-3)
    assert couplet(first + first) == couplet(first + second.replace("say", "see")) == .5
    assert rhyme_alone("a day\nto say\n") == 1 and rhyme_alone("a day\nto say") == 0


def test_the_next_rule_takes_over_after_five_good_steps():
    def steps(*rewards, rule="rhyme_alone"): return [{"reward": reward, "rule": rule} for reward in rewards]
    assert is_enough(steps(.1, .6, .8, .7, .7, .7)) and not is_enough(steps(.6, .8, .7, .7, .6)) and not is_enough(steps(.8, .8, .8, .8))
    assert not is_enough(steps(.9, .9, .9) + steps(.9, .9, .9, .9, rule="couplet"))


def test_rhymes_and_metre_are_counted_together():
    whole, rhyme_only, none = "Shall I compare thee to a summer's day\nAnd think of all the things that we can say\n", "a day\nto say\n", "a day"
    found = rhymes([whole, rhyme_only] * 32 + [whole, none] * 32)   # 8 of each of 16 speakers
    assert (found["rhyme@1"], found["both@1"]) == (.75, .5) and found["rhymes"] == 1
    assert found["rhyme@8"] == found["both@8"] == found["commonest_rhyme"] == 1
