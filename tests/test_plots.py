"""Figures: they draw what the run's files say, on hand-made runs, and they can be read."""

import itertools
import json
import warnings

import numpy
import pandas
import pytest
from conftest import logs
from matplotlib import image, pyplot
from matplotlib.font_manager import findfont, get_font

import plots
import rewards
import rl_grpo
from r1zero import intervals
from r1zero import runs as stats

WRONG = "<think>2+2=5.</think>\n<answer>5</answer>"
RIGHT = "<think>2+2=4. Wait, let me check. It's 4.</think>\n<answer>4</answer>"
PLAIN = "<think>It's 4.</think>\n<answer>4</answer>"


def table(step: int, completions: list[str], prompts: list[str] | None = None) -> pandas.DataFrame:
    """A step's completions as TRL writes them; all of one prompt unless prompts are given."""
    prompts = prompts or ["What is 2 + 2?"] * len(completions)
    return pandas.DataFrame(
        {
            "step": step,
            "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts],
            "completion": [[{"role": "assistant", "content": completion}] for completion in completions],
            "accuracy": [float("<answer>4<" in completion) for completion in completions],
            "format": 1.0,
            "gold_answer": "4",
        }
    )


def make_run(folder, tables: list[pandas.DataFrame], validation=(), rewards=(0.5, 1.0)):
    """A run's directory with one row of metrics per table."""
    for name, some in (("completions", tables), ("validation", validation)):
        (folder / name).mkdir(parents=True)
        for one in some:
            one.to_parquet(folder / name / f"{name}_{one['step'][0]:05d}.parquet")
    history = [
        {
            "step": int(one["step"][0]), "reward": sum(rewards) + number, "rewards/accuracy/mean": rewards[0],
            "rewards/format/mean": rewards[1], "completions/mean_length": 20.0, "entropy": 0.5,
            "frac_reward_zero_std": 0.0,
        }
        for number, one in enumerate(tables)
    ]  # fmt: skip
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 1, "eval_reward": 1.0}]}))
    return folder


@pytest.fixture
def run(tmp_path):
    """Forty steps: a quarter of the completions reflect in the first half, all but one in eight in the second."""
    early, late = [RIGHT, RIGHT, WRONG, WRONG, WRONG, WRONG, PLAIN, WRONG], [*[RIGHT] * 7, WRONG]
    prompts = ["What is 2 + 2?"] * 4 + ["What is 1 + 3?"] * 4
    tables = [table(step, early if step <= 20 else late, prompts) for step in range(1, 41)]
    validation = [
        table(step, [first, WRONG if step < 40 else RIGHT], ["What is 3 + 1?", "What is 4 + 0?"])
        for step, first in ((0, PLAIN), (10, WRONG), (22, PLAIN), (40, PLAIN))
    ]
    return make_run(tmp_path / "run", tables, validation)


def read(folder) -> stats.Run:
    return stats.read_run(folder, folder.name, rewards.PHRASES, rewards.REWARDS, plots.say)


# Data ------------------------------------------------------------------------------------------------------


def test_the_share_that_reflects_and_its_first_step_over_a_tenth(tmp_path):
    one_in = {1: 20, 2: 10, 3: 9}  # 5 %, exactly 10 %, more than 10 %
    run = make_run(tmp_path / "run", [table(step, [RIGHT, *[WRONG] * (of - 1)]) for step, of in one_in.items()])
    assert stats.share_that_reflects(read(run)).to_dict() == {1: 1 / 20, 2: 1 / 10, 3: 1 / 9}
    assert stats.first_aha(read(run)) == 3
    assert stats.first_aha(read(make_run(tmp_path / "none", [table(1, [WRONG])]))) is None


def test_smoothing_is_the_mean_of_the_steps_around():
    axis = pyplot.figure().add_subplot()
    thick = plots.draw_curve(axis, pandas.Series([0.0] * 34 + [1.0] * 36), 0, "run")
    assert thick.get_label() == "run; thick: mean of 5 steps"
    assert thick.get_ydata()[31:37].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    begun = plots.draw_curve(axis, pandas.Series([1.0, 3.0]), 0, "run")  # a run that has just begun
    assert begun.get_ydata().tolist() == [1, 3] and begun.get_label() == "run"


def test_ngrams_are_of_the_reasoning_and_stop_at_numbers():
    texts = [RIGHT, "<think>Wait\nWAIT, let me</think><answer>let me check</answer>", "no tags at all: wait"]
    assert stats.count_ngrams(texts, 1) == {
        "wait": 4, "let": 2, "me": 2, "check": 1, "it's": 1, "no": 1, "tags": 1, "at": 1, "all": 1,
    }  # fmt: skip
    assert stats.count_ngrams(texts, 3)["let me check"] == 1
    assert stats.count_ngrams(["<think>let 2 me</think>"], 2) == {}


def test_ngram_rates_are_occurrences_per_completion_at_both_ends(run):
    rates = stats.ngram_rates(read(run), 3, rewards.REFLECTION_PHRASES)
    assert stats.edges(read(run)) == ([1, 2, 3, 4], [37, 38, 39, 40])
    assert rates.loc["let me check"].to_dict() == {"first": 0.25, "last": 0.875}
    assert list(rates.columns) == ["first", "last"] and len(rates) <= stats.MOST_NGRAMS + 3
    assert stats.ngram_rates(read(run), 1, rewards.REFLECTION_PHRASES).loc["it's", "first"] == 0.375


def test_accuracy_with_and_without_reflection_and_within_a_prompt(run):
    rows = stats.does_it_help(read(run))
    assert rows["step"].tolist() == [2.5 + 4 * number for number in range(10)]
    early, late = rows.iloc[0], rows.iloc[-1]
    assert (early["with"], early["without"]) == (1, 1 / 6)
    # Two prompts a step, the first of which has both kinds: right with, wrong without.
    assert (early["gain"], early["gain_low"], early["gain_high"]) == (1, 1, 1)
    assert (late["with"], late["without"], late["gain"]) == (1, 0, 1)
    right, of = [0, 1] * 4, [2, 4] * 4
    assert (early["without_low"], early["without_high"]) == intervals.of_share_in_groups(right, of)


def test_a_reflection_that_does_not_help_is_seen_not_to_help(tmp_path):
    hacked = WRONG.replace("</think>", " Wait, perhaps.</think>")
    run = make_run(tmp_path / "run", [table(step, [hacked, PLAIN, PLAIN, WRONG]) for step in range(1, 4)])
    row = stats.does_it_help(read(run)).iloc[0]
    assert row["with"] == 0 and row["without"] == 2 / 3
    assert stats.does_it_help(read(run))["gain"].isna().all()  # one group per stretch: no interval, so it is not shown


def test_the_case_is_one_prompt_that_was_solved_and_says_of_how_many(run):
    how, rows = stats.pick_case(read(run))
    assert (
        how
        == "the first of 1 held-out problems that were wrong at first and right at the end, with a reflection (of 2)"
    )
    assert rows["prompt"].tolist() == ["What is 4 + 0?"] * 3
    assert rows["step"].tolist() == [0, 22, 40]
    assert rows["completion"].tolist() == [WRONG, WRONG, RIGHT]


def test_the_case_without_a_validation_is_a_prompt_that_came_up_again(tmp_path):
    run = make_run(tmp_path / "run", [table(1, [WRONG], ["a"]), table(2, [WRONG], ["b"]), table(3, [RIGHT], ["a"])])
    how, rows = stats.pick_case(read(run))
    assert "training problem" in how and rows["step"].tolist() == [1, 3] and set(rows["prompt"]) == {"a"}
    assert stats.pick_case(read(make_run(tmp_path / "once", [table(1, [WRONG])]))) is None


# Figures ---------------------------------------------------------------------------------------------------


def shown_texts(figure):
    """Titles, labels, legends and those tick labels that are in view, with where they are on the page."""
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [axis.label, *(tick.label1 for tick in ticks if tick.label1.get_visible())]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_text_overlaps_another_or_leaves_the_figure(run, tmp_path, count):
    others = [
        make_run(tmp_path / f"a-longer-name-{n}", [table(s, [RIGHT, WRONG, PLAIN]) for s in range(1, 8)])
        for n in (1, 2)
    ]
    runs = [read(folder) for folder in [run, *others][:count]]
    with pyplot.rc_context(plots.STYLE):
        for draw in (plots.draw_reward, plots.draw_words, plots.draw_aha):
            figure = draw(runs)
            texts = shown_texts(figure)
            for (one, here), (other, there) in itertools.combinations(texts, 2):
                overlap = here.x0 < there.x1 and there.x0 < here.x1 and here.y0 < there.y1 and there.y0 < here.y1
                assert not overlap, (draw.__name__, one, other)
            for text, place in texts:
                assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1, (draw.__name__, text)
            for axes in figure.axes:
                assert axes.get_title() and (axes.get_xlabel() or draw is plots.draw_reward)


def test_the_curves_are_the_metrics(run):
    figure = plots.draw_reward([read(run)])
    drawn = {axes.get_title(): axes.get_lines()[0].get_xydata() for axes in figure.axes}
    assert drawn["accuracy reward"].tolist() == [[step, 0.5] for step in range(1, 41)]
    assert drawn["reward (weighted sum)"][:, 1].tolist() == [1.5 + number for number in range(40)]
    assert {"format reward", "completion length", "entropy", "groups with equal rewards"} < set(drawn)
    marks = {tuple(axes.get_lines()[-1].get_xdata()) for axes in figure.axes}
    assert marks == {(1, 1)}  # a quarter reflect from the first step on


@pytest.mark.parametrize("command", [["run"], ["run", "live"]])
def test_all_figures_are_made_and_not_blank(run, tmp_path, capsys, command):
    wild = "Wait, $x_1 \\frac{ 我们 but wait, let me check. \0\x1b[31m\u202e\u0301 " * 200 + "\n" * 50 + "x" * 500
    wild = f"<think>{wild}\t</think>"
    make_run(tmp_path / "live", [table(1, [wild, RIGHT])], [table(0, [wild])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.main([*(str(tmp_path / name) for name in command), "--output", str(tmp_path / "figures")])
    said = capsys.readouterr()
    names = ["reward", "case", "word_distribution", "aha"]
    assert said.out.split() == [str(tmp_path / "figures" / f"{name}.png") for name in names]
    assert said.err == ""
    for name in names:
        pixels = image.imread(tmp_path / "figures" / f"{name}.png")[:, :, :3]
        height, width = pixels.shape[:2]
        assert width == 1800 and height > 200
        ink = (pixels.min(axis=2) < 0.9).mean()
        assert 0.005 < ink < 0.5, (name, ink)
        # Nothing is written across the page's edge.
        edges = numpy.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges > 0.9).all(), name


def test_wrapping_keeps_all_words_and_notes_what_it_leaves_out():
    text = "<think>2+2=4.  Wait, so\n\nlong" + "g" * 30 + "\n    indented"
    lines = plots.wrap(text, 12)
    assert all(len(line) <= 12 for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split()) and "    indented" in lines and "" in lines
    cut = plots.wrap("a\n" * 100, 12, most_lines=10)
    assert len(cut) == 11 and cut[5] == "[… 90 lines …]"


def test_the_case_shows_its_completions_word_for_word_and_marks_phrases_and_tags(run):
    figure = plots.draw_case([read(run)])
    texts = figure.axes[0].texts
    phrases = [text.get_text() for text in texts if text.get_bbox_patch()]
    assert phrases == ["Wait", "let me check"]
    tags = [text.get_text() for text in texts if text.get_color() == plots.COLOURS[0]]
    assert tags == ["<think>", "</think>", "<answer>", "</answer>"] * 3
    rows = {}
    for text in texts:
        x, y = text.get_position()
        rows[y] = rows.get(y, "").ljust(int(x)) + text.get_text()  # a character is one unit wide
    lines = [" ".join(row.split()) for row in rows.values()]
    assert "What is 4 + 0? (answer: 4)" in lines and "step 0 step 22 step 40" in lines
    assert "<answer>5</answer> <answer>5</answer> 4.</think>" in lines  # the third one's line is longer, and wrapped
    assert "accuracy 0.00 accuracy 0.00 accuracy 1.00" in lines and "sum 1.00 sum 1.00 sum 2.00" in lines


def test_a_character_of_a_case_is_as_wide_as_its_cell():
    font = get_font(findfont(plots.MONOSPACE["family"]))
    font.set_size(plots.MONOSPACE["size"], plots.STYLE["savefig.dpi"])
    for character in "mi□…":
        width = font.load_char(ord(character)).linearHoriAdvance / 65536  # pixels
        assert width == pytest.approx(plots.CELL * plots.STYLE["savefig.dpi"], rel=1e-3)


def test_a_real_run_is_drawn(arguments, tmp_path, capsys):
    rl_grpo.main(arguments(max_steps=4, validation_size=8, eval_strategy="steps", eval_steps=2, eval_on_start="true",
                    per_device_eval_batch_size=8, num_generations_eval=1))  # fmt: skip
    run = read(tmp_path / "run")
    assert run.metrics["reward"].tolist() == [entry["reward"] for entry in logs(tmp_path / "run") if "reward" in entry]
    assert run.reward_names == ["accuracy", "format", "reflection", "length"]
    assert len(run.completions) == 4 * 16
    assert stats.pick_case(run)[1]["step"].tolist() == [0, 2, 4]
    capsys.readouterr()
    plots.main([str(tmp_path / "run")])
    assert "reward.png" in capsys.readouterr().out


# Bad input -------------------------------------------------------------------------------------------------


def refuse(capsys, *command) -> str:
    with pytest.raises(SystemExit) as raised:
        plots.main([str(word) for word in command])
    said = capsys.readouterr()
    assert raised.value.code == 2 and said.out == "" and said.err.startswith("plots.py: ")
    return said.err


def test_a_run_with_nothing_to_draw_is_refused_in_one_line(tmp_path, capsys):
    assert refuse(capsys, tmp_path / "none") == f"plots.py: there is no run {tmp_path / 'none'}\n"
    assert refuse(capsys, tmp_path) == (
        f"plots.py: {tmp_path} has no readable trainer_state.json: not a run, or no step is logged yet\n"
    )
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    assert refuse(capsys, tmp_path) == f"plots.py: {tmp_path} has not logged a GRPO step yet\n"


def test_what_is_cut_off_is_left_out_with_a_line_each(run, capsys):
    whole = run / "trainer_state.json"
    (run / "checkpoint-20").mkdir()
    (run / "checkpoint-20" / "trainer_state.json").write_bytes(whole.read_bytes())
    whole.write_text(whole.read_text()[:-40])
    broken = run / "completions" / "completions_00040.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    result = read(run)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and str(whole) in lines[0] and str(broken) in lines[1]
    assert result.metrics["step"].max() == 40 and result.completions["step"].max() == 39
    (run / "checkpoint-20" / "trainer_state.json").write_text("")
    assert (
        refuse(capsys, run).splitlines()[-1]
        == f"plots.py: {run} has no readable trainer_state.json: not a run, or no step is logged yet"
    )


def test_completions_of_steps_that_are_to_be_repeated_are_left_out(run):
    state = json.loads((run / "trainer_state.json").read_text())
    (run / "trainer_state.json").write_text(json.dumps({"log_history": state["log_history"][:30]}))
    assert read(run).completions["step"].max() == 30


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_are_drawn(tmp_path, capsys):
    run = make_run(tmp_path / "run", [table(1, [WRONG])])
    (run / "completions" / "completions_00001.parquet").unlink()
    plots.main([str(run)])
    said = capsys.readouterr()
    assert said.out.split() == [str(run / "figures" / "reward.png")]
    assert [line.split()[1] for line in said.err.splitlines()] == ["case.png", "word_distribution.png", "aha.png"]
