"""Each method's idea, much of which has no parameters."""

import itertools

import numpy as np
import pytest
import references
import torch
from torch import nn

from llenhance.methods import METHODS
from llenhance.networks.dln import DLN, Darken, Lighten
from llenhance.networks.enlightengan import Discriminator, EnlightenGAN
from llenhance.networks.lightweight import Auxiliary, Lightweight
from llenhance.networks.neid import NEID, Decoder, halve, lost
from llenhance.networks.residual import Residual, darken


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loud(module: nn.Module) -> nn.Module:
    """Every parameter moved, so that nothing that is zero at first hides a missing path."""
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return module.eval()


def dark(*shape: int) -> torch.Tensor:
    return 0.2 * torch.rand(*shape)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_parameter_counts(method):
    assert count(method.build()) == method.parameters


def test_parameter_counts_of_the_papers():
    assert METHODS["dln"].parameters == 700_586
    assert METHODS["enlightengan"].parameters == 8_636_675
    assert METHODS["lightweight"].parameters <= 1_349
    assert count(Auxiliary()) == 5_619
    assert count(Discriminator(5)) == 11_154_369
    assert count(Discriminator(4)) == 6_959_553
    assert count(Residual(64)) == 869_126
    assert count(NEID(16)) == 2_545_724


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
@torch.no_grad()
def test_shape_and_range(method):
    network = loud(method.build())
    k = method.multiple_of
    for scale in method.scales:
        arguments = {"scale": scale} if len(method.scales) > 1 else {}
        y = network(torch.rand(2, 3, k, 2 * k), **arguments)
        y = y[0] if isinstance(y, tuple) else y
        assert y.shape == (2, 3, k * scale, 2 * k * scale)
        assert 0 <= y.min() <= y.max() <= 1


@pytest.mark.parametrize("name", ["dln", "lightweight", "residual", "neid"])
def test_receptive_radius_is_what_the_row_says(name, monkeypatch):
    """The gradients of output pixels at all places of a cell, whole-picture gates held still."""
    method = METHODS[name]
    network = loud(NEID(4) if name == "neid" else method.build()).double()
    # The largest of a pool's pixels has all of the gradient: of their mean, each has a share.
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", torch.nn.functional.avg_pool2d)
    if name == "dln":  # without the means, which see everything
        for block in network.blocks:
            block.aggregate.squeeze.weight.data.zero_()
    radius, cell = method.receptive_radius, method.multiple_of
    middle = -(-(radius + 1) // cell) * cell
    size = 2 * middle + cell
    x = (torch.rand(1, 3, size, size, dtype=torch.double) * 0.5).requires_grad_()
    if name == "neid":
        network.fusion = references.Unfused()  # it sees the whole picture
        y = network.predict(halve(x))[0]
    else:
        y = network(x)
        y = y[0] if isinstance(y, tuple) else y
    reach = 0
    for place in range(middle, middle + cell):
        (slope,) = torch.autograd.grad(y[0, :, place, place].sum(), x, retain_graph=True)
        seen = (slope[0].abs().sum(0) > 0).nonzero()
        reach = max(reach, (seen - place).abs().max().item())
    assert reach == radius


# --- dln ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_darken_subtracts_what_lighten_adds():
    lighten, darkener = Lighten(), Darken()
    darkener.load_state_dict(lighten.state_dict())
    x = torch.rand(1, 64, 8, 8)
    code = lighten.code(x)
    offset = lighten.offset(code)
    assert torch.equal(lighten(x), lighten.decode(code + offset))
    assert torch.equal(darkener(x), lighten.decode(code - offset))
    assert not torch.allclose(lighten(x), darkener(x))


@torch.no_grad()
def test_dln_predicts_a_residual():
    network = loud(DLN())
    x = dark(1, 3, 16, 16)
    assert not torch.allclose(network(x), x)
    network.tail.weight.zero_()
    network.tail.bias.zero_()
    assert torch.equal(network(x), x)


@torch.no_grad()
def test_dln_sees_the_brightest_channel():
    network = loud(DLN())
    x = dark(1, 3, 16, 16)
    before = network(x)
    network.head[0].conv.weight[:, 3] = 0
    assert not torch.allclose(network(x), before)


# --- lightweight ----------------------------------------------------------------------------------


@torch.no_grad()
def test_lightweight_stages_share_weights_and_use_the_auxiliary_block():
    network, auxiliary = loud(Lightweight()), loud(Auxiliary())
    s = dark(1, 3, 16, 16) + 0.01
    stages = network.stages(s, auxiliary)
    assert len(stages) == 3
    assert torch.equal(stages[0].seen, s)
    features = network.extract(s)
    for before, after in itertools.pairwise(stages):
        assert torch.equal(after.seen, s + auxiliary(before.result))
        assert torch.equal(after.illumination, network.illuminate(features, after.seen))
    assert not torch.allclose(stages[0].illumination, stages[1].illumination)


@torch.no_grad()
def test_lightweight_ships_one_stage_without_the_auxiliary_block():
    network = loud(Lightweight())
    s = dark(1, 3, 16, 16)
    assert torch.equal(network(s), network.stages(s, Auxiliary().eval())[0].result)
    assert not [name for name in network.state_dict() if "auxiliary" in name]


@torch.no_grad()
def test_lightweight_only_brightens():
    network = loud(Lightweight())
    s = torch.rand(1, 3, 32, 32)
    assert (network(s) >= s).all()


@torch.no_grad()
def test_lightweight_starts_with_every_channel_alive_on_dark_pictures():
    for seed in range(5):
        torch.manual_seed(seed)
        network, s = Lightweight().eval(), dark(1, 3, 32, 32)
        features = network.extract(s)
        before = torch.relu(network.in_conv(torch.cat((features, s), 1)))
        for channels in (features, before, network.illuminate(features, s)):
            assert (channels.std((0, 2, 3)) > 0).all()


# --- residual -------------------------------------------------------------------------------------


@torch.no_grad()
def test_residual_is_enhance_of_input_plus_alpha_times_map():
    network = loud(Residual())
    x, alpha = dark(1, 3, 16, 16), 1.7
    enhanced, difference = network(x, alpha)
    assert torch.equal(difference, network.estimate(x))
    y = x + alpha * difference
    assert torch.equal(enhanced, (y + network.enhance(y)).clamp(0, 1))
    assert not torch.allclose(enhanced, network(x, 0.5)[0])


def test_low_light_model():
    image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    for alpha in (0.5, 1.0, 2.0):
        low = darken(image, alpha, 1.3)
        assert low.flatten()[-1] == 1
        assert (low <= image).all()
    assert (darken(image, 2.0, 1.3)[image < 0.4] == 0).all()
    # I' + alpha * I_D gives I back wherever nothing was clipped
    difference = (1 - image**1.3) * image
    torch.testing.assert_close(darken(image, 0.8, 1.3) + 0.8 * difference, image)


# --- neid -----------------------------------------------------------------------------------------


def test_neid_encoder_learns_from_both_decoders():
    network, recovery = NEID(8), Decoder(8)
    small = dark(1, 3, 32, 32)
    for which in ("light", "detail"):
        network.zero_grad()
        enhanced, detail, skips = network.predict(small)
        output = enhanced if which == "light" else recovery(detail, skips)
        assert output.shape == (1, 3, 64, 64)
        output.square().mean().backward()
        grads = [p.grad for p in network.encoder.parameters()]
        assert all(g is not None and g.abs().sum() > 0 for g in grads)


@torch.no_grad()
def test_neid_feature_fusion_is_live():
    network = loud(NEID(8))
    small = dark(1, 3, 32, 32)
    before = network.predict(small)[0]
    network.detail[0].bias += 0.5
    assert not torch.allclose(network.predict(small)[0], before)
    network.fusion = references.Unfused()
    assert not torch.allclose(network.predict(small)[0], before)


def test_neid_ships_without_the_recovery_decoder():
    names = {name.split(".")[0] for name in NEID(8).state_dict()}
    assert names == {"encoder", "detail", "fusion", "decoder"}


@torch.no_grad()
def test_neid_gives_back_what_halving_took():
    network = loud(NEID(8))
    image = dark(1, 3, 64, 64)
    small = halve(image)
    enhanced = network.predict(small)[0]
    torch.testing.assert_close(network(image), (enhanced + lost(image, small)).clamp(0, 1))
    assert lost(image, small).abs().max() > 0.01
    torch.testing.assert_close(network(image, scale=2), network.predict(image)[0].clamp(0, 1))
    flat = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(lost(flat, halve(flat)), torch.zeros_like(flat), atol=1e-6, rtol=0)


@torch.no_grad()
def test_halving_is_pillows_bicubic():
    pil = pytest.importorskip("PIL.Image")
    plane = np.random.default_rng(0).random((40, 60), np.float32)
    expected = np.asarray(pil.fromarray(plane).resize((30, 20), pil.Resampling.BICUBIC))
    found = halve(torch.from_numpy(plane)[None, None])[0, 0].numpy()
    inner = (slice(2, -2), slice(2, -2))  # at the border Pillow renormalises and we reflect
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)


# --- enlightengan ---------------------------------------------------------------------------------


@torch.no_grad()
def test_white_comes_back_unchanged():
    network = loud(EnlightenGAN())
    white = torch.ones(1, 3, 32, 32)
    # Before the clamp, which would hide whatever makes white lighter.
    torch.testing.assert_close(network.predict(white), white, rtol=0, atol=1e-6)
    assert not torch.allclose(network.predict(white, gated=False), white, atol=0.01)
    assert not torch.allclose(network(0.5 * white), 0.5 * white)


@torch.no_grad()
def test_attention_gates_bottleneck_and_skips():
    """Features behind a gate of zero cannot reach the output."""
    network = loud(EnlightenGAN())
    x = dark(1, 3, 32, 32)
    assert not torch.allclose(network.predict(x), network.predict(x, gated=False))
    seen: dict[str, torch.Tensor] = {}
    network.downs[-1].second.register_forward_pre_hook(
        lambda _m, inputs: seen.__setitem__("bottleneck", inputs[0])
    )
    for n, up in enumerate(network.ups):
        up.register_forward_pre_hook(
            lambda _m, inputs, n=n: seen.__setitem__(f"skip{n}", inputs[1])
        )
    half_white = torch.cat((torch.ones(1, 3, 64, 32), dark(1, 3, 64, 32)), 3)
    network(half_white)
    for name, feature in seen.items():
        columns = feature.shape[3] // 2
        assert feature[..., :columns].abs().max() < 1e-5, name
        assert feature[..., columns:].abs().max() > 1e-3, name


# --- the authors' networks ------------------------------------------------------------------------


@torch.no_grad()
def test_sci_inside_ours_is_sci_exactly():
    from llenhance.authors import _SCI, _widen_sci, rename
    from llenhance.checkpoints import fill

    state = references.random_state(references.sci_shapes())
    network = Lightweight()
    fill(network, _widen_sci(rename(state, _SCI), METHODS["lightweight"]), "test")
    y = dark(1, 3, 24, 40).double()
    expected = references.sci({k: v.double() for k, v in state.items()}, y)
    torch.testing.assert_close(network.double().eval()(y), expected, rtol=0, atol=1e-12)
