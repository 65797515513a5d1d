"""Claims: verdicts follow the numbers, in both directions, and without numbers there is none."""

import dataclasses

import pytest
from test_tables import finish

from nppkit import cli
from nppkit.study import claims
from nppkit.study.claims import CONTRADICTED, NOT_HERE, NOT_RUN, ONE_SEED, OPEN, REPRODUCED
from nppkit.study.runs import Run

NPP = Run("B", patch_size=2, lam="1/2")


@pytest.fixture
def judged(home, smoke):
    """Up to three seeds of B with the given FIDs of both methods (and whatever else), judged: judged(ntp, npp) -> verdicts."""

    def judge(ntp, npp, **values):
        preset = dataclasses.replace(smoke, seeds={"B": 3})
        for seed, (a, b) in enumerate(zip(ntp, npp, strict=True)):
            finish(preset, Run("B", seed=seed), fid=a)
            finish(preset, dataclasses.replace(NPP, seed=seed), fid=b, **{"flops": 0.58e12, **values})
        return claims.verdicts(preset)["verdict"].tolist()

    return judge


def test_nothing_is_claimed_without_results(home, smoke):
    """Without runs only what the paper's own tables say is judged."""
    found = claims.verdicts(smoke)["verdict"].tolist()
    assert [found[i] for i in (0, 1, 2, 3, 7, 8, 9)] == [NOT_RUN] * 7
    assert [found[i] for i in (4, 5, 6, 10)] == [CONTRADICTED] * 4


@pytest.mark.parametrize(
    ("npp", "verdict"),
    [([9.0, 19.1, 29.0], REPRODUCED), ([11.0, 21.1, 31.0], NOT_HERE), ([9.0, 22.0, 30.0], OPEN), ([9.0], ONE_SEED)],
)
def test_fid(judged, npp, verdict):
    """FID: lower in every seed is reproduced, higher is not, and differences of both signs, and one seed, give no verdict."""
    assert judged([10.0, 20.0, 30.0][: len(npp)], npp)[1] == verdict


def test_cost(judged):
    """The cost claim fails when the measured FLOPs do."""
    assert judged([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])[0] == REPRODUCED
    assert judged([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], flops=0.9e12)[0] == NOT_HERE


def test_larger_patches(home, smoke):
    """Claim 8 holds when p = 4 is worse than p = 2, and not when it is better."""
    preset = dataclasses.replace(smoke, seeds={"B": 3})
    for shift, verdict in ((1.0, REPRODUCED), (-1.0, NOT_HERE)):
        for seed in range(3):
            finish(preset, dataclasses.replace(NPP, seed=seed), fid=10.0 + seed)
            finish(preset, Run("B", patch_size=4, lam="1/2", seed=seed), fid=10.0 + seed + shift + 0.01 * seed)
        assert claims.larger_patches(preset).verdict == verdict


@pytest.mark.parametrize(("flops", "verdict"), [(0.5e12, REPRODUCED), (0.7e12, NOT_HERE)])
def test_more_levels(home, smoke, flops, verdict):
    """Claim 10 holds when four levels are worse than two and cheaper, and not when they cost more."""
    preset = dataclasses.replace(smoke, seeds={"B": 3}, runs={"B": ["ntp", "npp_p2_lambda1-2", "npp_L4_lambda1-2"]})
    for seed in range(3):
        finish(preset, dataclasses.replace(NPP, seed=seed), fid=10.0 + seed, flops=0.6e12)
        finish(preset, Run("B", levels=4, lam="1/2", seed=seed), fid=11.0 + 1.01 * seed, flops=flops)
    found = claims.more_levels(preset)
    assert found.verdict == verdict and f"FLOPs ratio: B {flops / 0.6e12:.3f}" in found.numbers


def test_published_tables_decide_alone():
    """The numbers named are the paper's: VAR, DiT and StyleGAN-XL are ahead, XL and XXL are behind the 384 models."""
    ahead = claims.state_of_the_art(None).numbers
    assert all(name in ahead for name in ("VAR-d24", "DiT-XL/2", "StyleGAN-XL")) and "ADM" not in ahead
    assert claims.against_384(None).numbers == "published FID: XL 2.65 against 2.62, XXL 2.55 against 2.34"
    assert claims.model_range(None).numbers.endswith("1.4B")


def test_markdown_links_the_evidence(home, smoke):
    """Every claim links a notebook of the repository."""
    table = claims.verdicts(smoke)
    text = claims.as_markdown(table)
    assert len(table) == 12 and text.count("\n") == 13 and "(table1_main.ipynb)" in text


def test_readme_says_what_equal_flops_give(home, smoke):
    """The interval of NPP's longer runs against next-token prediction; nothing where there are none."""
    preset = dataclasses.replace(smoke, seeds={"B": 2}, runs={"B": ["ntp", "npp_p2_lambda1-2_epochs515"]})
    preset = dataclasses.replace(preset, equal_flops={"B": (175, 515)})
    assert "equal" not in claims.for_readme(preset)
    for seed in range(2):
        finish(preset, Run("B", seed=seed), fid=10.0)
        finish(preset, dataclasses.replace(NPP, epochs=515, seed=seed), fid=8.0 + seed)
    assert "at equal training FLOPs, FID of NPP minus NTP's: B -1.5 [-7.9, 4.9] ([equal" in claims.for_readme(preset)


def test_readme_table_is_rewritten_in_place(home, smoke, tmp_path):
    """The command replaces what stands between the marks, and nothing else; a second time changes nothing."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{claims.MARK}\nold\n{claims.MARK}\nafter\n")
    assert cli.call(["verdicts", "smoke", str(path)]) == 0
    text = path.read_text()
    assert text == f"before\n{claims.MARK}\n{claims.for_readme(smoke)}\n{claims.MARK}\nafter\n"
    assert "(notebooks/table1_main.ipynb)" in text
    assert cli.call(["verdicts", "smoke", str(path)]) == 0
    assert path.read_text() == text
