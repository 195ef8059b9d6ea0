"""The house rules: who imports whom, how long files are, how many parameters functions take, what is never imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "transduce"
LAYERS = {
    "core": 0,
    "ops": 1,
    "data": 1,
    "nn": 2,
    "models": 3,
    "objectives": 3,
    "search": 3,
    "train": 4,
    "testing": 4,
    "analysis": 4,
    "systems": 5,
    "report": 5,
    "cli": 6,
    "api": 6,
}
# Proving and training need what they prove and train: within one layer only these pairs may meet.
SIBLINGS = {("testing", "train"), ("cli", "api")}
FORBIDDEN = {"torchvision", "torchaudio", "torchcodec", "pickle", "dill", "cloudpickle", "joblib"}
FILES = sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of every imported module, functions' own imports included; relative ones resolved."""
    found: set[str] = set()
    here = ["transduce", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else here[: len(here) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_import_downwards(path):
    mine = package_of(path)
    if mine == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in FORBIDDEN, f"{path.name} imports {parts[0]}"
        if parts[0] != "transduce" or len(parts) < 2 or parts[1] not in LAYERS or parts[1] == mine:
            continue
        allowed = LAYERS[parts[1]] < LAYERS[mine] or (mine, parts[1]) in SIBLINGS
        assert allowed, (
            f"{path.relative_to(ROOT)} (layer {LAYERS[mine]}) imports {name} (layer {LAYERS[parts[1]]})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_signatures_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.name} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if "triton.jit" in map(ast.unparse, node.decorator_list):
                continue  # a kernel has an argument for every tensor and every size
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls", "ctx")]
            if any(ast.unparse(d) == "triton.jit" for d in node.decorator_list):
                continue  # a kernel has no other way to be told of its tensors and strides
            assert len(names) <= 8, f"{path.name}: {node.name} takes {len(names)} parameters"


@pytest.mark.parametrize(
    "path", [p for p in FILES if package_of(p) in ("ops", "nn", "models")], ids=lambda p: p.name
)
def test_time_is_never_indexed_in_a_loop(path):
    """``x[:, t]`` with a loop variable under autograd makes the backward pass quadratic in time."""
    for loop in ast.walk(ast.parse(path.read_text())):
        if not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Name):
            continue
        for node in ast.walk(loop):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Tuple)
                and len(node.slice.elts) == 2
            ):
                first, second = node.slice.elts
                is_time = (
                    isinstance(first, ast.Slice)
                    and isinstance(second, ast.Name)
                    and second.id == loop.target.id
                )
                is_time = is_time and "weight" not in ast.unparse(node.value)  # taps of a filter, not steps
                assert not is_time, f"{path.name}:{node.lineno} indexes time; use unbind(1)"


def test_system_pages_do_not_repeat_each_other():
    pages = {
        p: {
            line.strip()
            for line in p.read_text().splitlines()
            if len(line.strip()) > 25 and "import" not in line
        }
        for p in sorted((ROOT / "systems").glob("*/*.py"))
        if not p.stem.startswith("_")
    }
    for a, lines in pages.items():
        assert len(a.read_text().splitlines()) <= 150, f"{a.name} is longer than 150 lines"
        for b, others in pages.items():
            if a < b:
                shared = len(lines & others) / min(len(lines), len(others))
                assert shared < 1 / 3, f"{a.name} and {b.name} share {shared:.0%} of their lines"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_torch():
    run("import sys, transduce; assert 'torch' not in sys.modules and 'numpy' not in sys.modules")


def test_the_api_imports_nothing_heavy_beside_torch():
    loaded = run("import sys, transduce.api; print(*sorted({m.split('.')[0] for m in sys.modules}))").split()
    assert not set(loaded) & {"numba", "matplotlib", "tokenizers", "rich", "tyro", "scipy", "pandas"}


def test_import_never_touches_the_allocator_or_the_threads():
    run(
        "import torch; n = torch.get_num_threads(); import transduce.api, transduce.nn, transduce.testing; assert torch.get_num_threads() == n"
    )
