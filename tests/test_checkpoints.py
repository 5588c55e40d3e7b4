"""Weights: found, verified, imported, refused."""

import errno
import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil

import pytest
import references
import torch
from safetensors.torch import load_file, save_file

from llenhance import authors, checkpoints, export
from llenhance.cli import export_weights, import_weights
from llenhance.errors import LLEnhanceError, Refusal, WeightsError
from llenhance.methods import METHODS


def make(folder, name="dln", stem=None):
    """Untrained weights on disk."""
    torch.manual_seed(0)
    path = folder / f"{stem or name}.safetensors"
    checkpoints.save(path, METHODS[name], METHODS[name].build().state_dict(), {})
    return path


# --- what ships -----------------------------------------------------------------------------------

EVERY_SET = pytest.mark.parametrize(
    ("method", "name"),
    [pytest.param(m, s, id=f"{m.name}-{s}") for m in METHODS.values() for s in checkpoints.sets(m)],
)


@EVERY_SET
def test_shipped_weights_are_whole(method, name):
    weights = checkpoints.find(method, name)
    sums = checkpoints.checksums(weights.path.parent / "SHA256SUMS")
    assert sums[weights.path.name] == weights.digest
    for scale in method.scales:
        graph = weights.graph(method, scale)
        assert sums[graph.name] == checkpoints.checksum(graph)
    network = checkpoints.build(method, weights)
    assert sum(p.numel() for p in network.parameters()) == method.parameters
    assert checkpoints.sets(method)[0] == "general"


@EVERY_SET
def test_graphs_hold_no_numbers_of_their_own(method, name):
    onnx = pytest.importorskip("onnx")
    weights = checkpoints.find(method, name)
    for scale in method.scales:
        graph = onnx.load(weights.graph(method, scale), load_external_data=False).graph
        outside = {
            tensor.name.removeprefix("network."): {
                entry.key: entry.value for entry in tensor.external_data
            }
            for tensor in graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        kernels = {k for k, v in weights.tensors.items() if len(v.shape) > 1}
        assert {key.removesuffix(".half") for key in outside} >= kernels
        for key, place in outside.items():
            entry = weights.tensors[key.removesuffix(".half")]
            assert place["location"] == weights.path.name
            assert (int(place["offset"]), int(place["length"])) == (entry.offset, entry.length)
        inside = sum(
            len(t.raw_data)
            for t in graph.initializer
            if t.name.removeprefix("network.") not in outside
        )
        assert inside < 65_536


def test_shipped_weights_fit_in_45_mb():
    folder = checkpoints.find(METHODS["dln"]).path.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 45_000_000


def test_training_only_parts_are_not_shipped():
    assert not [k for k in checkpoints.find(METHODS["neid"]).tensors if "dr_" in k]
    assert len(checkpoints.find(METHODS["lightweight"]).tensors) == len(
        [v for v in METHODS["lightweight"].build().state_dict().values() if v.is_floating_point()]
    )


# --- finding --------------------------------------------------------------------------------------


def test_chosen_folder_is_searched_first(tmp_path, monkeypatch):
    path = make(tmp_path)
    monkeypatch.setenv("LLENHANCE_WEIGHTS", str(tmp_path))
    assert checkpoints.find(METHODS["dln"]).path == path
    assert checkpoints.find(METHODS["neid"]).path.parent != tmp_path


def test_a_second_set_is_found_by_name(tmp_path, monkeypatch):
    make(tmp_path, stem="dln-lol")
    monkeypatch.setenv("LLENHANCE_WEIGHTS", str(tmp_path))
    assert checkpoints.sets(METHODS["dln"]) == ["general", "lol"]
    assert checkpoints.find(METHODS["dln"], "lol").path.name == "dln-lol.safetensors"
    with pytest.raises(WeightsError, match="there are: general, lol"):
        checkpoints.find(METHODS["dln"], "moon")


def test_only_what_can_be_chosen_is_a_set(tmp_path, monkeypatch):
    for stem in ("dln_old", "dln2", "dln-", "dln-night"):
        make(tmp_path, stem=stem)
    monkeypatch.setenv("LLENHANCE_WEIGHTS", str(tmp_path))
    assert checkpoints.sets(METHODS["dln"]) == ["general", "night"]


def test_sums_in_capitals_and_any_letters(tmp_path):
    path = make(tmp_path, stem="n\xe4cht")
    digest = checkpoints.checksum(path)
    (tmp_path / "SHA256SUMS").write_text(f"{digest.upper()} *{path.name}\n", "utf-8")
    assert checkpoints.find(METHODS["dln"], str(path)).digest == digest


def test_a_changed_byte_is_refused(tmp_path):
    path = make(tmp_path)
    digest = checkpoints.checksum(path)
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  {path.name}\n")
    assert checkpoints.find(METHODS["dln"], str(path)).digest == digest
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        checkpoints.find(METHODS["dln"], str(path))


def test_a_changed_graph_is_refused(tmp_path):
    path = make(tmp_path)
    graph = path.with_suffix(".onnx")
    graph.write_bytes(b"graph")
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{checkpoints.checksum(p)}  {p.name}\n" for p in (path, graph)))
    assert checkpoints.find(METHODS["dln"], str(path)).path == path
    graph.write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"dln\.onnx: its SHA-256"):
        checkpoints.find(METHODS["dln"], str(path))
    sums.write_text("no sums\n\x80word\n")
    with pytest.raises(WeightsError, match="not a file of checksums"):
        checkpoints.find(METHODS["dln"], str(path))


def test_checksums_are_those_of_sha256sum(tmp_path):
    path = make(tmp_path)
    assert checkpoints.checksum(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "huge header"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = make(tmp_path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello, this is no file of weights at all",
            "cut": data[:-100],
            "huge header": (2**60).to_bytes(8, "little") + data[8:],
        }[damage]
    )
    with pytest.raises(WeightsError) as error:
        checkpoints.find(METHODS["dln"], str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("[]", "its metadata are no object"),
        ('"dln"', "its metadata are no object"),
        ('{"method": ["dln"]}', "weights for dln expected, found no method"),
        ('{"method": "dln", "options": [1]}', "options are no object"),
        ("[" * 100_000, "not a safetensors file"),
        ("{", "not a safetensors file"),
    ],
)
def test_odd_metadata_are_refused_in_one_line(tmp_path, metadata, said):
    path = make(tmp_path)
    save_file({"x": torch.zeros(1)}, path, {checkpoints.OWN_METADATA: metadata})
    with pytest.raises(WeightsError, match=said) as error:
        checkpoints.find(METHODS["dln"], str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]},
    ],
    ids=str,
)
def test_odd_tensors_are_refused_in_one_line(tmp_path, row):
    path = tmp_path / "odd.safetensors"
    header = json.dumps({"x": row}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        checkpoints.read_header(path)


def test_what_follows_the_tensors_is_refused(tmp_path):
    path = make(tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(WeightsError, match="something follows its tensors"):
        checkpoints.find(METHODS["dln"], str(path))


def test_tensors_that_lie_over_each_other_are_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    owner = {checkpoints.OWN_METADATA: json.dumps({"method": "dln"})}
    header = json.dumps({"__metadata__": owner, "x": row, "y": row}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoints.build(METHODS["dln"], checkpoints.find(METHODS["dln"], str(path)))


def test_options_that_a_network_does_not_have_are_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    method = METHODS["dln"]
    checkpoints.save(path, method, method.build().state_dict(), {"colour": "blue"})
    with pytest.raises(WeightsError, match="dln cannot be built with its options"):
        checkpoints.build(method, checkpoints.find(method, str(path)))


def test_weights_of_another_method_are_refused(tmp_path):
    path = make(tmp_path, "lightweight")
    with pytest.raises(WeightsError, match="for dln expected, found lightweight"):
        checkpoints.find(METHODS["dln"], str(path))


def test_headers_agree_with_the_library(tmp_path):
    path = make(tmp_path)
    _, tensors = checkpoints.read_header(path)
    data = path.read_bytes()
    for name, value in load_file(path).items():
        entry = tensors[name]
        assert entry.shape == tuple(value.shape)
        raw = data[entry.offset : entry.offset + entry.length]
        assert raw == value.numpy().tobytes()


def test_half_precision_is_for_kernels_only(tmp_path):
    path = tmp_path / "e.safetensors"
    method = METHODS["enlightengan"]
    checkpoints.save(path, method, method.build().state_dict(), {}, half=True)
    for entry in checkpoints.read_header(path)[1].values():
        assert entry.dtype == ("F16" if len(entry.shape) > 1 else "F32")


# --- the authors' own files -----------------------------------------------------------------------


REFERENCES = {
    "dln": (references.dln_shapes, references.dln, "module."),
    "enlightengan": (references.enlightengan_shapes, references.enlightengan, "module."),
    "lightweight": (references.sci_shapes, references.sci, ""),
}


def published(tmp_path, name, drop=()):
    shapes, _, prefix = REFERENCES[name]
    state = references.random_state(shapes())
    for key in drop:
        del state[key]
    path = tmp_path / "published.pth"
    torch.save({prefix + k: v for k, v in state.items()}, path)
    return path, state


@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_import_is_exact(tmp_path, name):
    path, state = published(tmp_path, name)
    imported, options = authors.read(METHODS[name], path)
    network = METHODS[name].build(**options).eval()
    checkpoints.fill(network, imported, "test")
    # In float64 a difference in the numbers shows, and one in the order of sums does not.
    x = 0.3 * torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    expected = REFERENCES[name][1](wide, x)
    assert not torch.allclose(expected, x, atol=0.01)
    assert ((expected > 0) & (expected < 1)).double().mean() > 0.7  # what is clamped tells nothing
    torch.testing.assert_close(network.double()(x), expected, rtol=0, atol=1e-12)


def test_an_import_without_the_extra_writes_nothing(tmp_path, monkeypatch):
    path, _ = published(tmp_path, "lightweight")
    before = sorted(tmp_path.iterdir())
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(LLEnhanceError, match=r"needs onnxscript: pip install 'llenhance\[train\]'"):
        import_weights.main(
            ["lightweight", str(path), "-o", str(tmp_path / "my.safetensors")],
            standalone_mode=False,
        )
    assert sorted(tmp_path.iterdir()) == before


def test_an_old_file_without_counters_is_accepted(tmp_path):
    """torch 0.3.1 wrote none."""
    counters = [k for k in references.enlightengan_shapes() if k.endswith("num_batches_tracked")]
    assert counters
    path, _ = published(tmp_path, "enlightengan", drop=counters)
    state, options = authors.read(METHODS["enlightengan"], path)
    assert options == {"align_corners": True}
    assert len(state) == 131 - 17


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dln", "feat_out_2.conv3.conv_Offset.conv.weight"),
        ("lightweight", "enhance.in_conv.0.bias"),
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused(tmp_path, name, key):
    path, _ = published(tmp_path, name, drop=[key])
    with pytest.raises(WeightsError, match=r"expected .*, found none"):
        authors.read(METHODS[name], path)


def test_the_file_of_another_network_is_refused(tmp_path):
    path, _ = published(tmp_path, "enlightengan")
    with pytest.raises(WeightsError, match=r"do not fit DLN; .*: expected .*, found"):
        authors.read(METHODS["dln"], path)
    path, _ = published(tmp_path, "dln")
    with pytest.raises(WeightsError, match=r"do not fit EnlightenGAN; .*: expected .*, found"):
        authors.read(METHODS["enlightengan"], path)


def test_methods_without_published_weights_say_so(tmp_path):
    path, _ = published(tmp_path, "dln")
    with pytest.raises(WeightsError, match="only for dln, enlightengan, lightweight"):
        authors.read(METHODS["neid"], path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/llenhance-was-here",)


@pytest.mark.parametrize("content", ["pickle", "torch", "text", "missing", "list"])
def test_no_code_is_run_by_a_checkpoint(tmp_path, content):
    path = tmp_path / "evil.pth"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif content == "torch":
        torch.save({"x": Evil()}, path)
    elif content == "text":
        path.write_text("hello")
    elif content == "list":
        torch.save([1, 2], path)
    with pytest.raises(WeightsError) as error:
        authors.read(METHODS["dln"], path)
    assert "\n" not in str(error.value)
    if content != "missing":
        assert re.search("state dict .*expected, found", str(error.value))
    assert not os.path.exists("/tmp/llenhance-was-here")


def test_metadata_names_method_and_options(tmp_path):
    path = tmp_path / "e.safetensors"
    method = METHODS["enlightengan"]
    options = {"align_corners": True}
    checkpoints.save(path, method, method.build(**options).state_dict(), options)
    metadata, _ = checkpoints.read_header(path)
    assert metadata["method"] == "enlightengan"
    assert metadata["options"] == options
    assert checkpoints.build(method, checkpoints.find(method, str(path))).align_corners


def test_a_strangers_weights_folder_is_not_searched(tmp_path):
    """Beside the package lies "weights" of someone else, and no setup.cfg of ours."""
    root = checkpoints.folders()
    assert all(folder.name == "weights" for folder in root)
    copy = tmp_path / "site-packages"
    shutil.copytree(
        os.path.dirname(checkpoints.__file__),
        copy / "llenhance",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (copy / "weights").mkdir()
    import subprocess
    import sys

    code = "from llenhance.checkpoints import folders; print(*folders(), sep='\\n')"
    environment = os.environ | {"PYTHONPATH": str(copy)}
    environment.pop("LLENHANCE_WEIGHTS", None)
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert str(copy / "llenhance" / "weights") in out
    assert str(copy / "weights") not in out


def test_weights_that_cannot_be_read_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    shutil.copy(checkpoints.find(METHODS["lightweight"]).path, path)

    def denied(*_args, **_named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoints.checksum(path)


def test_a_graph_of_someone_else_is_not_replaced(tmp_path):
    weights = tmp_path / "model.safetensors"
    shutil.copy(checkpoints.find(METHODS["lightweight"]).path, weights)
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"a detector")
    arguments = ["lightweight", str(weights)]
    with pytest.raises(Refusal, match="is no graph of llenhance"):
        export_weights.main(arguments, standalone_mode=False)
    assert graph.read_bytes() == b"a detector"
    graph.unlink()
    for _ in range(2):  # its own may be made again
        export_weights.main(arguments, standalone_mode=False)
    assert export.is_ours(graph)
