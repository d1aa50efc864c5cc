"""vLLM's pooling runner gives the scores that transformers gives: raw logits of the same token ids."""

from __future__ import annotations

import pytest

from prefdata.models.files import identify
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem
from prefdata.specs import EngineSpec

pytestmark = pytest.mark.vllm

ASKED = [
    ScoringItem(f"{i}/{k}", ({"role": "user", "content": question},), answer, False)
    for i, question in enumerate(("Say something.", "Say more. " * 3))
    for k, answer in enumerate(("", "yes", "no, never", "é 🎬", "long " * 12, "<eos>", "yes<pad>", "x" * 300, "yes"))
]


@pytest.fixture(scope="module", params=[1, 3], ids=["one label", "three labels"])
def both(request, fitting_reward_model, make_reward_model, tmp_path_factory):
    from prefdata.scorers.classifier.vllm import PoolingRewardModel

    folder = fitting_reward_model
    if request.param == 3:
        folder = make_reward_model(tmp_path_factory.mktemp("models") / "three", labels=3, max_position_embeddings=256)
    files = identify(str(folder), "reward-model")
    label = None if request.param == 1 else "all"
    ours = list(RewardModel(files, device="cpu", label=label).score(ASKED))
    scorer = PoolingRewardModel(files, EngineSpec(max_num_seqs=8), label=label)
    try:
        yield ours, list(scorer.score(ASKED)), scorer
    finally:
        scorer.close()


def test_scores_are_those_of_transformers(both):
    ours, theirs, scorer = both
    known = {(s.key, s.output): s for s in ours}
    assert {(s.key, s.output) for s in theirs} == set(known)
    for scored in theirs:
        one = known[scored.key, scored.output]
        assert (scored.reason, scored.text_hash) == (one.reason, one.text_hash)
        assert scored.score == (None if one.score is None else pytest.approx(one.score, abs=1e-4))
    assert any(abs(s.score or 0) > 1 for s in theirs)  # no probabilities
    assert scorer.versions.keys() >= {"vllm", "torch"}


def test_the_same_again_and_in_another_order(both):
    _, theirs, scorer = both
    again = {(s.key, s.output): s.score for s in scorer.score(ASKED[::-1])}
    assert again == pytest.approx({(s.key, s.output): s.score for s in theirs}, abs=1e-5)
