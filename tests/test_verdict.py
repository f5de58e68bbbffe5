"""The verdict on planted cases, the worst case, the probes, and scoring over draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advprune import prune
from advprune.core import params
from advprune.core.attack_settings import AttackSettings, ProtocolSettings
from advprune.core.resume import Parts
from advprune.core.train_settings import RecipeSettings
from advprune.data import prepare
from advprune.evaluate.craft import Work, craft, kind_of
from advprune.evaluate.craft import rows as rows_of
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.probes import probes
from advprune.evaluate.records import Scoring, answers, score
from advprune.evaluate.robust import worst_case
from advprune.evaluate.suite import Suite
from advprune.evaluate.verdict import Evidence, Verdict, verdict
from advprune.models.checkpoint import build
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec
from advprune.studies.protocol import Member, Protocol, at_budget
from advprune.training.standard import Trainer

Pair = tuple[torch.Tensor, torch.Tensor]
PARAMS = params.load(Path(__file__).parent.parent / "params.yaml", profile="digits")
FIELD = PARAMS.active().attacks["field"]
SEARCH = {"method": "square", "gradients": 0.0}  # without gradients
STRONGER = "more steps and starts, margin loss, straight through"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Pair]:
    """A network that has learnt the digits, and 96 test images."""
    folder = tmp_path_factory.mktemp("trained")
    limits = {"train_limit": 700, "test_limit": 96}
    splits = prepare(PARAMS.active().data.model_copy(update=limits))
    train, test = splits["train"], splits["test"]
    model = build(
        ModelSpec(
            architecture="resnet18", width=8, channels=1, classes=10, mean=(0.3,), std=(0.37,)
        )
    )
    initialize(model, torch.Generator().manual_seed(0))
    pairs = [(split.images, split.labels) for split in (train, splits["val"])]
    settings = PARAMS.active().train.model_copy(update={"epochs": 12})
    Trainer(model, *pairs, settings, RecipeSettings(), 0, folder / "state.pt").run()
    return model.eval(), (test.images / 255, test.labels)


def judged(
    model: nn.Module, pair: Pair, folder: Path, dense: nn.Module, **suite: list[str]
) -> Verdict:
    """The verdict that the pipeline would give a model, with another suite where one is given."""
    curves = {"curves": {"eps": [0, "24/255", "48/255", "128/255"], "steps": [1, 10, 20]}}
    raw = PARAMS.active().model_dump() | curves
    raw["suite"] = raw["suite"] | suite
    profile = params.Profile.model_validate(raw)

    def run(name: str, subject: nn.Module) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        parts = Parts(folder, name, files=[])
        return Suite(*pair, profile, PARAMS.attack, 0, parts).attack(name, subject)

    records, _ = run("planted", model)
    parent, images = run("dense", dense)
    carried = score(model, pair[0], images["field"] / 255, pair[1])
    return verdict(Evidence(records, "field", 10, carried, worst_case(parent, "field"), None))


class Around(nn.Module):
    """A network with something done to its images or its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Saturated(Around):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e4 * self.model(x)


class Rounded(Around):
    """Pixels rounded to 16 levels, and no gradient through that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x * 15).round() / 15)


class Astray(torch.autograd.Function):
    """The identity, with a gradient of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


class Backwards(Around):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(Astray.apply(x))


def names(found: Verdict) -> set[str]:
    return {check.name for check in found.against}


def test_an_honest_network_is_reliable(trained: tuple[nn.Module, Pair], tmp_path: Path) -> None:
    found = judged(trained[0], trained[1], tmp_path, trained[0])
    assert found.level == "reliable", found.against
    assert len(found.checks) >= 9 and all(c.figure and c.reason for c in found.checks)


@pytest.mark.parametrize("kind", [Saturated, Rounded, Backwards])
def test_a_network_that_hides_its_gradients_is_called_out(
    kind: type[Around], trained: tuple[nn.Module, Pair], tmp_path: Path
) -> None:
    found = judged(kind(trained[0]).eval(), trained[1], tmp_path, trained[0])
    assert found.level == "broken"
    if kind is not Backwards:
        assert "zero gradients" in names(found)
    if kind is not Saturated:  # the margin loss sees through saturation, nothing through these
        assert {"transfer from dense", "gradient-free"} <= names(found)


def test_sap_under_a_single_draw_is_not_reliable_and_under_its_suite_it_is(
    trained: tuple[nn.Module, Pair], tmp_path: Path
) -> None:
    dense, pair = trained
    model = prune("SAP", dense, 1.0).model
    weak = judged(
        model, pair, tmp_path / "a", dense, table=["field"], randomized=["single", "square"]
    )
    assert weak.level == "reliable", weak.against  # `field` averages and goes straight through
    attacks = PARAMS.active().model_dump()["attacks"]
    single = {"field": attacks["single"]}
    assert single["field"]["draws"] == 1 and single["field"]["backward"] is None
    raw = PARAMS.active().model_dump()
    raw["attacks"] = {"field": attacks["single"]}
    raw["suite"] = {"table": ["field"], "transfer": ["field"]}
    raw["curves"] = {"eps": [0, "48/255"], "steps": [1, 10]}
    profile = params.Profile.model_validate(raw)
    suite = Suite(*pair, profile, PARAMS.attack, 0, Parts(tmp_path, "b", files=[]))
    records, _ = suite.attack("planted", model)
    found = verdict(Evidence(records, "field", 10))
    assert found.level == "broken"
    assert {"averaged gradients", STRONGER} <= names(found)


class Forked(nn.Module):
    """One pixel decides. Below grey the margin rises until it is fooled, above there is a trap."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = x[:, 0, 0, 0] - 128 / 255
        rise = torch.where(up < 0, -0.4 * up, 0.2 * up - 2 * up**2) - 0.06
        return torch.stack([torch.zeros_like(rise), rise], 1)


def test_what_only_another_start_finds_is_found() -> None:
    """Half of the starts lie in the trap; of 5 a sample, 3 %."""
    images, labels = torch.full((64, 1, 8, 8), 128 / 255), torch.zeros(64, dtype=torch.int64)
    model, main = Forked(), FIELD.model_copy(update={"draws": 1})
    own = rows_of(model, images, craft(model, images, labels, main), labels, "field")
    more = probes(model, images, labels, main, Work())["probe_stronger"]()
    left = [remnant_accuracy(found).value or 0.0 for found in (own, more)]
    assert 0.3 < left[0] < 0.7 and left[1] < 0.1
    found = verdict(Evidence(pd.concat([own, more]), "field", 2))
    assert found.level == "broken"
    assert STRONGER in names(found)


# --- the checks on planted records ---------------------------------------------------------------


def rows(attack: str, kept: int, n: int = 40, eps: float = 0.2, **columns: Any) -> pd.DataFrame:
    """n images of 4 classes, of which the first `kept` are right under attack."""
    label = np.arange(n) % 4
    right = np.arange(n) < kept
    base = {
        "index": range(n),
        "label": label,
        "attack": attack,
        "method": "pgd",
        "norm": "Linf",
        "eps": eps,
        "steps": 10,
        "draws": 1,
        "forwards": 10.0,
        "gradients": 5.0,
        "clean_pred": label,
        "adv_pred": np.where(right, label, (label + 1) % 4),
        "adv_margin": np.where(right, 1.0, -1.0),
        "adv_single_pred": np.where(right, label, (label + 1) % 4),
        "adv_wrong": np.where(right, 0.0, 1.0),
    }
    return pd.DataFrame(base | columns)


def level(*tables: pd.DataFrame, **more: Any) -> tuple[str, set[str]]:
    square = rows("square", 20, **SEARCH)
    found = verdict(Evidence(pd.concat([rows("main", 4), square, *tables]), "main", 4, **more))
    return found.level, names(found)


@pytest.mark.parametrize(
    ("table", "expected", "check"),
    [
        (rows("probe_noise", 30), "reliable", None),
        (rows("probe_single", 4), "reliable", None),
        (rows("other", 0, **SEARCH), "reliable", None),  # 4 images: not shown
        (rows("probe_gradient", 40, eps=0.0, gradient=1.0), "reliable", None),
        (rows("probe_gradient", 40, eps=0.0, gradient=[0.0] * 2 + [1.0] * 38), "suspect", "zero"),
        (rows("probe_gradient", 40, eps=0.0, gradient=[0.0] * 8 + [1.0] * 32), "broken", "zero"),
        (rows("curve_eps", 20, eps=0.6), "broken", "largest"),
        (rows("curve_eps", 20, eps=0.3), "suspect", "largest"),
    ],
)
def test_each_check_by_planted_records(
    table: pd.DataFrame, expected: str, check: str | None
) -> None:
    found, against = level(table)
    assert found == expected
    assert (not against) if check is None else all(name.startswith(check) for name in against)


def test_weaker_attacks_that_do_more_harm_contradict_the_number() -> None:
    strong = rows("main", 30)
    for name, columns in (("probe_noise", {}), ("probe_single", {}), ("x", SEARCH)):
        table = pd.concat([strong, rows("s", 35, **SEARCH), rows(name, 10, **columns)])
        assert verdict(Evidence(table, "main", 4)).level == "broken", name
    alone = pd.concat([strong, rows("s", 35, **SEARCH)])
    assert verdict(Evidence(alone, "main", 4)).level == "reliable"
    carried = rows("main", 10)
    assert verdict(Evidence(alone, "main", 4, carried)).level == "broken"
    assert verdict(Evidence(strong, "main", 4)).level == "suspect"  # nothing without gradients


def test_curves_that_rise_contradict_and_that_end_lower_cast_doubt() -> None:
    steps = [rows("curve_steps", kept, steps=s) for s, kept in ((1, 10), (5, 4), (50, 4))]
    assert level(*steps)[0] == "reliable"
    risen = [rows("curve_steps", kept, steps=s) for s, kept in ((1, 4), (50, 30))]
    assert level(*risen) == ("broken", {"more steps"})
    main = rows("main", 20)
    square = rows("square", 20, **SEARCH)
    end = rows("curve_steps", 4, steps=50)
    table = pd.concat([main, square, rows("curve_steps", 20, steps=10), end])
    assert verdict(Evidence(table, "main", 4)).level == "suspect"


def test_the_twin_and_frozen_draws_are_checked() -> None:
    assert level(twin_agreement=0.999)[0] == "reliable"
    assert level(twin_agreement=0.9) == ("suspect", {"twin"})
    frozen = rows("probe_frozen", 30)
    found = level(rows("eot", 4, draws=10), frozen, parent=rows("main", 4))
    assert found == ("suspect", {"frozen randomness"})
    assert level(frozen)[1] == {"averaged gradients"}


# --- the worst case ------------------------------------------------------------------------------


def test_the_worst_case_is_taken_image_by_image_within_the_budget() -> None:
    first, second = rows("main", 10), rows("other", 0)
    second.loc[:19, ["adv_pred", "adv_margin"]] = first.loc[:19, ["label"]].assign(m=3.0).to_numpy()
    beyond, curve = rows("large", 0, eps=0.3), rows("curve_eps", 0)
    partly = rows("few", 0).head(5)
    found = worst_case(pd.concat([first, second, beyond, curve, partly]), "main")
    assert remnant_accuracy(found).hits == 5  # right under both, and not among the first five
    assert found.by[:5].tolist() == ["few"] * 5 and (found.attack == "worst_case").all()
    assert found.gradients.tolist() == [15.0] * 5 + [10.0] * 35


def test_robust_rates_by_hand() -> None:
    table = rows("main", 20, adv_wrong=[0.0] * 20 + [0.85] * 10 + [0.9] * 10)
    found = robust_rates(table.assign(adv_single_pred=table.label.where(table.index < 25, 9)))
    assert found["robust_accuracy"] == 0.5
    assert found["robust_accuracy_single_draw"] == 0.625
    assert found["robust_accuracy_9_of_10"] == 0.75


# --- scoring over draws --------------------------------------------------------------------------


def test_randomized_models_are_scored_by_their_mean_logits(
    network: nn.Module, digits: Pair
) -> None:
    from advprune.models.stochastic import Stochastic

    class Planted(Stochastic):
        """Logits of three draws: [0, 1], [0, 1], [5, 0]: the mean says 0, two draws say 1."""

        def __init__(self) -> None:
            super().__init__()
            self.at = 0

        def noisy(self, x: torch.Tensor) -> torch.Tensor:
            self.at += 1
            drawn = [[0.0, 1.0], [0.0, 1.0], [5.0, 0.0]][(self.at - 1) % 3]
            return torch.tensor([drawn]).expand(len(x), 2)

    found = answers(
        "adv", Planted(), digits[0][:2], torch.tensor([0, 1]), Scoring(batch=2, draws=3)
    )
    assert found["adv_pred"].tolist() == [0, 0]
    assert found["adv_single_pred"].tolist() == [1, 1]
    assert found["adv_wrong"] == pytest.approx([2 / 3, 1 / 3])


def test_scores_are_repeatable_and_leave_the_random_state(network: nn.Module, digits: Pair) -> None:
    model = prune("SAP", network, 1.0).model
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    tables = [score(model, digits[0], digits[0], digits[1], seed=s) for s in (0, 0, 1)]
    assert tables[0].equals(tables[1]) and not tables[0].clean_margin.equals(tables[2].clean_margin)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert kind_of(model) == "randomized" and kind_of(network) == "deterministic"


# --- the published protocol ----------------------------------------------------------------------


def test_the_protocol_of_a_deterministic_network_is_plain_fgsm(
    network: nn.Module, digits: Pair
) -> None:
    from advprune import attacks

    settings = ProtocolSettings(
        eps=[0.0, 0.1], draws=5, iterative=AttackSettings(eps=0.2, step=0.05, steps=3)
    )
    course = Protocol(*digits, settings, Work())
    found = course.run(network, {"dense": Member()}, digits, torch.device("cpu"))
    fgsm = found[(found.attack == "fgsm") & (found.eps == 0.1)]
    adv = attacks.to_pixels(
        attacks.pgd(network, *digits, 0.1, 0.1, 1, random_start=False), digits[0], 0.1, "Linf"
    )
    assert fgsm.adv_pred.tolist() == network(adv / 255).argmax(1).tolist()
    assert (found[found.eps == 0].adv_pred == found[found.eps == 0].clean_pred).all()
    assert set(found.attack) == {"fgsm", "iterative"} and (fgsm.gradients == 1).all()


def test_the_protocol_averages_its_draws(network: nn.Module, digits: Pair) -> None:

    settings = ProtocolSettings(
        eps=[0.1],
        draws=7,
        iterative=AttackSettings(eps=0.2, step=0.05, steps=2),
        adaptive={"x": AttackSettings(eps=0.2, step=0.05, steps=2, draws=3, backward="identity")},
    )
    members = {"SAP": Member(family="SAP", setting=1.0, adaptive=True), "dense": Member()}
    course = Protocol(digits[0][:8], digits[1][:8], settings, Work())
    found = course.run(network, members, digits, torch.device("cpu"))
    own = found[found.member == "SAP"]
    assert (own[own.attack == "fgsm"].gradients == 7).all()
    assert (own[own.attack == "x"].gradients == 6).all()
    assert set(found[found.member == "dense"].attack) == {"fgsm", "iterative"}


def test_another_budget_keeps_the_ratio_of_step_to_eps() -> None:
    found = at_budget(FIELD, 0.5 * FIELD.eps)
    assert found.step / found.eps == pytest.approx(FIELD.step / FIELD.eps)
    assert found.steps == FIELD.steps
