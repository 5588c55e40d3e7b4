"""The house: imports point down or sideways, never up, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import llenhance

PACKAGE = Path(llenhance.__file__).parent

LAYERS = {
    "errors": 0, "heldout": 0, "version": 0, "networks": 0, "stabilize": 0, "pipelining": 0,
    "names": 0, "memory": 0, "standard_input": 0,
    "pixels": 1, "tiling": 1, "methods": 1, "metrics": 1, "niqe": 1, "sheets": 1, "report": 1,
    "media": 2, "checkpoints": 2, "fast": 2, "parts": 2, "controls": 2,
    "engines": 3, "budget": 3, "choice": 3, "pictures": 3, "journal": 3, "inputs": 3, "authors": 3,
    "enhancer": 4, "plan": 4,
    "ends": 3, "segments": 4, "preview": 4, "progress": 4,
    "jobs": 5, "footage": 5, "export": 5, "options": 5, "doctor": 5,
    "train": 6, "evaluate": 6, "scores": 6, "worker": 6,
    "comparison": 6, "record": 6,
    "cli": 7,
    "__main__": 8, "__init__": 8,
}  # fmt: skip


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts


def room(parts):
    return parts[0]


def imported(path, parts):
    """(the imported module's parts inside the package, whether only for the type checker)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("llenhance"), f"{path}: import by full name"
        if not isinstance(node, ast.ImportFrom):
            continue
        assert not (node.module or "").startswith("llenhance"), f"{path}: import by full name"
        if not node.level:
            continue
        package = parts[: len(parts) - node.level]
        base = (*package, *(node.module.split(".") if node.module else ()))
        if node.module:
            yield base
        else:
            for alias in node.names:
                yield (*base, alias.name)


def test_every_room_has_a_layer():
    assert {room(parts) for _, parts in modules()} <= set(LAYERS)


def test_imports_never_point_up():
    for path, parts in modules():
        for target in imported(path, parts):
            if len(target) == 0:
                continue
            assert LAYERS[room(target)] <= LAYERS[room(parts)], f"{path} imports {target}"


def test_nothing_inside_imports_the_package_root():
    for path, parts in modules():
        for target in imported(path, parts):
            assert target, f"{path} imports the package root"
            assert (PACKAGE / target[0]).exists() or (PACKAGE / f"{target[0]}.py").exists(), path


def test_rooms_form_no_circle():
    edges: dict[str, set[str]] = {}
    for path, parts in modules():
        own = ".".join(parts)
        for target in imported(path, parts):
            name = ".".join(target)
            known = {".".join(p) for _, p in modules()}
            if name not in known and f"{name}.__init__" in known:
                name = f"{name}.__init__"
            if name not in known:
                name = ".".join(target[:-1])
            if name in known and name != own:
                edges.setdefault(own, set()).add(name)
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for other in edges.get(name, ()):
            visit(other, [*path, name])
        done.add(name)

    for name in list(edges):
        visit(name, [])


def test_only_its_own_command_imports_training():
    for path, parts in modules():
        if room(parts) in ("train", "cli"):
            continue
        assert all(target[0] != "train" for target in imported(path, parts) if target), path


def loaded(*arguments):
    """The heavy modules in memory after running the command in a fresh interpreter."""
    code = (
        "import sys; sys.argv = ['llenhance', *sys.argv[1:]]\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: status = error.code\n"
        "heavy = {'cv2', 'onnxruntime', 'openvino', 'torch', 'av', 'PIL', 'numpy'}\n"
        "print('LOADED', *sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.rsplit("LOADED", 1)[1].split())


def test_help_and_version_load_nothing_heavy():
    assert loaded("--help") == set()
    assert loaded("--version") == set()
    assert loaded("train", "--help") == set()
    assert loaded("methods", "--json") == set()


def test_enhancing_on_a_cpu_does_not_load_torch(tmp_path):
    import cv2
    import numpy as np

    photo = tmp_path / "photo.png"
    photo.write_bytes(cv2.imencode(".png", np.full((20, 30, 3), 9, np.uint8))[1].tobytes())
    found = loaded(str(photo), "-m", "lightweight", "--device", "cpu")
    assert (tmp_path / "photo_lightweight.png").exists()
    assert "torch" not in found
    assert "openvino" in found
    assert "onnxruntime" not in found
