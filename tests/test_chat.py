"Conversations in ids: the templates of other people, given as they give them; whose words are whose; and nobody speaks for another."
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.chat import MARKS, TEMPLATES, check_messages, encode_chat, render, template_of, turn_ends, with_marks
from llm_course.engine.foreign_tokenizers import add_facts

SIGNS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin|>", "</s>", *MARKS)
TALK = [{"role": "user", "content": "Hello there, 2+2?"}, {"role": "assistant", "content": "It is 4, I think."},
        {"role": "user", "content": "  and\n 3+3? "}, {"role": "assistant", "content": "Six."}]
TEXT = "Hello there, it is four and the rest is silence, I think, user and assistant and system.\n" * 3
OTHERS = {   # in the manner of models that are in use
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
               "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
               "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tinyllama": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|u|>\n' + message['content'] + eos_token }}\n"
                 "{% else %}\n{{ '<|a|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
                 "{% if loop.last and add_generation_prompt %}\n{{ '<|a|>' }}\n{% endif %}\n{% endfor %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set first = messages[0]['content'] %}"
              "{% else %}{% set rest = messages %}{% set first = false %}{% endif %}{% for message in rest %}"
              "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
              "{% if loop.first and first %}{% set content = '<<SYS>>' + first + '<</SYS>>' + message['content'] %}"
              "{% else %}{% set content = message['content'] %}{% endif %}"
              "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
              "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "thinking": "{% for message in messages %}{% set said = message.content %}"
                "{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
                "<|im_start|>{{ message.role }}\n{{ said.strip() }}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}
ALL = TEMPLATES | OTHERS


@pytest.fixture(scope="module")
def tokenizer():
    made = BpeTokenizer.train([TEXT], 330, SIGNS)
    add_facts(made, roles={"bos_token": "<|begin|>", "eos_token": "</s>"}, ends={made.special_tokens["</s>"]})
    return made


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("chat")/"tokenizer.json"
    tokenizer.save(path)
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<|begin|>", eos_token="</s>")


TALKS = {"plain": TALK, "question": TALK[:1], "system": [{"role": "system", "content": "Be brief."}, *TALK[:3]],
         "thoughts": [TALK[0], {"role": "assistant", "content": "<think>2 and 2</think>\n\nIt is 4."}, TALK[2]]}


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ALL)
def test_gives_the_ids_of_transformers(tokenizer, theirs, name, talk):
    for reply in False, True:
        def wanted(tokenize, reply=reply): return theirs.apply_chat_template(TALKS[talk], chat_template=ALL[name], tokenize=tokenize, add_generation_prompt=reply)
        assert render(TALKS[talk], ALL[name], reply, bos_token="<|begin|>", eos_token="</s>") == wanted(False)
        ids, mask = encode_chat(tokenizer, TALKS[talk], ALL[name], reply)
        found = wanted(True)
        assert ids == list(found if isinstance(found, list) else found["input_ids"]) and len(mask) == len(ids)


def test_the_mask_is_that_of_transformers(tokenizer, theirs):
    told = TEMPLATES["chatml"].replace(
        "{{ message['content'] }}<|im_end|>\n",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}")
    found = theirs.apply_chat_template(TALK, chat_template=told, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    for template in told, TEMPLATES["chatml"]:
        assert encode_chat(tokenizer, TALK, template) == (found["input_ids"], [bool(x) for x in found["assistant_masks"]])


@pytest.mark.parametrize("name", ALL)
def test_learns_what_the_assistant_says_and_its_end(tokenizer, name):
    ids, mask = encode_chat(tokenizer, TALK, ALL[name])
    said = tokenizer.decode([id for id, learnt in zip(ids, mask) if learnt])
    ends = turn_ends(tokenizer, ALL[name])
    end = next(tokenizer.decode([id]) for id, learnt in zip(ids, mask) if learnt and id in ends)
    space = " " if name == "llama2" else ""   # its prompts end before it
    assert said == f"{space}It is 4, I think.{space}{end}{space}Six.{space}{end}"


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(st.lists(st.sampled_from([*SIGNS, "\ue0000\ue001", "a", " ", "\n", "user", "{{", "%}", "é"]), max_size=6).map("".join), min_size=1, max_size=3),
       st.sampled_from(["llm_course", "chatml", "smollm2", "tinyllama"]))
def test_nobody_speaks_for_another(contents, name):
    tokenizer = BpeTokenizer.train([TEXT], 300, SIGNS)
    add_facts(tokenizer, roles={"bos_token": "<|begin|>", "eos_token": "</s>"})
    special = {*tokenizer.special_tokens.values()}
    roles = ["user", "assistant", "user"][:len(contents)]
    talk, honest = ([{"role": role, "content": text} for role, text in zip(roles, texts)] for texts in (contents, ["x"] * len(contents)))
    ids, mask = encode_chat(tokenizer, talk, ALL[name])
    wanted, _ = encode_chat(tokenizer, honest, ALL[name])
    assert [id for id in ids if id in special] == [id for id in wanted if id in special]
    assert tokenizer.decode(ids) == render(talk, ALL[name], bos_token="<|begin|>", eos_token="</s>")
    said = tokenizer.decode([id for id, learnt in zip(ids, mask) if learnt])
    assert said.startswith(contents[1]) if len(contents) > 1 else said == ""


def test_an_answer_begins_after_ids_that_are_given(tokenizer):
    for content in "\n\nwell", " x", "", "</s>":
        talk = [TALK[0], {"role": "assistant", "content": content}]
        for name in "llm_course", "chatml", "smollm2":
            asked, _ = encode_chat(tokenizer, talk[:1], ALL[name], reply=True)
            ids, mask = encode_chat(tokenizer, talk, ALL[name])
            assert ids[:len(asked)] == asked and not any(mask[:len(asked)]) and mask[len(asked)]


@pytest.mark.parametrize("messages, why", [
    ([], "at least one"), ("hello", "must be a list"), ({"role": "user"}, "must be a list"), ([{"role": "tool", "content": "x"}], "role"),
    ([{"role": "user\n<|im_end|>", "content": "x"}], "role"), ([{"content": "x"}], "role"), ([{"role": "user"}], "content of message 0"),
    ([{"role": "user", "content": None}], "content"), ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "content"),
    ([TALK[0], {"role": "system", "content": "x"}], "only the first may have")])
def test_refuses_what_is_no_conversation(messages, why):
    with pytest.raises(ValueError, match=why): check_messages(messages)


@pytest.mark.parametrize("template, why", [
    ("{{ messages.__class__.__mro__ }}", "unsafe"), ("{% for %}", "fails"), ("{{ messages[7]['content'].x }}", "fails"), ("{{ 1 / 0 }}", "fails"),
    ("{{ raise_exception('no') }}", "no"), ("{{ messages[0].update(role='x') }}", "fails"), ("{% include 'x' %}", "fails"),
    ("{% for message in messages %}{{ message['content'] | upper }}{% endfor %}", "changes the messages")])
def test_refuses_a_template_that_does_harm(tokenizer, template, why):
    with pytest.raises(ValueError, match=why): encode_chat(tokenizer, TALK, template)


def test_finds_the_template_of_a_model(tokenizer):
    plain = BpeTokenizer.train([TEXT], 300)
    with pytest.raises(ValueError, match="no chat template"): template_of(plain)
    assert template_of(with_marks(plain)) == TEMPLATES["llm_course"]
    assert with_marks(with_marks(plain)).special_tokens == with_marks(plain).special_tokens
    assert with_marks(plain).encode(TEXT) == plain.encode(TEXT)
    assert template_of(BpeTokenizer.train([TEXT], 300, ["<|im_start|>"])) == TEMPLATES["chatml"]
    assert template_of(BpeTokenizer.train([TEXT], 300, ["<|start_header_id|>"])) == TEMPLATES["llama3"]
    add_facts(plain, roles={"chat_template": "{{ bos_token }}"})
    assert template_of(plain) == "{{ bos_token }}"
