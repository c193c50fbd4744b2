"""A group's prompt is read once, and what is finished leaves the batch; the numbers and the distribution stay."""

import pytest
import scipy.stats
import torch
from conftest import logs
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

import rl_grpo
from r1zero import rollouts
from r1zero.trainer import Trainer

WORDS = 40


@pytest.fixture
def random_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=[1, 2], pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def prompts():
    """Three prompts of 5, 7 and 3 tokens in four rows each, and their mask, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for row, length in enumerate((5, 7, 3)):
        ids[row, 7 - length :] = torch.randint(3, WORDS, (length,), generator=generator)
        mask[row, 7 - length :] = 1
    return ids.repeat(4, 1), mask.repeat(4, 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prompt_length", [7, 1])
def test_scores_and_gradients_are_those_of_every_prompt_read(attention, prompt_length, random_model, prompts):
    random_model.set_attn_implementation(attention)
    add_fused_lm_head(random_model, outputs=("log_probs", "entropy"))
    ids, mask = (part[:, -prompt_length:] for part in prompts)
    completion = torch.randint(3, WORDS, (12, 6))
    written = torch.arange(6) < torch.tensor([6, 1, 3, 4, 0, 6, 2, 5, 6, 3, 3, 1])[:, None]
    ids, mask = torch.cat([ids, completion], dim=1), torch.cat([mask, written.long()], dim=1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt_length] = -100
    results = []
    for model in (random_model, rollouts.Scoring(random_model, prompt_length)):
        random_model.zero_grad()
        scored = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        log_probs, entropy = scored.log_probs[:, -6:], scored.entropy[:, -6:]
        (log_probs * torch.linspace(-1, 1, 12)[:, None] + 0.1 * entropy).sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in random_model.parameters()])
        results.append((log_probs.detach(), entropy.detach(), gradients))
    for every_prompt, once in zip(*results, strict=True):
        torch.testing.assert_close(once, every_prompt, rtol=1e-4, atol=1e-5)
    assert results[0][2].norm() > 0.1


def see_shapes(model) -> list[tuple[int, int]]:
    """Of each call of a model from now on, its rows and tokens."""
    shapes = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def test_greedy_completions_are_those_of_transformers_and_each_leaves_when_it_is_finished(random_model, prompts):
    ids, mask = prompts
    ends = list(range(1, 12))  # so many that rows end at different tokens
    config = GenerationConfig(max_new_tokens=40, eos_token_id=ends, pad_token_id=0, do_sample=False)
    ids = torch.cat([ids, torch.arange(12, 24)[:, None]], dim=1)  # else all rows of a prompt were one
    mask = torch.cat([mask, torch.ones(12, 1, dtype=torch.long)], dim=1)
    theirs = random_model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    shapes = see_shapes(random_model)
    ours = random_model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=rollouts.sample
    )
    assert torch.equal(ours, theirs)
    lengths = (theirs[:, ids.size(1) :] != 0).sum(dim=1)
    assert lengths.unique().numel() > 2 and shapes[0] == (12, ids.size(1) - 1)
    decoded = sum(rows for rows, _ in shapes[1:])
    assert lengths.sum() <= decoded < 0.9 * lengths.max() * 12


def test_a_prompt_is_read_once_for_all_its_rows(random_model, prompts):
    shapes = see_shapes(random_model)
    config = GenerationConfig(max_new_tokens=1, eos_token_id=[1], pad_token_id=0, do_sample=True)
    random_model.generate(
        input_ids=prompts[0], attention_mask=prompts[1], generation_config=config,
        custom_generate=rollouts.sample,
    )  # fmt: skip
    assert shapes == [(3, 6), (12, 1)]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6, "temperature": 1.5}])
def test_samples_are_of_the_distribution_that_transformers_samples(sampling, random_model, prompts):
    """The log-probability, under the model, of 3,000 samples of each; and their length."""
    random_model.lm_head.weight.data *= 12  # far from uniform
    settings = {"top_k": 0, **sampling}
    config = GenerationConfig(max_new_tokens=8, eos_token_id=[1, 2, 3], pad_token_id=0, do_sample=True, **settings)
    ids, mask = (part[[1] * 3000] for part in prompts)
    scores = []
    for method in (None, rollouts.sample):
        torch.manual_seed(1)
        sampled = random_model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=method
        )
        written = sampled[:, 7:]
        with torch.no_grad():
            log_probs = random_model(sampled).logits[:, 6:-1].log_softmax(dim=-1)
        of_tokens = log_probs.gather(2, written[:, :, None])[:, :, 0] * (written != 0)
        scores.append((of_tokens.sum(dim=1), (written != 0).sum(dim=1)))
    for theirs, ours in zip(*scores, strict=True):
        assert scipy.stats.ks_2samp(theirs.numpy(), ours.numpy()).pvalue > 0.001
    assert scores[0][0].std() > 0.5


def test_a_token_is_drawn_as_often_as_its_probability_says():
    probabilities = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.2, 0.05, 0.0])
    drawn = rollouts.draw(probabilities.log().repeat(20_000, 1))
    assert drawn.shape == (20_000, 1)
    counts = torch.bincount(drawn[:, 0], minlength=7)
    assert counts[probabilities == 0].sum() == 0
    likely = probabilities > 0
    assert scipy.stats.chisquare(counts[likely], 20_000 * probabilities[likely]).pvalue > 0.001


@pytest.mark.parametrize(
    ("settings", "shares"),
    [({}, True), ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, False)],
)
def test_a_model_with_sliding_windows_reads_every_prompt(settings, shares, random_model):
    config = Qwen2Config(**{**random_model.config.to_dict(), "layer_types": None, **settings})
    assert rollouts.can_share(Qwen2ForCausalLM(config)) is shares


@pytest.mark.parametrize(
    "settings",
    [
        {"use_peft": "true", "lora_target_modules": "all-linear", "beta": "0.1"},
        {"activation_checkpointing": "true"},
        {"bf16": "true", "num_iterations": 2},
        {"generation_kwargs": '{"num_beams": 4}'},
        {
            "use_transformers_continuous_batching": "true",
            "eval_on_start": "true",
            "eval_strategy": "steps",
            "validation_size": 8,
            "eval_steps": 100,
            "transformers_continuous_batching_config": '{"num_blocks": 64, "max_batch_tokens": 256}',
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_else_a_training_may_be_still_runs(settings, arguments, tmp_path):
    rl_grpo.main(arguments(max_steps=2, **settings))
    history = logs(tmp_path / "run")
    assert history[-1]["step"] == 2
    assert ("eval_reward" in history[0]) == ("eval_on_start" in settings)


@pytest.mark.parametrize("settings", [{}, {"use_peft": "true", "lora_target_modules": "all-linear"}])
def test_a_training_reads_each_prompt_once(settings, arguments, monkeypatch):
    build, shapes = Trainer.__init__, []

    def look(self, *args, **kwargs):
        build(self, *args, **kwargs)
        shapes.append(see_shapes(self.model))

    monkeypatch.setattr(Trainer, "__init__", look)
    rl_grpo.main(arguments(max_steps=1, **settings))  # 4 prompts × 4 generations, in two micro-batches of 8
    (prompts, width), first, *decoding = shapes[0][:-4]
    assert prompts == 4 and first == (16, 1) and {columns for _, columns in decoding} == {1}
    for prompts, completions in zip(shapes[0][-4::2], shapes[0][-3::2], strict=True):
        assert prompts[0] <= 4 and prompts[1] <= width and completions[0] == 8 and completions[1] <= 9
