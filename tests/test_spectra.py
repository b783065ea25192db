"""Each number against somebody else's arithmetic, or against features whose answer is known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mimkit.evaluate.spectra import (
    attention_entropy,
    dead_share,
    decay,
    effective_rank,
    lidar,
    rankme,
    uniformity,
)


def cloud(images=200, width=24, seed=0):
    """Features of unlike deviations, not centred."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, width)
    return torch.randn(images, width, generator=generator) * scales + 0.3


# ------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("shape", [(200, 24), (10, 24), (24, 24)])
def test_rankme_is_the_entropy_of_numpys_singular_values(shape):
    features = cloud(*shape)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    expected = math.exp(scipy.stats.entropy(values))
    assert rankme(features) == pytest.approx(expected, rel=1e-6)
    # With the epsilon of the paper's code.
    shares = values / np.abs(values).sum() + 1e-7
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_orthogonal_features_have_their_number_as_rank_and_no_scale_matters():
    basis, _ = torch.linalg.qr(torch.randn(50, 7, dtype=torch.float64))
    assert rankme(basis) == pytest.approx(7)
    assert rankme(1e6 * basis.float()) == pytest.approx(7, rel=1e-5)
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)


@pytest.mark.parametrize("num_classes", [12, 40])
def test_lidar_is_the_entropy_of_scikit_learns_discriminants(num_classes):
    """Its eigenvalues of the same problem, as shares of their sum."""
    generator = torch.Generator().manual_seed(1)
    centres = 3 * cloud(num_classes, 8, seed=2)
    noise = torch.randn(num_classes, 15, 8, generator=generator)
    features = centres[:, None] + noise * torch.linspace(0.3, 2, 8)
    fitted = LinearDiscriminantAnalysis(solver="eigen").fit(
        features.flatten(0, 1).numpy(), np.repeat(np.arange(num_classes), 15)
    )
    expected = math.exp(scipy.stats.entropy(fitted.explained_variance_ratio_))
    assert lidar(features, within=0.0) == pytest.approx(expected, rel=1e-3)
    assert lidar(features) == pytest.approx(expected, rel=2e-3)


def test_lidar_counts_what_renderings_leave_alone():
    """Four directions tell images apart, twelve only renderings: RankMe counts all alike."""
    generator = torch.Generator().manual_seed(3)
    features = torch.zeros(300, 6, 16)
    features[..., :4] = torch.randn(300, 1, 4, generator=generator)
    features[..., 4:] = torch.randn(300, 6, 12, generator=generator)
    assert lidar(features) == pytest.approx(4, abs=0.1)
    assert rankme(features.flatten(0, 1)) > 15


# --------------------------------------------------------------------------------------- spectrum


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("width", [32, 150])
def test_the_exponent_of_a_power_law_is_found(exponent, width):
    """The covariance has the eigenvalues 1, 2^-a, 3^-a, ... exactly."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(400, width, generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(noise - noise.mean(dim=0))
    right, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    deviations = torch.arange(1, width + 1, dtype=torch.float64) ** (-exponent / 2)
    features = left * deviations @ right.T + 5.0
    assert decay(features) == pytest.approx(exponent, abs=1e-6)
    assert decay((7 * features).float()) == pytest.approx(exponent, abs=1e-3)


def test_the_exponent_is_that_of_the_papers_code_where_it_is_no_power_law():
    """numpy's weighted fit of a line, over ranks 4 to 100 with weights 1 / rank."""
    features = cloud(500, 120).double().numpy()
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1][3:100]
    rank = np.arange(4, 101)
    # polyfit multiplies the residuals, of which the squares count.
    slope, _ = np.polyfit(np.log(rank), np.log(values), 1, w=np.sqrt(1 / rank))
    assert decay(torch.from_numpy(features)) == pytest.approx(-slope, rel=1e-6)


def test_a_spectrum_that_ends_early_has_no_exponent():
    few = torch.randn(50, 7, generator=torch.Generator().manual_seed(5))
    assert math.isnan(decay(few))
    assert math.isnan(decay(few @ torch.randn(7, 64)))  # the rest is rounding
    assert math.isnan(decay(torch.randn(1, 64)))


# ----------------------------------------------------------------------------- sphere and features


def test_uniformity_is_the_mean_over_all_pairs():
    features = cloud(40, 6)
    points = features.double().numpy()
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    total = count = 0.0
    for one in range(40):
        for other in range(one):
            total += math.exp(-2 * ((points[one] - points[other]) ** 2).sum())
            count += 1
    assert uniformity(features) == pytest.approx(math.log(total / count), rel=1e-9)


def test_uniformity_of_a_sphere_is_lower_than_of_a_cap():
    directions = torch.randn(500, 8, generator=torch.Generator().manual_seed(6))
    assert uniformity(directions) < uniformity(directions + 2) < 0


def test_dead_features_are_counted():
    features = torch.randn(300, 20, generator=torch.Generator().manual_seed(7))
    assert dead_share(features) == 0
    features[:, :5] = 0
    assert dead_share(features) == 0.25
    features[:, 5] *= 1e-4
    assert dead_share(features) == 0.3


def test_attention_that_is_even_has_entropy_one_and_a_single_patch_zero():
    even = torch.full((3, 16), 1 / 16)
    single = torch.eye(16)
    assert attention_entropy(even) == pytest.approx(1)
    assert attention_entropy(single) == pytest.approx(0)
    shares = torch.rand(9, 5, generator=torch.Generator().manual_seed(8)).softmax(-1)
    expected = scipy.stats.entropy(shares.double().numpy(), axis=1, base=5).mean()
    assert attention_entropy(shares) == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------------------- collapse


def test_features_that_are_all_equal_have_numbers_that_say_so():
    same = torch.full((30, 12), 0.7)
    assert rankme(same) == pytest.approx(1)
    assert lidar(same[:, None].expand(-1, 3, -1)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(decay(same))
    assert uniformity(same) == pytest.approx(0)
    assert dead_share(same) == 1


def test_features_that_are_all_zero_are_no_error():
    zero = torch.zeros(30, 12)
    assert rankme(zero) == 0
    assert lidar(zero[:, None].expand(-1, 3, -1)) == 0
    assert math.isnan(decay(zero))
    assert uniformity(zero) == 0
    assert dead_share(zero) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_gives_none(value):
    broken = cloud(30, 12)
    broken[3, 4] = value
    for number in (rankme, decay, uniformity, dead_share, attention_entropy):
        assert math.isnan(number(broken)), number
    assert math.isnan(lidar(broken.reshape(10, 3, 12)))


@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e30])
def test_features_of_any_scale_are_no_error(scale):
    features = (cloud(30, 12) * scale).reshape(10, 3, 12)
    assert math.isfinite(lidar(features))
    assert rankme(features[:, 0]) == pytest.approx(rankme(cloud(30, 12)[::3]), rel=1e-5)
