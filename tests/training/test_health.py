import math
from collections.abc import Mapping
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from poa import distributed
from poa.errors import UserError
from poa.training.health import CollapseCheck, NonFinite, NonFiniteLoss, check_finite, check_state, mean_cosine, rankme

CURE = "Do this."
LOG_PROTOTYPES = math.log(512)
HEALTHY = {"rank": 40.0, "cosine": 0.3}


def noise(num_rows: int, width: int) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))


def story(
    watch: CollapseCheck, looks: Mapping[int, float], *, rank: float = 40.0, cosine: float = 0.3
) -> dict[int, list[str]]:
    """What is told at which step, for an elastic loss by step and an intact loss that is fine."""
    told = {
        step: watch.check(
            step, losses={"intact": 4.0, "elastic": loss}, log_prototypes=LOG_PROTOTYPES, rank=rank, cosine=cosine
        )
        for step, loss in looks.items()
    }
    return {step: sentences for step, sentences in told.items() if sentences}


@pytest.mark.parametrize("rank", [1, 2, 5, 16])
def test_rankme_counts_equally_strong_directions(rank: int) -> None:
    columns, _ = torch.linalg.qr(noise(64, rank))
    rows, _ = torch.linalg.qr(noise(16, rank))
    assert rankme(columns @ rows.T * 7) == pytest.approx(rank, rel=1e-3)


def test_rankme_follows_its_formula() -> None:
    features = noise(20, 6) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1, 0.01])
    values = [math.sqrt(value) for value in torch.linalg.eigvalsh((features.T @ features).double()).tolist()]
    shares = [value / sum(values) + 1e-7 for value in values]
    assert rankme(features) == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)), rel=1e-4)


def test_rankme_of_equal_or_zero_features_is_one() -> None:
    assert rankme(torch.ones(8, 4)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(8, 4)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
def test_mean_cosine_is_the_mean_over_pairs(shift: float) -> None:
    features = noise(9, 5) + shift
    pairs = [F.cosine_similarity(first, second, dim=0).item() for first, second in combinations(features, 2)]
    assert mean_cosine(features) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_mean_cosine_of_half_precision_features_is_computed_in_full() -> None:
    features = (noise(500, 32) + 1).bfloat16()
    assert mean_cosine(features) == pytest.approx(mean_cosine(features.double()), abs=1e-5)


def test_finite_losses_pass() -> None:
    check_finite({"intact": torch.tensor(1.0, requires_grad=True), "koleo": -2.0}, step=3)


def test_every_loss_that_is_not_finite_is_named() -> None:
    losses = {"intact": torch.tensor(math.nan), "elastic": 1.0, "koleo": -math.inf}
    with pytest.raises(NonFiniteLoss, match=r"^Not finite at step 7: intact = nan, koleo = -inf\.") as error:
        check_finite(losses, step=7)
    assert isinstance(error.value, UserError)


def test_a_state_that_is_not_finite_is_named() -> None:
    state = {"step": 3, "method": {"a": torch.ones(2), "b": torch.tensor([1.0, math.inf])}, "images": "digest"}
    with pytest.raises(NonFinite, match=r"^Not finite after the last step: method\.b; no checkpoint of it is "):
        check_state(state)
    moments = {"state": {0: {"exp_avg": torch.tensor(math.nan), "step": torch.tensor(1)}}, "groups": [{"lr": math.inf}]}
    with pytest.raises(NonFinite, match=r"optimizer\.state\.0\.exp_avg;"):
        check_state({"optimizer": moments})
    check_state({"method": {"mask": torch.tensor([True])}, "numbers": [1, (torch.ones(1), None)]})


def test_features_that_are_not_finite_have_no_measures() -> None:
    features = noise(20, 4)
    features[3, 1] = math.inf
    assert math.isnan(rankme(features))
    assert math.isnan(mean_cosine(features))
    assert math.isfinite(rankme(noise(20, 4) * 1e30))


def test_a_process_raises_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda bad: bad + torch.tensor([0.0, 1.0]))
    with pytest.raises(NonFiniteLoss, match=r"step 7: elastic on another process\."):
        check_finite({"intact": torch.tensor(1.0), "elastic": torch.tensor(2.5)}, step=7)


def test_a_healthy_run_says_nothing() -> None:
    falling = {step: LOG_PROTOTYPES * (1 + 0.2 * math.exp(-step / 200) - step / 10_000) for step in range(0, 3000, 100)}
    assert story(CollapseCheck(cure=CURE, grace_steps=500), falling) == {}


def test_a_loss_that_crosses_the_uniform_one_says_nothing() -> None:
    crossing = {100: LOG_PROTOTYPES * 1.05, 200: LOG_PROTOTYPES, 300: LOG_PROTOTYPES * 0.995, 400: LOG_PROTOTYPES * 0.9}
    assert story(CollapseCheck(cure=CURE, grace_steps=0), crossing) == {}


def test_a_stuck_branch_is_told_once_and_since_when() -> None:
    stuck = {step: LOG_PROTOTYPES * (1.1 if step < 400 else 1.0001) for step in range(0, 2000, 100)}
    told = story(CollapseCheck(cure=CURE, grace_steps=300), stuck)
    assert told == {
        600: [
            "The loss of the elastic student has been ln(prototypes) = 6.24 since step 400: its targets are uniform. "
            + CURE
        ]
    }


def test_nothing_is_told_in_the_grace_period() -> None:
    stuck = dict.fromkeys(range(0, 2000, 100), LOG_PROTOTYPES)
    told = story(CollapseCheck(cure=CURE, grace_steps=1000), stuck)
    assert list(told) == [1000]
    assert "since step 0:" in told[1000][0]


def test_a_symptom_that_comes_back_is_told_again() -> None:
    losses = {step: LOG_PROTOTYPES * (0.9 if 500 <= step < 700 else 1) for step in range(0, 2000, 100)}
    assert list(story(CollapseCheck(cure=CURE, grace_steps=0, num_checks=2), losses)) == [100, 800]


@pytest.mark.parametrize(
    ("rank", "cosine", "sentence"),
    [
        (40.0, 0.995, "almost the same for all images (mean cosine 0.995) since step 0"),
        (1.4, 0.5, "have had about 1.4 dimensions (RankMe) since step 0"),
    ],
)
def test_collapsed_features_are_told(rank: float, cosine: float, sentence: str) -> None:
    fine = dict.fromkeys(range(0, 1000, 100), 4.0)
    told = story(CollapseCheck(cure=CURE, grace_steps=0), fine, rank=rank, cosine=cosine)
    assert list(told) == [200]
    assert len(told[200]) == 1
    assert sentence in told[200][0]


def test_all_symptoms_of_a_collapsed_run_are_told() -> None:
    features = torch.ones(64, 32) + 0.01 * noise(64, 32)
    stuck = dict.fromkeys(range(0, 1000, 100), LOG_PROTOTYPES)
    told = story(CollapseCheck(cure=CURE, grace_steps=0), stuck, rank=rankme(features), cosine=mean_cosine(features))
    assert [len(sentences) for sentences in told.values()] == [3]
