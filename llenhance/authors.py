"""The authors' own checkpoints: their files read safely, their names of tensors made ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import fill
from .errors import WeightsError
from .methods import Method

if TYPE_CHECKING:
    from torch import Tensor

Rows = tuple[tuple[str, str], ...]

# Key layouts, as (pattern, replacement), applied in order. What no row of a method matches is
# refused; an empty replacement drops a tensor that inference does not need.
_DLN = (
    (r"^feat1\.", r"head.0."),
    (r"^feat2\.", r"head.1."),
    (r"^feature\.", r"merge."),
    (r"^out\.", r"tail."),
    (r"^feat_out_1\.", r"blocks.0."),
    (r"^feat_out_2\.", r"blocks.1."),
    (r"^feat_out_3\.", r"blocks.2."),
    (r"\.fusion\.fc\.0\.", r".aggregate.squeeze."),
    (r"\.fusion\.fc\.2\.", r".aggregate.expand."),
    (r"\.fusion\.outlayer\.", r".aggregate.fuse."),
    (r"\.conv1_1\.", r".lighten."),
    (r"\.conv2\.", r".darken."),
    (r"\.conv3\.", r".relighten."),
    (r"\.local_weight1_1\.", r".residual."),
    (r"\.local_weight2_1\.", r".skip."),
    (r"\.conv_Encoder\.", r".code."),
    (r"\.conv_Offset\.", r".offset."),
    (r"\.conv_Decoder\.", r".decode."),
)


def _enlightengan_rows() -> Rows:
    rows = [(r"\.num_batches_tracked$", ""), (r"^conv10\.", "tail.")]
    for kind, index in (("conv", 0), ("bn", 2)):
        for n in range(1, 10):
            side = f"downs.{n - 1}" if n <= 5 else f"ups.{n - 6}"
            rows += [(rf"^{kind}{n}_1\.", f"{side}.first.{index}.")]
            rows += [(rf"^{kind}{n}_2\.", f"{side}.second.{index}.")]
    rows += [(rf"^deconv{n}\.", f"ups.{n - 5}.reduce.") for n in range(5, 9)]
    return tuple(rows)


_SCI = (
    (r"^calibrate\..*", ""),  # training only
    (r"^enhance\.blocks\..*", ""),  # the same tensors as enhance.conv under a second name
    (r".*\.num_batches_tracked$", ""),
    (r"^enhance\.in_conv\.0\.", "in_conv."),
    (r"^enhance\.conv\.0\.", "conv."),
    (r"^enhance\.conv\.1\.", "norm."),
    (r"^enhance\.out_conv\.0\.", "out_conv."),
)

# How the authors name what we name, and the options of a network that computes what theirs does:
# EnlightenGAN was trained where bilinear enlargement meant align_corners=True.
IMPORTABLE: dict[str, tuple[Rows, dict[str, Any]]] = {
    "dln": (_DLN, {}),
    "enlightengan": (_enlightengan_rows(), {"align_corners": True}),
    "lightweight": (_SCI, {}),
}


def rename(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Keys of a DataParallel or plain state dict, rewritten row by row."""
    renamed = {}
    for key, value in state.items():
        new = key.removeprefix("module.")
        for pattern, replacement in rows:
            if replacement == "" and re.search(pattern, new):
                new = ""
                break
            new = re.sub(pattern, replacement, new)
        if new:
            renamed[new] = value
    return renamed


def read(method: Method, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict of our network, its options) from the authors' published checkpoint.

    dln: the .pth of WangLiwen1994/DLN; enlightengan: 200_net_G_A.pth; lightweight: a .pt of SCI,
    with which our network computes exactly what SCI's does. Pickles are read with
    ``weights_only=True``. Raises WeightsError when the file is not that.
    """
    import torch

    if method.name not in IMPORTABLE:
        raise WeightsError(
            f"no published weights are known for {method.name}; only for {', '.join(IMPORTABLE)}"
        )
    try:
        with warnings.catch_warnings():  # torch tells of pickles in several lines
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror or error}") from None
    except Exception:  # the unpickler raises many kinds; each means that this is no state dict
        raise WeightsError(
            f"{file}: a state dict expected, found a file that is none or not safe to read"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(
            f"{file}: a state dict of tensors expected, found {type(state).__name__}"
        )

    rows, options = IMPORTABLE[method.name]
    state = rename(state, rows)
    if rows is _SCI:
        state = _widen_sci(state, method)
    fill(method.build(**options), state, str(file))
    return state, options


def _widen_sci(state: dict[str, Tensor], method: Method) -> dict[str, Tensor]:
    """SCI's network inside ours: its kernels see V only, the 16 extractor channels weigh zero."""
    ours = {k: v.clone() for k, v in method.build().state_dict().items() if v.is_floating_point()}
    kernel = state.get("in_conv.weight")
    if kernel is not None and tuple(kernel.shape) == (3, 3, 3, 3):
        wide = ours["in_conv.weight"].zero_()
        wide[:, -3:] = kernel
        state = state | {"in_conv.weight": wide}
    branches = {k: v for k, v in ours.items() if k.startswith("branches.")}
    return branches | state
