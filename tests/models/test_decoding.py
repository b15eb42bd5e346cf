"""Batched decoding against transformers' own generate, one prompt at a time."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions import Intervention
from dialdown.models import LM, Decoder, Step
from dialdown.models.decoding import Pick, batches, greedy, sampler
from dialdown.models.memory import SmallerBatchWarning, fitting
from dialdown.progress import progress_to
from dialdown.training import own_text
from helpers import tiny
from helpers.decoding import NEW, PROMPTS, decode, generate, middle_token
from helpers.edits import make
from helpers.memory import short_of_memory


def test_batched_is_one_by_one_is_transformers_generate(lm: LM) -> None:
    expected = [generate(lm, prompt) for prompt in PROMPTS]
    assert decode(lm) == expected
    assert decode(lm, batch_size=3) == expected
    assert [decode(lm, [prompt])[0] for prompt in PROMPTS] == expected


def test_no_plan_of_attention_is_made_for_each_length(llama: LM) -> None:
    """cuDNN makes one on a GPU, a tenth of a second for each new token."""
    asked: list[bool] = []
    Decoder(llama, PROMPTS, max_new_tokens=3).run(
        observe=lambda step: asked.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    assert asked
    assert not any(asked)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_decoding_uses_nothing_that_transformers_will_remove(lm: LM) -> None:
    """The keys and values have another name from 5.24 on, and the old one goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(lm, share_prefixes=True)
        own_text(lm, texts=1, tokens=3)


def test_a_model_that_names_its_cache_the_old_way_is_given_it(
    llama: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.model, "forward", lambda input_ids=None, past_key_values=None: None)
    assert llama.going_on("kept") == {"past_key_values": "kept"}
    assert llama.kept({"past_key_values": "kept"}) == "kept"


def test_the_tiny_models_say_different_things(named: LM) -> None:
    """Guards the tests above: equality of constant outputs would show nothing."""
    out = decode(named)
    assert len({tuple(ids) for ids in out}) >= 6
    assert len({token for ids in out for token in ids}) >= 8


def test_with_a_bos(named: LM) -> None:
    decoder = Decoder(named, PROMPTS, max_new_tokens=NEW)
    assert all(ids[0] == 1 for ids in decoder.encoded)
    assert decoder.run() == [generate(named, prompt) for prompt in PROMPTS]


def test_an_end_of_text_in_the_middle_of_a_batch(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    free = decode(lm)
    eos = middle_token(free)
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", eos)
    out = decode(lm)
    assert out == [row[: row.index(eos)] if eos in row else row for row in free]
    assert {len(row) for row in out} > {NEW}


def test_several_end_of_text_tokens(llama: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    free = decode(llama)
    ends = sorted({free[0][3], free[2][0]})
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", ends)
    out = decode(llama)
    assert out[2] == []
    assert out == [generate(llama, prompt) for prompt in PROMPTS]


def test_a_model_without_an_end_of_text_token_goes_on(
    llama: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = decode(llama)
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", None)
    bare = tiny.tokenizer()
    bare.eos_token = None
    llama = replace(llama, tokenizer=bare)
    assert llama.eos == frozenset()
    assert decode(llama) == free
    assert all(len(row) == NEW for row in free)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("kind", ["set", "steer"])
def test_an_intervention_acts_in_a_batch_as_in_generate(
    named: LM, kind: str, positions: Any
) -> None:
    """Also: a prefix shared with the untouched model gives what no sharing gives, since generate
    shares nothing.
    """
    edit = make(named, kind, strength=0.7)
    prompts = PROMPTS[:4]
    decoder = Decoder(named, prompts, max_new_tokens=NEW, batch_size=3)
    base = decoder.run()
    out = decoder.run(edit, positions=positions)
    with edit.applied(named, positions=positions):
        assert out == [generate(named, prompt) for prompt in prompts]
    assert out != base
    assert decoder.run() == base, "one run must not change what the next one sees"


@pytest.mark.parametrize("kind", ["set", "scale"])
def test_decoding_the_folded_model_is_decoding_under_the_edit(kind: str) -> None:
    for name in ("gpt2", "llama"):
        lm = tiny.lm(name)
        edit = make(lm, kind)
        assert decode(edit.fold(lm)) == Decoder(lm, PROMPTS, max_new_tokens=NEW).run(edit)


def test_a_decoder_used_inside_a_context_sees_the_edit_in_the_prompt_too(llama: LM) -> None:
    edit = make(llama, "scale")
    decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW)
    base = decoder.run()
    with edit.applied(llama):
        inside = decoder.run()
    assert inside == decoder.run(edit)
    assert inside != base
    assert decoder.run() == base

    fresh = Decoder(llama, PROMPTS, max_new_tokens=NEW)
    with edit.applied(llama):
        assert fresh.run() == inside
    assert fresh.run() == base


def test_the_observer_sees_which_rows_produce_and_which_were_generated(
    llama: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = decode(llama, batch_size=2)
    eos = middle_token(free)
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", eos)
    decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW, batch_size=2)
    for extra in (False, True):
        steps: list[Step] = []
        out = decoder.run(observe=steps.append, extra_step=extra)
        assert out == decode(llama)
        at = 0
        for batch in decoder.batches:
            lengths = [len(out[row]) for row in batch.rows]
            # Without the extra step a batch stops when its last row has ended.
            passes = NEW + 1 if extra else min(NEW, max(lengths) + 1)
            for index in range(passes):
                step = steps[at]
                at += 1
                assert step.index == index
                assert step.producing.tolist() == [index < length for length in lengths]
                assert step.generated.tolist() == [index > 0] * len(lengths)
        assert at == len(steps)


def test_prompts_are_cut_to_their_first_tokens(llama: LM) -> None:
    decoder = Decoder(llama, PROMPTS, max_new_tokens=2, max_prompt_tokens=5)
    assert decoder.encoded == [llama.tokenizer(prompt)["input_ids"][:5] for prompt in PROMPTS]
    assert max(map(len, decoder.encoded)) == 5
    assert decoder.run() == [
        generate(llama, prompt, max_new_tokens=2, max_prompt_tokens=5) for prompt in PROMPTS
    ]


def test_batches_group_by_length_and_pad_on_the_left(llama: LM) -> None:
    encoded = [[9] * 4, [8], [7] * 5, [6] * 2]
    batched = batches(llama, encoded, 2)
    assert [batch.rows for batch in batched] == [(1, 3), (0, 2)]
    assert batched[0].ids.tolist() == [[0, 8], [6, 6]]
    assert batched[0].mask.tolist() == [[0, 1], [1, 1]]
    assert batched[0].positions.tolist() == [[0, 0], [0, 1]]
    assert batched[1].positions.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_texts_are_the_new_tokens_alone(llama: LM) -> None:
    decoder = Decoder(llama, ["the cat", "x"], max_new_tokens=4)
    ids = llama.tokenizer(" the cat")["input_ids"]
    assert decoder.texts([ids, [*ids[:1], 2]]) == [" the cat", " the"]
    assert decoder.texts([[], []]) == ["", ""]


def test_texts_keep_the_space_a_sentencepiece_tokenizer_drops(llama: LM) -> None:
    """As Mistral's: a text is decoded without the space that every text is encoded with."""
    core = Tokenizer(
        WordLevel({"<pad>": 0, "▁": 1, "▁the": 2, "▁cat": 3, "s": 4}, unk_token="<pad>")
    )
    core.pre_tokenizer = Metaspace(prepend_scheme="always")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    decoder = Decoder(replace(llama, tokenizer=words), ["the cat", "cat"])
    assert decoder.encoded == [[2, 3], [3]]
    assert decoder.texts([[3, 2], [4]]) == [" cat the", "s"]


def test_a_prompt_cut_inside_a_character_does_not_enter_the_text(llama: LM) -> None:
    decoder = Decoder(llama, ["é"], max_prompt_tokens=1)
    first, second = llama.tokenizer("é")["input_ids"]
    assert decoder.encoded == [[first]]
    assert decoder.texts([[second, *llama.tokenizer("cat")["input_ids"]]])[0].endswith("cat")
    assert "é" not in decoder.texts([[second]])[0]


@pytest.mark.parametrize("share", [True, False])
def test_sharing_prefixes_changes_nothing_and_can_be_switched_off(named: LM, share: bool) -> None:
    expected = [decode(named, [prompt])[0] for prompt in PROMPTS]
    decoder = Decoder(named, PROMPTS, max_new_tokens=NEW, share_prefixes=share)
    fed: list[int] = []
    embedding = named.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda m, args: fed.append(args[0].numel()))
    try:
        assert decoder.run() == expected
        first = sum(fed)
        fed.clear()
        assert decoder.run() == expected
        # The second run feeds only the prompts' last tokens where prefixes are shared, and all of
        # them where not.
        assert sum(fed) < first if share else sum(fed) == first
    finally:
        handle.remove()


def test_progress_counts_prompts(llama: LM) -> None:
    calls: list[tuple[str, int, int]] = []
    with progress_to(lambda *call: calls.append(call)):
        Decoder(llama, PROMPTS, max_new_tokens=1, batch_size=3).run()
    total = len(PROMPTS)
    assert calls == [("decoding", done, total) for done in (3, 6, total)]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        (["a", " \n"], {}, "Prompt 1 of 2 is empty"),
        (
            ["a", "x" * 90],
            {"max_prompt_tokens": 90},
            r"Prompt 1 has 90 tokens.*\(96\).*smaller max_prompt_tokens",
        ),
        (["a"], {"max_new_tokens": 96}, r"exceed the context of tiny-llama \(96\)"),
        (["a"], {"max_prompt_tokens": 0}, "max_prompt_tokens=0 leaves nothing"),
    ],
)
def test_prompts_that_cannot_be_continued(
    llama: LM, prompts: list[str], options: dict[str, int], message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        Decoder(llama, prompts, **options)


def test_the_longest_prompt_that_fits_is_taken(gpt2: LM) -> None:
    prompt = "x" * (tiny.CONTEXT - NEW)
    decoder = Decoder(gpt2, [prompt], max_new_tokens=NEW, max_prompt_tokens=tiny.CONTEXT)
    assert decoder.run() == [generate(gpt2, prompt, max_prompt_tokens=tiny.CONTEXT)]
    assert decoder.run(extra_step=True) == decoder.run()


def test_sampling_is_seeded(llama: LM) -> None:
    decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW)
    runs = [decoder.run(pick=sampler(temperature=1.5, top_k=1000, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert decoder.run(pick=sampler(temperature=1e-4, top_k=1000, seed=1)) == decoder.run()


def test_several_candidates_in_one_pass_are_those_of_one_pass_each(lm: LM) -> None:
    def picks() -> list[Pick]:
        samplers = [sampler(temperature=1.5, top_k=1000, seed=seed) for seed in (1, 2)]
        return [samplers[0], greedy, samplers[1]]

    for batch_size in (2, 64):
        decoder = Decoder(lm, PROMPTS, max_new_tokens=NEW, batch_size=batch_size)
        assert decoder.run_together(picks()) == [decoder.run(pick=pick) for pick in picks()]


def test_several_candidates_inside_a_context_are_the_edited_models(llama: LM) -> None:
    edit = make(llama, "scale")
    decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW)
    base, edited = [decoder.run()] * 2, [decoder.run(edit)] * 2
    assert base != edited
    for used in (decoder, Decoder(llama, PROMPTS, max_new_tokens=NEW)):
        with edit.applied(llama):
            assert used.run_together([greedy, greedy]) == edited
        assert used.run_together([greedy, greedy]) == base


def test_the_sampler_draws_the_top_tokens_in_proportion() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1])
    logits = (2.0 * probabilities.log()).expand(20_000, 5)
    for top_k, kept in ((2, [1, 3]), (3, [1, 3, 2]), (9, [0, 1, 2, 3, 4]), (1, [1])):
        drawn = sampler(temperature=2.0, top_k=top_k, seed=3)(logits)
        share = torch.bincount(drawn, minlength=5).double() / len(drawn)
        expected = torch.zeros(5, dtype=torch.float64)
        expected[kept] = (probabilities[kept] / probabilities[kept].sum()).double()
        # Five standard errors of a share of one half.
        torch.testing.assert_close(share, expected, atol=5 * 0.5 / np.sqrt(20_000), rtol=0)
        assert set(drawn.tolist()) == set(kept)


def test_the_sampler_never_leaves_the_top_tokens_by_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Highest:
        def random(self, shape: tuple[int, ...]) -> Any:
            return np.full(shape, np.nextafter(1.0, 0.0))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Highest())
    logits = torch.randn(500, 200, generator=torch.Generator().manual_seed(0))
    drawn = sampler(temperature=1.0, top_k=50, seed=0)(logits)
    rank = (logits.argsort(-1, descending=True) == drawn[:, None]).int().argmax(-1)
    assert (rank < 50).all()


def test_decoding_leaves_no_trace_of_an_unused_intervention(llama: LM) -> None:
    shape = (llama.view.n_layers, llama.view.n_neurons)
    identity = Intervention(
        "it", "scale", np.ones(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    )
    decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW)
    assert decoder.run(identity) == decoder.run()


def test_a_batch_that_does_not_fit_is_halved_and_done_again(llama: LM) -> None:
    free = decode(llama, batch_size=2)
    kept = dd.mean_activations(llama, PROMPTS, max_new_tokens=NEW, batch_size=2)
    with short_of_memory(above=3):
        decoder = Decoder(llama, PROMPTS, max_new_tokens=NEW)
        with pytest.warns(SmallerBatchWarning, match="7 texts at once .* so 3 at once were done"):
            assert decoder.run() == free
        assert decoder.batch_size == 3
        # From then on it fits.
        assert decoder.run() == free
        with pytest.warns(SmallerBatchWarning):
            means = dd.mean_activations(llama, PROMPTS, max_new_tokens=NEW)
        assert means.count == kept.count
        np.testing.assert_allclose(means.means, kept.means, atol=1e-6)
        # A number that was set is not changed, and nothing is less than one.
        with pytest.raises(torch.OutOfMemoryError):
            decode(llama, batch_size=7)
    with (
        short_of_memory(above=0),
        pytest.warns(SmallerBatchWarning),
        pytest.raises(torch.OutOfMemoryError),
    ):
        decode(llama)


def test_what_fits_is_a_power_of_two_of_texts() -> None:
    assert [fitting(free, 10) for free in (0, 100, 1000, 10**9)] == [1, 4, 64, 512]
