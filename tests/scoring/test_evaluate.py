"""Evaluation: the metrics are those that they are called, and unlike numbers are not compared."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from cells import run_cells
from conftest import write_store
from safetensors.torch import save_file
from test_features import noise_images, random_inception
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from nppkit import cli, files
from nppkit.data.codes import CodeStore
from nppkit.data.images import mnist_images, reference_pixels
from nppkit.data.npz import read_npz, write_npz
from nppkit.errors import NppkitError
from nppkit.machine import devices
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig
from nppkit.scoring import evaluate, reference
from nppkit.scoring.classifier import DigitClassifier
from nppkit.scoring.config import EvaluationConfig
from nppkit.scoring.contract import check_one_contract, contract, contract_line
from nppkit.scoring.evaluate import frechet_distance, score
from nppkit.scoring.features import extract_features, load_extractor
from nppkit.scoring.reference import Moments, Reference, reference_from_adm
from nppkit.study import graph
from nppkit.study.models import extractor_weights
from nppkit.study.presets import load_preset
from nppkit.study.results import best_guidance
from nppkit.tokenizer import VQModel, reconstruct, to_pixels
from nppkit.tokenizer_config import VQConfig


def draw(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def with_moments(mu: np.ndarray, sigma: np.ndarray, seed: int) -> torch.Tensor:
    """200 features (200, D) that have exactly this mean and covariance."""
    x = draw(200, len(mu), seed).double().numpy()
    white = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(sigma).T + mu)


def make_reference(features: torch.Tensor, **changes) -> Reference:
    moments = Moments()
    moments.add(features)
    made = Reference(moments.mean, moments.sigma, features, np.arange(len(features)), "test", "d" * 64, "digits", "e" * 64)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def digits(tmp_path):
    torch.manual_seed(0)
    save_file(DigitClassifier().state_dict(), tmp_path / "digits.safetensors")
    return load_extractor("digits", tmp_path / "digits.safetensors")


def test_frechet_closed_form():
    """Between Gaussians of known moments the distance is the closed form, with and without a shared basis."""
    zero, one = np.zeros(2), np.array([1.0, -2.0])
    a, b = np.diag([4.0, 9.0]), np.array([[2.0, 0.7], [0.7, 1.0]])
    same_basis = frechet_distance(with_moments(zero, a, 0), with_moments(one, np.diag([1.0, 16.0]), 1))
    assert same_basis == pytest.approx(5 + (2 - 1) ** 2 + (3 - 4) ** 2, abs=1e-9)
    trace_root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))  # of a 2 x 2 matrix
    expected = 5 + np.trace(a) + np.trace(b) - 2 * trace_root
    reference = make_reference(draw(10, 2), mu=one, sigma=b)
    assert frechet_distance(with_moments(zero, a, 0), reference) == pytest.approx(expected, abs=1e-9)


class Images(torch.utils.data.Dataset):
    """uint8 images (n, 3, S, S) as torch-fidelity takes them."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.pixels[i]


def shades(n: int, high: float, seed: int) -> torch.Tensor:
    """Images (n, 3, 32, 32) of brightness up to `high`, each with its own noise."""
    levels = torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * high
    return (levels + noise_images(n, seed=seed) * 0.2).to(torch.uint8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_torch_fidelity_agrees(digits, tmp_path, monkeypatch):
    """All five numbers are those of torch-fidelity's own command on the same images, generated first."""
    monkeypatch.setattr(evaluate, "IS_SPLIT", 30)
    generated, real = shades(90, 120, seed=1), shades(70, 200, seed=2)
    theirs = calculate_metrics(
        input1=Images(generated),
        input2=Images(real),
        feature_extractor="digits",
        feature_extractor_weights_path=str(tmp_path / "digits.safetensors"),
        **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
        **{f"feature_layer_{metric}": "logits" if metric == "isc" else "features" for metric in ("isc", "fid", "kid", "prc")},
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        **{"isc_splits": 3, "kid_subset_size": 70, "kid_subsets": 4},
    )
    reference = make_reference(extract_features(digits, real)["features"])
    ours = score(extract_features(digits, generated), reference, kid_subsets=4)
    names = ["frechet_inception_distance", "inception_score_mean", "kernel_inception_distance_mean", "precision", "recall"]
    assert list(ours) == ["fid", "inception_score", "kid", "precision", "recall"]
    assert 0 < ours["recall"] < ours["precision"]
    np.testing.assert_allclose(list(ours.values()), [theirs[name] for name in names], rtol=1e-4, atol=1e-8)


def test_mode_collapse():
    """Samples from one mode of two are all plausible, but miss half of the data; from one point, nearly all of it."""
    real = torch.cat([draw(150, 4), draw(150, 4, 1) + 30])
    one_mode, one_point = draw(300, 4, 2) * 0.5, real[:1] + draw(300, 4, 3) * 1e-3
    found = [score({"features": f, "logits": draw(300, 3)}, make_reference(real)) for f in (one_mode, one_point)]
    assert found[0]["precision"] > 0.95 and 0.1 < found[0]["recall"] < 0.51
    assert found[1]["precision"] == 1 and found[1]["recall"] < 0.02


def test_identical_sets():
    """A set is at no distance from itself, and covers itself."""
    features = draw(300, 8)
    found = score({"features": features, "logits": draw(300, 3)}, make_reference(features))
    assert found["fid"] == pytest.approx(0, abs=1e-6) and abs(found["kid"]) < 0.1
    assert (found["precision"], found["recall"]) == (1, 1)


def test_inception_score_of_known_classes():
    """Sure and even over C classes scores C; undecided scores 1."""
    reference, features = make_reference(draw(20, 4)), draw(20, 4)
    sure = score({"features": features, "logits": 100 * torch.eye(5).repeat(4, 1)}, reference)
    undecided = score({"features": features, "logits": torch.zeros(20, 5)}, reference)
    assert (sure["inception_score"], undecided["inception_score"]) == pytest.approx((5, 1))


def test_inception_score_in_splits(monkeypatch):
    """The score is the mean over shuffled splits of ADM's size, as torch-fidelity makes them."""
    monkeypatch.setattr(evaluate, "IS_SPLIT", 20)
    logits = 3 * draw(65, 5).sort(0).values
    found = score({"features": draw(65, 4), "logits": logits}, make_reference(draw(20, 4)))["inception_score"]
    assert found == isc_features_to_metric(logits, splits=3)["inception_score_mean"]
    for other in ({"splits": 3, "shuffle": False}, {"splits": 1}):
        assert found != pytest.approx(isc_features_to_metric(logits, **other)["inception_score_mean"], rel=1e-4)


def test_kid_in_subsets_of_a_thousand():
    """The subsets are torch-fidelity's own thousand, or all images where there are fewer."""
    for n, subset in ((1010, 1000), (150, 150)):
        generated, real = draw(n, 2), draw(n, 2, 1) + 1
        found = score({"features": generated, "logits": draw(n, 3)}, make_reference(real), kid_subsets=2)["kid"]
        theirs = kid_features_to_metric(generated, real, kid_subsets=2, kid_subset_size=subset, verbose=False)
        assert found == theirs["kernel_inception_distance_mean"]


def test_fid_is_against_the_moments():
    """FID compares with mu and sigma of all images, the other metrics with the kept features."""
    features = draw(50, 4)
    generated = {"features": features, "logits": draw(50, 3)}
    plain = score(generated, make_reference(features))
    moved = score(generated, make_reference(features, mu=make_reference(features).mu + 3))
    assert moved["fid"] - plain["fid"] == pytest.approx(4 * 9)
    assert {**moved, "fid": plain["fid"]} == plain
    away = score(generated, dataclasses.replace(make_reference(features), features=features + 100))
    assert away["fid"] == plain["fid"] and away["precision"] == away["recall"] == 0 and away["kid"] > 1


def test_unfit_features():
    """Too few images, and features that are not finite, are refused."""
    reference = make_reference(draw(20, 4))
    with pytest.raises(NppkitError, match="3 images against 20 cannot be scored"):
        score({"features": draw(3, 4), "logits": draw(3, 2)}, reference)
    with pytest.raises(NppkitError, match="not finite"):
        score({"features": draw(9, 4), "logits": torch.full((9, 2), torch.nan)}, reference)


def test_inception_against_an_adm_file(tmp_path):
    """The path of the paper's numbers, with random weights: samples against the moments and images of an ADM file."""
    random_inception(tmp_path / "inception.pth")
    extractor = load_extractor("inception-v3-compat", tmp_path / "inception.pth", files.sha256(tmp_path / "inception.pth"))
    pixels = noise_images(4, 16)
    features = extract_features(extractor, pixels)["features"].double().numpy()
    images = pixels.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=features.mean(0) + 0.5, sigma=np.cov(features, rowvar=False))
    reference = reference_from_adm(tmp_path / "adm.npz", extractor)
    write_npz(tmp_path / "samples.npz", pixels)
    found = evaluate.evaluate_npz(tmp_path / "samples.npz", extractor, reference, 16, kid_subsets=1)
    assert found["fid"] == pytest.approx(2048 * 0.25, rel=1e-4)
    assert (found["precision"], found["recall"]) == (1, 1) and 1 <= found["inception_score"] <= 4
    assert found["contract"]["extractor_sha256"] == files.sha256(tmp_path / "inception.pth")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = VQConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=4)
    gpt = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=16, num_classes=3, grid_size=4, multiple_of=16))
    return gpt.eval(), VQModel(sizes).eval()


def test_both_roles_have_all_settings():
    """Images are drawn alike to select and to report, in all but their number and their seed; the reported ones come last."""
    settings = dict(temperature=0.9, top_k=3, top_p=0.8, compile=True)
    config = EvaluationConfig(samples=7, select_samples=5, report_seed=4, select_seed=6, **settings)
    select, report = (evaluate.SamplingConfig(cfg_scale=1.5, shares=(0.75, 0.25), seed=seed, **settings) for seed in (6, 4))
    found = evaluate.sampling_roles(config, 1.5, (0.75, 0.25))
    assert list(found.items()) == [("select", (select, 5)), ("report", (report, 7))]


def test_reported_images_are_kept(models, digits, tmp_path):
    """The images written for ADM's script are those of the reported numbers: scored from the file, they give the same."""
    config = EvaluationConfig(samples=12, select_samples=6, batch_size=5, kid_subsets=2, save_npz=True)
    reference = make_reference(extract_features(digits, noise_images(9))["features"])
    row = evaluate.evaluate_guidance(*models, digits, reference, config, 1.5, 10, folder=tmp_path)
    found = evaluate.evaluate_npz(tmp_path / "samples_cfg1.5.npz", digits, reference, 10, kid_subsets=2)
    assert {key: found[key] for key in ("fid", "kid", "precision", "recall", "inception_score")}.items() <= row.items()
    assert (row["cfg_scale"], found["contract"]["samples"]) == (1.5, 12) and row["select_fid"] != row["fid"]
    reported = extract_features(digits, read_npz(tmp_path / "samples_cfg1.5.npz"))["features"]
    assert row["repeat_fid"] == frechet_distance(reported[:6], reference) != row["fid"]  # as many as were drawn to select
    evaluate.evaluate_guidance(*models, digits, reference, dataclasses.replace(config, save_npz=False), 2.0, 10, folder=tmp_path)
    assert not (tmp_path / "samples_cfg2.npz").exists()


@pytest.mark.parametrize(("believed", "agreement"), [(range(12), 1.0), (range(9), 0.75)])
def test_agreement_is_with_the_labels(models, digits, monkeypatch, believed, agreement):
    """The share of reported images whose class is the one that the classifier believes in most."""
    logits = torch.nn.functional.one_hot(torch.from_numpy(evaluate.sample_labels(np.arange(12), 3, 0)), 3).float()
    logits *= torch.tensor([1.0 if i in believed else -1.0 for i in range(12)])[:, None]
    monkeypatch.setattr(evaluate, "extract_features", lambda *_: {"features": draw(12, 4), "logits": logits})
    config = EvaluationConfig(samples=12, select_samples=12, kid_subsets=1)
    row = evaluate.evaluate_guidance(*models, digits, make_reference(draw(9, 4)), config, 1.0, 8)
    assert row["agreement"] == agreement


def test_an_evaluation_draws_labels_in_their_shares(models, digits):
    """Where one class has all of the share, all images are of it, those to select and those to report."""
    seen = []

    def draw_codes(model, labels, config, index):
        seen.extend(labels.tolist())
        return evaluate.sample_codes(model, labels, config, index)

    reference = make_reference(extract_features(digits, noise_images(9))["features"])
    config, shares = EvaluationConfig(samples=8, select_samples=6, kid_subsets=1), (1.0, 0.0, 0.0)
    evaluate.evaluate_guidance(*models, digits, reference, config, 1.0, 8, draw=draw_codes, shares=shares)
    assert seen == [0] * 14


def test_agreement_needs_the_classes_of_the_data(models, digits):
    """An extractor that knows other classes than the data's has no agreement to report."""
    reference = make_reference(extract_features(digits, noise_images(9))["features"])
    digits.name = "efficientnet-lite0"
    row = evaluate.evaluate_guidance(*models, digits, reference, EvaluationConfig(samples=5), 1.0, 8)
    assert row["agreement"] is None


def test_batch_size_does_not_matter(models):
    """Image i depends on the seed and on i alone."""
    sampling = evaluate.SamplingConfig(cfg_scale=1.5, seed=3)
    whole, labels = evaluate.generate(*models, sampling, 7, 7)
    parts, part_labels = evaluate.generate(*models, sampling, 5, 2)
    assert torch.equal(parts, whole[:5]) and torch.equal(part_labels, labels[:5])


def test_class_samples_can_be_compared(models):
    """Column c is class c, and image i has the noise of sample i: another number of rows shows the same first images."""
    sampling = evaluate.SamplingConfig(seed=3)
    whole = evaluate.class_samples(*models, sampling, 3, rows=4)
    assert torch.equal(evaluate.class_samples(*models, sampling, 3, rows=2), whole[:6])
    codes = evaluate.sample_codes(models[0], torch.tensor([2]), sampling, np.array([5]))
    assert torch.equal(evaluate.to_pixels(models[1].decode(codes)), whole[5:6])


def test_frames_of_videos(models):
    """Of a model on a grid of three axes the images are the frames of one video after the other, each with the video's label."""
    _, decoder = models
    torch.manual_seed(0)
    config = GPTConfig(dim=24, n_layer=1, n_head=2, vocab_size=16, num_classes=3, grid_size=(2, 4, 4), multiple_of=16)
    model, sampling, index = GPT(config).eval(), evaluate.SamplingConfig(seed=3), np.arange(3)
    pixels, labels = evaluate.generate(model, decoder, sampling, 3, 2)
    wanted = torch.from_numpy(evaluate.sample_labels(index, 3, sampling.seed))
    assert len(wanted.unique()) > 1 and labels.tolist() == [label for label in wanted.tolist() for _ in range(2)]
    codes = evaluate.sample_codes(model, wanted, sampling, index)
    assert torch.equal(pixels[3:4], evaluate.to_pixels(decoder.decode(codes[1:2, 16:])))  # the second frame of the second
    assert len(evaluate.class_samples(model, decoder, sampling, 3, rows=1)) == 6


def test_contract(digits):
    """A contract names the weights and the reference by digest, not by path, and knows how samples were drawn."""
    reference = make_reference(draw(9, 4))
    terms = contract(EvaluationConfig(samples=7, reference="/a/path.npz", save_npz=True), reference, 32)
    assert terms == contract(EvaluationConfig(samples=7), reference, 32)
    known = {"samples": 7, "extractor": "digits", "extractor_sha256": "e" * 64, "reference_sha256": "d" * 64}
    assert known.items() <= terms.items()
    line = contract_line(terms)
    for text in ("7 samples", "side 32", "digits (sha256 eeeeeeeeeeee)", "test (sha256 dddddddddddd)", "seed 0"):
        assert text in line
    assert "\n" not in line and "torch-fidelity 0.4" in line


def test_label_shares(tmp_path):
    """Labels follow unequal classes, 3 to 1 here; a preset may say uniform; a random part of equal classes is equal."""

    def store(name, labels):
        folder = write_store(tmp_path / name, n=len(labels))
        np.save(folder / "labels.npy", np.array(labels, np.int64))
        return CodeStore(folder)

    many, some, none = store("many", [0, 0, 0, 1, 2, 2]), store("some", [1, 1, 2]), store("none", [])
    for heldout in (none, store("unequal", [0, 0, 1])):
        assert evaluate.label_shares("data", many, heldout) == (1 / 2, 1 / 6, 1 / 3)  # of what was trained on, not of all
    assert evaluate.label_shares("uniform", many, none) == evaluate.label_shares("data", many, some) == ()
    reference = make_reference(draw(9, 4))
    drawn, uniform = (contract(EvaluationConfig(), reference, 32, shares) for shares in ((0.5, 0.25, 0.25), ()))
    assert drawn["label_shares"] == [0.5, 0.25, 0.25] and "in the shares of the training images" in contract_line(drawn)
    assert "labels uniform over classes" in contract_line(uniform)
    with pytest.raises(NppkitError, match="evaluated with another label"):
        check_one_contract({"a": drawn, "b": uniform})


UNLIKE = [{"samples": 9}, {"temperature": 0.9}, {"report_seed": 5}, {"reference_sha256": "f" * 64}, {"more": 1}]


@pytest.mark.parametrize("changed", UNLIKE, ids=lambda changed: next(iter(changed)))
def test_unlike_contracts(changed):
    """Runs that were evaluated unlike each other are refused by name, whichever of them lacks a term."""
    terms = contract(EvaluationConfig(), make_reference(draw(9, 4)), 32)
    check_one_contract({"a": terms, "b": dict(terms), "c": dict(terms)})
    for contracts in ({"a": terms, "b": terms | changed}, {"a": terms | changed, "b": terms}):
        with pytest.raises(NppkitError, match=f"b and a were evaluated with another {next(iter(changed))}"):
            check_one_contract(contracts)


def test_larger_samples_are_resized_as_llamagen_does(models):
    """The 384 rows, seen at 256: bicubic without antialias, of what is decoded and not of rounded pixels."""
    codes = torch.randint(models[1].config.codebook_size, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = models[1].decode(codes)
        theirs = torch.nn.functional.interpolate(images, size=(6, 6), mode="bicubic")
        theirs = torch.clamp(127.5 * theirs + 128.0, 0, 255).to(torch.uint8)
        assert torch.equal(evaluate.decode_pixels(models[1], codes, side=6), theirs) and images.shape[-1] != 6
        assert torch.equal(evaluate.decode_pixels(models[1], codes), to_pixels(images))
    sampled, _ = evaluate.generate(*models, SamplingConfig(), 5, 2, side=6)
    assert sampled.shape == (5, 3, 6, 6)


def test_sampling_goes_on_where_the_compiler_fails(models, monkeypatch):
    """As training does: one line, the same codes, and no second try."""
    devices._run_eagerly.cache_clear()
    tried, config, labels = [], SamplingConfig(compile=True), torch.tensor([0, 1, 2])

    def fail(*args):
        tried.append(args)
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr("nppkit.sample.compiled_decoder", fail)
    with pytest.warns(UserWarning, match=r"torch\.compile failed .*: this runs eagerly"):
        codes = [evaluate.draw_codes(models[0], labels, config, np.arange(3)) for _ in range(2)]
    assert len(tried) == 1 and torch.equal(*codes)
    assert torch.equal(codes[0], evaluate.sample_codes(models[0], labels, SamplingConfig(), np.arange(3)))
    devices._run_eagerly.cache_clear()


def test_parts_of_a_large_reference_tell_the_same(monkeypatch):
    """Precision and recall of many images are measured part by part."""
    reference, generated = make_reference(draw(40, 4)), draw(30, 4, seed=1)
    whole = evaluate.precision_recall(generated, reference)
    evaluate.reference_radii.cache_clear()
    monkeypatch.setattr(evaluate, "_parts", lambda rows, columns: rows.split(7))
    assert evaluate.precision_recall(generated, reference) == whole and 0 < whole[1] < 1


def test_resize_in_parts():
    """Images are resized one like another, kept as they are at their own side, and stay within the range of uint8."""
    pixels = noise_images(501, 6)
    larger = evaluate.resize(pixels, 9)
    assert larger.shape == (501, 3, 9, 9) and larger.dtype == torch.uint8
    assert torch.equal(larger[-1:], evaluate.resize(pixels[-1:], 9)) and evaluate.resize(pixels, 6) is pixels
    exact = torch.nn.functional.interpolate(pixels.float(), size=(9, 9), mode="bicubic", antialias=True)
    assert exact.min() < -1 and exact.max() > 256  # bicubic overshoots
    torch.testing.assert_close(larger.float(), exact.clamp(0, 255), rtol=0, atol=0.501)


def test_best_guidance():
    """The scale is chosen on the selecting seed, whatever the reported one says."""
    rows = [{"cfg_scale": 1.0, "select_fid": 3.0, "fid": 1.0}, {"cfg_scale": 2.0, "select_fid": 2.0, "fid": 5.0}]
    assert best_guidance(rows) == 2.0


def test_nearest():
    """The nearest reference feature of each feature."""
    reference = torch.eye(4)
    assert evaluate.nearest(reference[[2, 0]] * 0.9, reference).tolist() == [2, 0]


def test_reconstructions(models, digits, smoke, monkeypatch):
    """Images are encoded at the codes' side and looked at with the data's, in parts like all at once."""
    monkeypatch.setattr(reference, "CHUNK", 3)
    training = mnist_images().subset(np.arange(7))
    given = {"training": training, "side": 8, "model": models[1], "extractor": digits}
    sizes = dataclasses.replace(smoke.data, image_size=12)
    study = dataclasses.replace(smoke, data=sizes, evaluation=dataclasses.replace(smoke.evaluation, samples=7, select_samples=7))
    made = run_cells("tokenize", "reconstructions", study=study, **given)
    decoded = reconstruct(models[1], torch.from_numpy(reference_pixels(made["some"], 8)))
    torch.testing.assert_close(made["rebuilt"], extract_features(digits, evaluate.resize(decoded, 12))["features"])


def test_decoding_is_fp32(models):
    """Codes may be drawn in bf16; the pixels are the fp32 decoder's."""
    codes = torch.randint(0, 16, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        within = evaluate.decode_pixels(models[1], codes)
        assert not torch.equal(to_pixels(models[1].decode(codes)), within)
    with torch.inference_mode():
        assert torch.equal(to_pixels(models[1].decode(codes)), within)


def test_command_line(home, digits, capsys):
    """Anyone's npz of images is scored with a preset's extractor and reference; the contract comes with the numbers."""
    save_file(digits.classifier.state_dict(), home / "digits.safetensors")
    smoke = load_preset("smoke")
    (graph.tokenizer_dir(smoke)).mkdir(parents=True)
    (home / "digits.safetensors").rename(extractor_weights(smoke))
    write_npz(home / "theirs.npz", noise_images(20))
    assert cli.call(["evaluate", "smoke", str(home / "theirs.npz"), "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fid"] > 0 and found["contract"]["samples"] == 20 and found["contract"]["reference_images"] == 500
    assert "resized_from" not in found["contract"]
    write_npz(home / "theirs.npz", noise_images(20, 20))
    assert cli.call(["evaluate", "smoke", str(home / "theirs.npz"), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["contract"]["resized_from"] == 20
    write_npz(home / "theirs.npz", noise_images(20, 40)[:, :, :32])
    assert cli.call(["evaluate", "smoke", str(home / "theirs.npz"), "--device", "cpu"]) == 1
    assert "theirs.npz: images of 32 x 40 pixels would be distorted" in capsys.readouterr().err
