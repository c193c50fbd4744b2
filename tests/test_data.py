"""The contract between prompt and answer: what is read as a number, and what the loader refuses."""

from decimal import Decimal

import pytest
from conftest import needs_gsm8k, read_rows, write_jsonl
from transformers import AutoTokenizer

import rewards
from r1zero import answers
from r1zero import data as gsm8k
from r1zero.model import end_completions
from r1zero.recipe import RequestError

READ = {
    "42": 42,
    " 42\n": 42,
    "1,234": 1234,
    "12,345,678": 12345678,
    "$1,234.": 1234,
    "1,234.00": 1234,
    "$ 18": 18,
    "\\$18": 18,
    "€18": 18,
    "18 USD": 18,
    "$.50": "0.5",
    "42.": 42,
    "42.50": "42.5",
    "42%": 42,
    "42 %": 42,
    "42\\%": 42,
    "42 apples": 42,
    "42 km/h": 42,
    "$5/hour": 5,
    "42 m^2": 42,
    "42 ft²": 42,
    "The answer is 42.": 42,
    "Answer: 42": 42,
    "#### 42": 42,
    "**42**": 42,
    "**$1,234**": 1234,
    "`42`": 42,
    "\\boxed{42}": 42,
    "$\\boxed{1{,}234}$": 1234,
    "\\(\\boxed{42\\text{ apples}}\\)": 42,
    "1\\,234": 1234,
    "-7": -7,
    "\u22127": -7,
    "\u20137": -7,
    "- 7": -7,
    "-$7": -7,
    "$-7": -7,
    "minus 7": -7,
    "+7": 7,
    "40 + 2 = 42": 42,
    "x = -7": -7,
    "6*7 = <<6*7=42>>42": 42,
    "=> 42": 42,
    "42 (42.00)": 42,
    "0042": 42,
}

NO_ANSWER = [
    "",
    " \n ",
    "no idea",
    "forty-two",
    "42 or 43",
    "3 apples and 4 pears",
    "40 + 2",
    "5 + 5",
    "5 apples + 5 apples",
    "6 * 7 =",
    "6 * 6",
    "6 x 6",
    "42 +",
    "42 = 40 + 2",
    "84/2",
    "5-7",
    "5\u20137",
    "--7",
    "apples-7",
    "2**3",
    "10^3",
    "1e3",
    "1e1",
    "3:30",
    "3 million",
    "42 and a half",
    "x > 42",
    "\\frac{1}{2}",
    "\\sqrt{16}",
    "1,23",
    "1,2345",
    "0,042",
    "1.2.3",
    "1 234",
    "4\n2",
    "½",
    "2½",
    "٤٢",
    "5²",
    "42" + " and so on" * 200,
]


@pytest.mark.parametrize(("text", "number"), READ.items())
def test_reads_exactly_one_number(text, number):
    assert answers.read_number(text) == Decimal(number)


@pytest.mark.parametrize("text", NO_ANSWER)
def test_anything_else_is_no_answer(text):
    assert answers.read_number(text) is None


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("<think>40+2</think><answer>42</answer>", 42),
        ("<think>\n40 + 2\n</think>\n\n<answer>\n42\n</answer>\n", 42),
        ("<answer>42</answer>", 42),
        ("<answer>42</answer> There are 3 apples", 42),
        ("<think>first <answer>41</answer>, no</think><answer>42</answer>", 42),
        ("<think>\\boxed{41}, no: \\boxed{42}</think><answer>42</answer>", 42),
        ("maybe 42 … I give up", None),
        ("<think>42</think>", None),
        ("<answer>41</answer><answer>42</answer>", None),
        ("<answer>42", None),
        ("</answer>42<answer>", None),
        ("<think>it is <answer>42</answer>", None),
        ("<answer>\\boxed{41} \\boxed{42}</answer>", None),
        ("<answer></answer>", None),
    ],
)
def test_the_answer_is_the_one_block_after_the_reasoning(completion, number):
    assert answers.read_answer(completion) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("solution", "gold"), [("6*7=42\n#### 42", 42), ("#### 1,234", 1234), ("#### -7", -7), ("a #### 1\n#### 2", 2)]
)
def test_gold_is_the_number_after_the_mark(solution, gold):
    assert answers.read_reference(solution) == gold


@pytest.mark.parametrize("solution", ["42", "#### ", "#### many", ""])
def test_a_gold_without_mark_or_number_is_none(solution):
    assert answers.read_reference(solution) is None


# Prompts and end tokens ----------------------------------------------------------------------------------


def test_prompt_styles():
    chat = gsm8k.to_prompt("How many?", "chat")
    assert [message["role"] for message in chat] == ["system", "user"]
    assert "<think>" in chat[0]["content"] and chat[1]["content"] == "How many?"
    plain = gsm8k.to_prompt("How many?", "r1_zero")
    assert plain.endswith("User: How many?\nAssistant:") and plain.startswith(chat[0]["content"])
    assert gsm8k.to_prompt("How many?", "question") == [{"role": "user", "content": "How many?"}]
    with pytest.raises(ValueError, match="chat, r1_zero, question"):
        gsm8k.to_prompt("How many?", "poem")


@pytest.mark.parametrize("pad", ["<|fim_pad|>", "<|endoftext|>", "<|im_end|>"])
def test_a_base_model_can_stop_and_padding_hides_no_end(model, pad):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = pad
    ends = end_completions(tokenizer, "chat")
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|im_end|>"]
    assert tokenizer.pad_token_id not in ends
    assert end_completions(tokenizer, "r1_zero") == [tokenizer.eos_token_id]


def test_an_end_token_that_only_the_generation_config_declares_does_not_pad(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"  # as Qwen2.5-Instruct has them
    declared = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert end_completions(tokenizer, "chat", declared) == declared
    assert tokenizer.pad_token == "<|fim_pad|>"


# Loading -------------------------------------------------------------------------------------------------

ROW = {"question": "What is 6 times 7?", "answer": "6*7=<<6*7=42>>42\n#### 42"}


def test_loads_jsonl_and_parquet_alike(tmp_path):
    import datasets

    write_jsonl(tmp_path / "a" / "train.jsonl", [ROW, {**ROW, "source": "mine"}])
    (tmp_path / "b").mkdir()
    datasets.Dataset.from_list([ROW, ROW]).to_parquet(tmp_path / "b" / "train.parquet")
    (tmp_path / "c").mkdir()
    for part in (0, 1):  # as in a copy of the hub's repository
        datasets.Dataset.from_list([ROW]).to_parquet(tmp_path / "c" / f"train-0000{part}-of-00002.parquet")
    for folder in "abc":
        assert gsm8k.load(str(tmp_path / folder)).to_list() == [ROW, ROW]


def test_validation_rows_are_held_out_and_always_the_same(data):
    train, held_out = gsm8k.to_training_set(gsm8k.load(str(data)), "question", 10)
    again = gsm8k.to_training_set(gsm8k.load(str(data)), "question", 10)[1]
    assert (len(train), len(held_out)) == (54, 10)
    assert held_out.to_list() == again.to_list()
    asked = [row["prompt"][0]["content"] for part in (train, held_out) for row in part]
    assert sorted(asked) == sorted(gsm8k.load(str(data))["question"])
    assert gsm8k.to_training_set(gsm8k.load(str(data)), "question")[1] is None


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"prompt": "q", "answer": "#### 1"}], "no column 'question'"),
        ([{"question": "q", "solution": "#### 1"}], "no column 'answer'"),
        ([ROW, {**ROW, "answer": "forty-two"}], r"train\.jsonl, row 2: the reference answer cannot be read"),
        ([ROW, ROW, {**ROW, "question": " "}], r"train\.jsonl, row 3: `question` is not a text"),
        ([ROW, {**ROW, "answer": None}], "row 2"),
    ],
)
def test_a_bad_dataset_is_named_with_file_and_row(tmp_path, rows, complaint):
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(RequestError, match=complaint):
        gsm8k.load(str(tmp_path))


def test_a_folder_without_the_split_and_a_broken_file_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RequestError, match=r"no train\.jsonl.*notes\.txt"):
        gsm8k.load(str(tmp_path))
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": \n')
    with pytest.raises(RequestError, match="cannot be read as json"):
        gsm8k.load(str(tmp_path))
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(RequestError, match="is empty"):
        gsm8k.load(str(tmp_path))


# The real thing ------------------------------------------------------------------------------------------


@needs_gsm8k
def test_every_real_gold_is_read_and_told_from_its_neighbour():
    rows = read_rows("train") + read_rows("test")
    assert len(rows) == 7473 + 1319
    solutions = [row["answer"] for row in rows]
    golds = [answers.read_reference(solution) for solution in solutions]
    assert all(gold == int(gold) for gold in golds)
    for shift, reward in ((0, 1.0), (1, 0.0)):
        completions = [f"<think>so</think>\n<answer>{gold + shift}</answer>" for gold in golds]
        assert rewards.accuracy(completions, solution=solutions) == [reward] * len(rows)
    with_commas = [f"<think>so</think>\n<answer>${gold:,}.00</answer>" for gold in golds]
    assert rewards.accuracy(with_commas, solution=solutions) == [1.0] * len(rows)
