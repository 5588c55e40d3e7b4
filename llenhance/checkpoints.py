"""Weights: where they are, and whether they are whole.

A set of weights is one ``<name>.safetensors`` (the only copy of the numbers) and beside it the
graphs that point into it: ``<name>.onnx``, and ``<name>.x2.onnx`` for the second scale of a method
that has one. torch is imported only by the functions that return tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WeightsError
from .media import files
from .methods import METHODS, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

OWN_METADATA = "llenhance"  # the one key of a file's metadata
MAX_HEADER = 100_000_000  # bytes; the limit that the safetensors library sets itself


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; ``offset`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Weights:
    """A verified set of weights on disk."""

    name: str  # the shipped set's name, or the path that was given
    path: Path
    digest: str  # SHA-256 of the safetensors file, in hexadecimal
    options: Mapping[str, Any]  # what the network is built with
    tensors: Mapping[str, Entry]

    def graph(self, method: Method, scale: int) -> Path:
        """Where the exported graph of that scale lies; it may not be there."""
        return graph_path(self.path, method, scale)


def graph_path(path: Path, method: Method, scale: int) -> Path:
    """``name.onnx`` for the method's first scale, ``name.x2.onnx`` and so on for others."""
    return path.with_suffix(".onnx" if scale == method.scales[0] else f".x{scale}.onnx")


def folders() -> list[Path]:
    """Where shipped weights are looked for, in order.

    ``LLENHANCE_WEIGHTS``; the package (a wheel); the checkout that the package lies in, which is
    recognised by its setup.cfg, since another's site-packages may well have a folder "weights".
    """
    here = Path(__file__).resolve().parent
    found = [here / "weights"]
    if (here.parent / "setup.cfg").is_file():
        found.append(here.parent / "weights")
    chosen = os.environ.get("LLENHANCE_WEIGHTS")
    return [Path(chosen), *found] if chosen else found


def sets(method: Method) -> list[str]:
    """The names of the shipped sets of a method, "general" first."""
    names: list[str] = []
    for folder in folders():
        for path in sorted(folder.glob(f"{method.name}*.safetensors")):
            rest = path.stem.removeprefix(method.name)
            name = rest.removeprefix("-") or "general"
            if rest in ("", f"-{name}") and name not in names:  # not "dln_old" or "dln2"
                names.append(name)
    return sorted(names, key=lambda name: (name != "general", name))


def find(method: Method, weights: str | Path | None = None) -> Weights:
    """The weights to use: a shipped set by name (default "general") or a file by path.

    Anything with a slash or the suffix .safetensors is a path. Raises WeightsError when there is
    none, when it or a graph of it does not match the SHA256SUMS beside it, or when it is of another
    method.
    """
    given = "general" if weights is None else str(weights)
    if "/" in given or os.sep in given or given.endswith(".safetensors"):
        path = Path(given)
        if not os.path.isfile(path):
            raise WeightsError(f"{path}: no such file of weights")
        return _open(method, path, given)
    stem = method.name if given == "general" else f"{method.name}-{given}"
    for folder in folders():
        path = folder / f"{stem}.safetensors"
        if os.path.isfile(path):
            return _open(method, path, given)
    if os.path.isfile(given):
        raise WeightsError(
            f"{given}: not a .safetensors file ('llenhance weights import' makes one of others)"
        )
    known = ", ".join(sets(method)) or "none"
    raise WeightsError(
        f"no weights {given!r} for {method.name} (there are: {known}); a file is named by its path"
    )


def _open(method: Method, path: Path, name: str) -> Weights:
    digest = checksum(path)
    sums = path.parent / "SHA256SUMS"
    if sums.is_file():
        graphs = [graph_path(path, method, scale) for scale in method.scales]
        _compare({path: digest} | {g: checksum(g) for g in graphs if g.is_file()}, sums)
    metadata, tensors = read_header(path)
    owner, options = metadata.get("method"), metadata.get("options", {})
    if owner != method.name:
        found = owner if owner in list(METHODS) else "no method of this program"
        raise WeightsError(f"{path}: weights for {method.name} expected, found {found}")
    if not isinstance(options, dict):
        raise WeightsError(f"{path}: not a safetensors file (the network's options are no object)")
    return Weights(name, path, digest, options, tensors)


def _compare(found: Mapping[Path, str], sums: Path) -> None:
    expected = checksums(sums)
    for path, digest in found.items():
        if expected.get(path.name, digest) != digest:
            said = expected[path.name]
            raise WeightsError(f"{path}: its SHA-256 is {digest}, {sums.name} says {said}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; raises WeightsError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None


def checksums(path: Path) -> dict[str, str]:
    """File name -> SHA-256 from a file in the format of ``sha256sum``; WeightsError for another."""
    try:
        rows = [
            line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()
        ]
        return {name.strip().lstrip("*"): digest.lower() for digest, name in rows}
    except (OSError, ValueError):
        raise WeightsError(f"{path}: not a file of checksums as sha256sum writes them") from None


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """(metadata, tensors) of a safetensors file; raises WeightsError when it is none.

    The metadata are what :func:`save` wrote: the method's name and the network's options.

    The format: 8 bytes of little-endian length, a JSON header, then the raw tensors.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, path.stat().st_size):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        metadata = json.loads(header.pop("__metadata__", {}).get(OWN_METADATA, "{}"))
        base = 8 + length
        tensors = {
            name: Entry(
                row["dtype"],
                tuple(row["shape"]),
                base + row["data_offsets"][0],
                row["data_offsets"][1] - row["data_offsets"][0],
            )
            for name, row in header.items()
        }
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no object")
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from None
    end = max((t.offset + t.length for t in tensors.values()), default=base)
    if end > path.stat().st_size:
        raise WeightsError(f"{path}: cut short")
    if end < path.stat().st_size:
        raise WeightsError(f"{path}: something follows its tensors")
    return metadata, tensors


# --- with torch -----------------------------------------------------------------------------------


def build(method: Method, weights: Weights) -> nn.Module:
    """The method's network with these weights in fp32, in eval mode on the CPU; raises WeightsError
    for options that it does not have, and for what does not fit it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = method.build(**weights.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{weights.path}: {method.name} cannot be built with its options ({error})"
        ) from None
    try:
        tensors = load_file(weights.path)
    except SafetensorError as error:
        raise WeightsError(f"{weights.path}: cannot be read ({error})") from None
    fill(network, {k: v.float() for k, v in tensors.items()}, str(weights.path))
    return network.eval()


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly; raises WeightsError naming what does not.

    Batch normalisation's step counters are of no use after training and may be missing.
    """
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items() if v.is_floating_point()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        first = wrong[0]
        raise WeightsError(
            f"{source}: {len(wrong)} tensors do not fit"
            f" {type(network).__name__}; {first}: expected {expected.get(first, 'none')},"
            f" found {found.get(first, 'none')}"
        )
    network.load_state_dict(dict(state), strict=False)


def save(
    path: Path,
    method: Method,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write ``path`` (.safetensors), whole or not at all.

    ``half`` stores kernels as fp16 (vectors stay fp32); they are cast back when they are loaded.
    """
    import torch
    from safetensors.torch import save as serialized

    tensors = {}
    for name, value in state.items():
        if value.is_floating_point():
            dtype = torch.float16 if half and value.ndim > 1 else torch.float32
            tensors[name] = value.detach().to("cpu", dtype).contiguous()
    # One key only: the library writes several in an order that changes from run to run.
    owner = json.dumps({"method": method.name, "options": dict(options)}, sort_keys=True)
    with files.publish(path, overwrite=True) as temporary:
        temporary.write_bytes(serialized(tensors, {OWN_METADATA: owner}))
