"""What is vLLM's alone: its traps, its adapters, its many settings, its versions. The rest is in test_conformance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefdata import ids
from prefdata.engines.protocol import Completion, Request, Sampling
from prefdata.engines.vllm.generator import VllmGenerator
from prefdata.engines.vllm.launch import TESTED_VERSIONS, start
from prefdata.engines.vllm.settings import lora_rank, parse_options
from prefdata.errors import EngineError, ModelError, UsageError
from prefdata.models.files import identify
from prefdata.specs import EngineSpec

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=40)
GREEDY = replace(PLAIN, temperature=0.0)
KNOWN = ("max_num_batched_tokens", "kv_cache_dtype", "hf_overrides", "enforce_eager")


def answers(engine: Any, asked: list[Request]) -> dict[str, Completion]:
    found = list(engine.generate(iter(asked)))
    assert all(isinstance(answer, Completion) for answer in found)
    assert len({answer.key for answer in found}) == len(found) == len(asked)
    return {answer.key: answer for answer in found}


def test_options_are_json_or_text():
    said = ["max-num-batched-tokens=512", "--kv_cache_dtype=fp8", 'hf_overrides={"a": 1}', "enforce_eager=true"]
    assert parse_options(said, KNOWN) == {
        "max_num_batched_tokens": 512,
        "kv_cache_dtype": "fp8",
        "hf_overrides": {"a": 1},
        "enforce_eager": True,
    }


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("max_num_batched_token=5", 'no setting max_num_batched_token. Did you mean "max_num_batched_tokens"?'),
        ("max_model_len=5", "Use --max-model-len instead"),
        ("seed=5", "Use --seed instead"),
        ("logprobs_mode=processed_logprobs", "prefdata sets logprobs_mode itself. Leave it out."),
        ("enforce_eager", "write it as KEY=VALUE"),
    ],
)
def test_options_that_are_none_of_vllms(option, words):
    with pytest.raises(UsageError) as refused:
        parse_options([option], [*KNOWN, "max_model_len", "logprobs_mode"])
    assert words in str(refused.value)


def test_the_rank_of_an_adapter_is_rounded_up_to_one_that_vllm_has(tmp_path):
    config = tmp_path / "adapter_config.json"
    for rank, pattern, expected in ((1, {}, 1), (8, {}, 8), (9, {}, 16), (4, {"q_proj": 40}, 64), (512, None, 512)):
        config.write_text(json.dumps({"r": rank, "rank_pattern": pattern}))
        assert lora_rank(tmp_path) == expected
    config.write_text('{"r": 513}')
    with pytest.raises(ModelError, match="rank 513, and vLLM takes at most 512"):
        lora_rank(tmp_path)
    for bad in ("{}", "no JSON", "[]"):
        config.write_text(bad)
        with pytest.raises(ModelError, match="is not a LoRA adapter"):
            lora_rank(tmp_path)
    with pytest.raises(ModelError, match="is not a LoRA adapter"):
        lora_rank(tmp_path / "none")


@pytest.mark.vllm
def test_another_version_is_said_and_one_that_lacks_something_is_refused(monkeypatch):
    from prefdata.engines.vllm import launch as adapter

    assert adapter.untested(adapter.import_vllm().__version__) == ()
    assert adapter.untested("0.33.1+cpu") == ("vLLM 0.33.1+cpu is untested here; tested: 0.32.0.",)
    monkeypatch.setattr(adapter, "NEEDED", (*adapter.NEEDED, "LLMEngine.step_twice"))
    with pytest.raises(EngineError, match=r"vllm cannot be used: .*step_twice.*--engine transformers"):
        adapter.import_vllm()


@pytest.mark.parametrize("can", [True, False])
def test_the_batch_invariant_mode_is_asked_of_vllm_where_the_gpu_can_and_else_refused(monkeypatch, tiny_policy, can):
    # The GPU is played; that vLLM then answers alike can be seen on a real one alone.
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    said = {}

    def started(args: dict[str, Any], usage_context: str) -> Any:
        assert usage_context == "LLM"  # by which vLLM computes as many sequences at a time as its own LLM does
        said.update(model=args["model"], dtype=args.get("dtype"), mode=os.environ["VLLM_BATCH_INVARIANT"])
        raise RuntimeError("far enough")

    platform = SimpleNamespace(
        is_cuda_alike=lambda: True, is_cpu=lambda: False, has_device_capability=lambda least: can and least <= 80
    )
    vllm = SimpleNamespace(
        platforms=SimpleNamespace(current_platform=platform),
        EngineArgs=lambda **args: args,
        LLMEngine=SimpleNamespace(from_engine_args=started),
        usage=SimpleNamespace(usage_lib=SimpleNamespace(UsageContext=SimpleNamespace(LLM_CLASS="LLM"))),
        __version__=TESTED_VERSIONS[0],
    )
    with pytest.raises(EngineError if can else UsageError, match="far enough" if can else "compute capability 8.0"):
        start(vllm, identify(str(tiny_policy), "causal-lm"), EngineSpec(batch_invariant=True))
    assert said == ({"model": str(tiny_policy), "dtype": "auto", "mode": "1"} if can else {})
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"  # for the engine that was started, and no other


@pytest.mark.vllm
def test_the_batch_invariant_mode_is_refused_on_a_cpu(tiny_policy):
    with pytest.raises(UsageError, match="--batch-invariant needs a GPU that vLLM"):
        VllmGenerator(identify(str(tiny_policy), "causal-lm"), EngineSpec(batch_invariant=True))


@pytest.mark.vllm
def test_an_unknown_option_is_refused_before_anything_starts(tiny_policy):
    with pytest.raises(UsageError, match='Did you mean "kv_cache_dtype"'):
        VllmGenerator(identify(str(tiny_policy), "causal-lm"), EngineSpec(engine_option=("kv-cache-dtyp=fp8",)))


@pytest.fixture(scope="module")
def engine(tiny_policy) -> Iterator[Any]:
    generator = VllmGenerator(identify(str(tiny_policy), "causal-lm"), EngineSpec())
    yield generator
    generator.close()


@pytest.mark.vllm
def test_one_seed_for_a_whole_batch_would_be_one_noise(engine):
    """vLLM's trap (#50440): with one seed for all prompts, flat distributions give them all one first token."""
    flat = replace(PLAIN, temperature=2.0, max_tokens=1)

    def first_tokens(seed) -> set[int]:
        asked = [Request(str(i), (1, 4 + i, 5 + i), seed(i), flat) for i in range(100)]
        return {answer.token_ids[0] for answer in answers(engine, asked).values()}

    assert len(first_tokens(lambda i: 7)) < 0.6 * len(first_tokens(lambda i: ids.seed(0, i)))


@pytest.mark.vllm
def test_neighbours_share_no_stream(engine):
    """Where `n` answers have the seeds s, s+1, …, those of the next seed are mostly the same ones; ours never are."""
    prompt = engine.render([{"role": "user", "content": "hi"}])
    asked = [Request(f"{p}-{k}", prompt, ids.seed(0, p, k), PLAIN) for p in range(20) for k in range(20)]
    found = [answer.token_ids for answer in answers(engine, asked).values() if len(answer.token_ids) > 4]
    assert len(found) > 100
    assert len({token_ids[:5] for token_ids in found}) == len(found)


@pytest.mark.vllm
def test_the_models_own_generation_defaults_are_not_used(engine):
    prompt = engine.render([{"role": "user", "content": "hi"}])
    found = answers(engine, [Request(str(i), prompt, i, PLAIN) for i in range(40)]).values()
    assert max(len(answer.token_ids) for answer in found) > 20
    assert len({answer.token_ids for answer in found}) > 30


@pytest.mark.vllm
def test_what_vllm_does_not_take_is_a_row_and_not_another_value(engine):
    """Below 0.01 vLLM would quietly take 0.01 for the temperature."""
    settings = {"cold": {"temperature": 0.005}, "hot": {"temperature": 2.5}, "penalty": {"presence_penalty": 2.5}}
    asked = [Request(name, (1, 70), 1, replace(PLAIN, **one)) for name, one in settings.items()]
    found = {answer.key: answer for answer in engine.generate([*asked, Request("fine", (1, 70), 1, PLAIN)])}
    assert isinstance(found.pop("fine"), Completion)
    assert {answer.status for answer in found.values()} == {"rejected"}
    assert found["cold"].detail == "vLLM has no temperature between 0 and 0.01"
    assert "temperature must be in [0, 2]" in found["hot"].detail


@pytest.mark.vllm
def test_a_stop_text_ends_an_answer_where_it_first_occurs(engine):
    """The same draws with and without a stop text: up to it they are the same tokens."""
    prompts = [engine.render([{"role": "user", "content": str(i)}]) for i in range(30)]
    plain = answers(engine, [Request(str(i), prompt, i, PLAIN) for i, prompt in enumerate(prompts)])
    stop = ("e", "Q")
    stopping = [Request(str(i), prompt, i, replace(PLAIN, stop=stop)) for i, prompt in enumerate(prompts)]
    ended = 0
    for key, answer in answers(engine, stopping).items():
        whole = plain[key]
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        places = [whole.text.find(text) for text in stop if text in whole.text]
        if places:
            ended += 1
            assert answer.text == whole.text[: min(places)]
            assert answer.finish_reason == "stop"
            assert any(engine.chat.decode(answer.token_ids).endswith(text) for text in stop)
        else:
            assert answer == whole
    assert ended > 3


@pytest.mark.vllm
def test_a_shortest_answer_longer_than_the_context_ends_with_it(engine):
    prompt = tuple([1] + [70] * 119)
    (answer,) = answers(engine, [Request("k", prompt, 3, replace(PLAIN, min_tokens=50, max_tokens=60))]).values()
    assert (len(answer.token_ids), answer.finish_reason) == (8, "length")


def write_adapter(folder: Path, rank: int, seed: int) -> dict[str, Any]:
    """A random adapter for the tiny policy, in PEFT's files; returns what it adds to each weight."""
    import torch
    from safetensors.torch import save_file

    draws = torch.Generator().manual_seed(seed)
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "mlp.down_proj": (64, 96)}
    tensors, added, alpha = {}, {}, 16
    for layer in range(2):
        for name, (rows, columns) in shapes.items():
            a = torch.randn(rank, columns, generator=draws) * 0.2
            b = torch.randn(rows, rank, generator=draws) * 0.2
            stem = f"model.layers.{layer}.{name}"
            tensors |= {f"base_model.model.{stem}.lora_A.weight": a, f"base_model.model.{stem}.lora_B.weight": b}
            added[f"{stem}.weight"] = b @ a * (alpha / rank)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted(name.split(".")[1] for name in shapes)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none", "lora_dropout": 0.0}))
    return added


@pytest.mark.vllm
def test_an_adapter_is_as_good_as_merged_into_the_model(tiny_policy, tmp_path):
    """Greedy answers and their log-probabilities against transformers on the merged weights; options pass through."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefdata.engines.hf.generator import TransformersGenerator

    added = write_adapter(tmp_path / "adapter", rank=5, seed=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    weights = model.state_dict()
    for name, change in added.items():
        weights[name] += change
    model.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path / "merged")

    local = [TransformersGenerator(identify(str(folder), "causal-lm"), device="cpu", dtype="float32")
             for folder in (tmp_path / "merged", tiny_policy)]  # fmt: skip
    asked = [Request(str(i), local[0].render([{"role": "user", "content": str(i)}]), i, GREEDY) for i in range(30)]
    merged, plain = (answers(one, asked) for one in local)
    generator = VllmGenerator(
        identify(str(tiny_policy), "causal-lm"),
        EngineSpec(
            engine_option=("max-num-batched-tokens=1024", "enforce_eager=true"),
            max_num_seqs=8,
            lora=str(tmp_path / "adapter"),
        ),
    )
    adapted = answers(generator, asked)
    settings = generator._running.config
    generator.close()
    assert settings.scheduler_config.max_num_batched_tokens == 1024
    assert settings.lora_config.max_lora_rank == 8
    assert {key: a.token_ids for key, a in adapted.items()} == {key: a.token_ids for key, a in merged.items()}
    assert max(abs(adapted[key].logprob_sum - merged[key].logprob_sum) for key in merged) < 1e-3
    assert sum(merged[key].token_ids == plain[key].token_ids for key in merged) < 5
