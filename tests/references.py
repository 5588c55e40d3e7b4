"""The authors' networks once more, written from their published key layouts alone.

Plain functions of a state dict, with no module of the package: what an import is compared with.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


class Unfused(nn.Module):
    """In place of NEID's feature fusion: the bottleneck goes on as it is."""

    def forward(self, bottleneck: Tensor, detail: Tensor, mean: Tensor) -> Tensor:  # noqa: ARG002
        return bottleneck


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random numbers of moderate size, so that outputs neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 16
            state[name] = torch.randn(shape, generator=generator) / fan**0.5
    return state


def _conv(shapes: dict[str, tuple[int, ...]], name: str, o: int, i: int, size: int) -> None:
    shapes[f"{name}.weight"] = (o, i, size, size)
    shapes[f"{name}.bias"] = (o,)


# --- DLN (METHODS 1.6) ----------------------------------------------------------------------------


def dln_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, o: int, i: int, size: int) -> None:
        _conv(shapes, f"{name}.conv", o, i, size)
        shapes[f"{name}.act.weight"] = (1,)

    block("feat1", 128, 4, 3)
    block("feat2", 64, 128, 3)
    for n, channels in ((1, 64), (2, 128), (3, 192)):
        name = f"feat_out_{n}"
        shapes[f"{name}.fusion.fc.0.weight"] = (channels // 16, channels)
        shapes[f"{name}.fusion.fc.2.weight"] = (channels, channels // 16)
        block(f"{name}.fusion.outlayer", 64, channels, 1)
        for unit in ("conv1_1", "conv2", "conv3"):
            block(f"{name}.{unit}.conv_Encoder", 32, 64, 3)
            block(f"{name}.{unit}.conv_Offset", 32, 32, 3)
            block(f"{name}.{unit}.conv_Decoder", 64, 32, 3)
        block(f"{name}.local_weight1_1", 64, 64, 1)
        block(f"{name}.local_weight2_1", 64, 64, 1)
    block("feature", 64, 256, 3)
    _conv(shapes, "out", 3, 64, 3)
    return shapes


def dln(state: State, x: Tensor) -> Tensor:
    def cb(name: str, value: Tensor) -> Tensor:
        kernel = state[f"{name}.conv.weight"]
        value = F.conv2d(value, kernel, state[f"{name}.conv.bias"], padding=kernel.shape[2] // 2)
        return F.prelu(value, state[f"{name}.act.weight"])

    def shift(name: str, value: Tensor, sign: int) -> Tensor:
        code = cb(f"{name}.conv_Encoder", value)
        return cb(f"{name}.conv_Decoder", code + sign * cb(f"{name}.conv_Offset", code))

    brightness = x.max(1, keepdim=True).values
    features = [cb("feat2", cb("feat1", torch.cat(((x - 0.5) * 2, brightness), 1)))]
    for n in (1, 2, 3):
        name = f"feat_out_{n}"
        joined = torch.cat(features, 1)
        gate = joined.mean((2, 3)) @ state[f"{name}.fusion.fc.0.weight"].T
        gate = torch.sigmoid(torch.relu(gate) @ state[f"{name}.fusion.fc.2.weight"].T)
        entry = cb(f"{name}.fusion.outlayer", joined * (1 + gate)[..., None, None])
        light = shift(f"{name}.conv1_1", entry, +1)
        dark = shift(f"{name}.conv2", light, -1)
        lost = cb(f"{name}.local_weight1_1", entry) - dark
        again = shift(f"{name}.conv3", lost, +1)
        features.append(cb(f"{name}.local_weight2_1", light) + again)
    merged = cb("feature", torch.cat(features, 1))
    y = x + F.conv2d(merged, state["out.weight"], state["out.bias"], padding=1)
    return y.clamp(0, 1)


# --- EnlightenGAN (METHODS 2.7) -------------------------------------------------------------------


def enlightengan_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    down = [4, 32, 64, 128, 256, 512]
    up = [512, 256, 128, 64, 32]
    for n in range(1, 10):
        inputs, outputs = (down[n - 1], down[n]) if n <= 5 else (up[n - 6], up[n - 5])
        _conv(shapes, f"conv{n}_1", outputs, inputs, 3)
        _conv(shapes, f"conv{n}_2", outputs, outputs, 3)
        for k in (1, 2):
            if (n, k) == (9, 2):
                continue
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"bn{n}_{k}.{part}"] = (outputs,)
            shapes[f"bn{n}_{k}.num_batches_tracked"] = ()
    for n in range(5, 9):
        _conv(shapes, f"deconv{n}", up[n - 4], up[n - 5], 3)
    shapes["conv10.weight"] = (3, 32, 1, 1)
    shapes["conv10.bias"] = (3,)
    return shapes


def enlightengan(state: State, x: Tensor) -> Tensor:
    def conv(name: str, value: Tensor) -> Tensor:
        kernel = state[f"{name}.weight"]
        return F.conv2d(value, kernel, state[f"{name}.bias"], padding=kernel.shape[2] // 2)

    def unit(n: int, k: int, value: Tensor) -> Tensor:
        value = F.leaky_relu(conv(f"conv{n}_{k}", value), 0.2)
        name = f"bn{n}_{k}"
        if f"{name}.weight" not in state:
            return value
        statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(value, *statistics, state[f"{name}.weight"], state[f"{name}.bias"])

    signed = 2 * x - 1
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    attention = 1 - (0.299 * r + 0.587 * g + 0.114 * b)
    gates = [attention]
    for _ in range(4):
        gates.append(F.max_pool2d(gates[-1], 2))
    value, skips = torch.cat((signed, attention), 1), []
    for n in range(1, 5):
        value = unit(n, 2, unit(n, 1, value))
        skips.append(value)
        value = F.max_pool2d(value, 2)
    value = unit(5, 2, unit(5, 1, value) * gates[4])
    for n in range(6, 10):
        value = F.interpolate(value, scale_factor=2, mode="bilinear", align_corners=True)
        value = conv(f"deconv{n - 1}", value)
        skip = 9 - n
        value = torch.cat((value, skips[skip] * gates[skip]), 1)
        value = unit(n, 2, unit(n, 1, value))
    latent = conv("conv10", value) * attention
    return ((signed + latent + 1) / 2).clamp(0, 1)


# --- SCI (METHODS 3.1, 3.2, 3.4) ------------------------------------------------------------------


def sci_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    _conv(shapes, "enhance.in_conv.0", 3, 3, 3)
    for name in ("enhance.conv", "enhance.blocks.0"):
        _conv(shapes, f"{name}.0", 3, 3, 3)
        norm(f"{name}.1", 3)
    _conv(shapes, "enhance.out_conv.0", 3, 3, 3)
    _conv(shapes, "calibrate.in_conv.0", 16, 3, 3)
    norm("calibrate.in_conv.1", 16)
    for name in ("calibrate.convs", *(f"calibrate.blocks.{n}" for n in range(3))):
        for index in (0, 3):
            _conv(shapes, f"{name}.{index}", 16, 16, 3)
            norm(f"{name}.{index + 1}", 16)
    _conv(shapes, "calibrate.out_conv.0", 3, 16, 3)
    return shapes


def sci(state: State, y: Tensor) -> Tensor:
    def conv(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    f = torch.relu(conv("enhance.in_conv.0", y))
    name = "enhance.conv.1"
    statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
    normed = F.batch_norm(
        conv("enhance.conv.0", f), *statistics, state[f"{name}.weight"], state[f"{name}.bias"]
    )
    f = f + torch.relu(normed)
    u = torch.sigmoid(conv("enhance.out_conv.0", f))
    return (y / (u + y).clamp(1e-4, 1)).clamp(0, 1)
