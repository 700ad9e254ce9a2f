"""The house's rules, read from the source: who imports whom, where Prefect may stand, how long a file may grow."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.profiles import load_profile

ROOT = Path(__file__).resolve().parents[1]

# A package may import itself and these of ours, no others.
ARROWS: dict[str, set[str]] = {
    "shards": set(),
    "datagen": {"shards"},
    "dreamcache": {"shards"},
    "flows": {"datagen", "dreamcache", "shards"},
    "miniature": {"datagen", "dreamcache", "shards"},
    "benchmarks": {"flows", "datagen", "dreamcache", "miniature", "shards"},
}
MAX_LINES = 300


def source_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute module name that a file imports, at its top or inside a function, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_arrows_between_packages(package: str) -> None:
    assert source_files(package), f"{package}/ holds no Python file"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in source_files(package)
        for line, name in imported_names(path)
        if (top := name.split(".")[0]) in ARROWS and top != package and top not in ARROWS[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_flows_knows_prefect() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ARROWS
        if package != "flows"
        for path in source_files(package)
        for line, name in imported_names(path)
        if name.split(".")[0] == "prefect"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("modules", ["shards, datagen, datagen.dataset", "flows.cli, flows.plans"])
def test_light_imports_stay_light(modules: str) -> None:
    code = f"import sys, {modules}; print(*{{'torch', 'prefect', 'transformers', 'diffusers'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == ""


def test_deployments_resolve() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    names, submits_to = set(), set()
    for deployment in deployments:
        file, function = deployment["entrypoint"].split(":")
        flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
        assert (ROOT / file).is_file()
        unknown = set(deployment.get("parameters", {})) - set(flow.parameters.properties)
        assert not unknown, f"{flow.name}/{deployment['name']}: no parameter {unknown}"
        names.add(f"{flow.name}/{deployment['name']}")
        if "parameters" in deployment:
            given = deployment["parameters"]
            workers = load_profile(given["profile"], given.get("settings")).workers
            submits_to |= {workers.deployment, workers.evaluation} - {None}
    flows = ("build-dataset", "train-adapters", "evaluate-adapters", "evaluate-given", "dreamcache-pipeline")
    by_workers = {"build-block/gpu", "build-dataset/workers", "evaluate-block/gpu", "evaluate-adapters/workers"}
    assert names == {f"{flow}/{profile}" for flow in flows for profile in ("miniature", "full")} | by_workers
    assert submits_to == {"build-block/gpu", "evaluate-block/gpu"}


def test_files_stay_short() -> None:
    folders = [ROOT / name for name in (*ARROWS, "tests")]
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for folder in folders
        for path in folder.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]
    assert not long, "\n".join(long)


def test_no_unsafe_torch_load() -> None:
    """Every `torch.load` in the packages says weights_only=True."""
    wrong = []
    for package in ARROWS:
        for path in source_files(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                    if not safe:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_the_tree_lists_every_file() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The tree")[1].split("## ")[0]
    packages = (*(package for package in ARROWS), "dreamcache/dreambooth")
    files = [path.name for package in packages for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    missing = [name for name in files if f"  {name} " not in tree]
    assert not missing, missing
