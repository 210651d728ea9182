"""The rules of the house: one-way imports, nothing forgotten in the catalogue, documented commands that are the real ones."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.patience import PATIENCE

LAYERS = ("reference", "kernels", "autotune", "suites", "reports")
COMMANDS = (
    "suites.run", "suites.gate", "suites.calibrate", "suites.model_step", "autotune.run", "autotune.quality", "autotune.export_t4",
    "reports.build", "reports.speedups", "reports.learning",
)
WITHOUT_TORCH = ("suites/record.py", "suites/statistics.py", "kernels/errors.py", "kernels/problem.py", "kernels/gpu.py")


def modules(root: Path) -> list[Path]:
    return [path for layer in LAYERS for path in sorted((root / layer).rglob("*.py"))]


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def test_imports_go_one_way(repository: Path) -> None:
    for path in modules(repository):
        own = LAYERS.index(path.relative_to(repository).parts[0])
        for name in imported(path):
            top = name.split(".")[0]
            if top in LAYERS:
                assert LAYERS.index(top) <= own, f"{path.relative_to(repository)} imports {name}, which stands to its right"


def test_reports_need_neither_torch_nor_triton(repository: Path) -> None:
    paths = [*(repository / "reports").rglob("*.py"), *(repository / name for name in WITHOUT_TORCH)]
    for path in paths:
        heavy = {name for name in imported(path, top_level_only=True) if name.split(".")[0] in ("torch", "triton")}
        assert not heavy, f"{path.relative_to(repository)} imports {heavy}"


def test_every_kernel_module_is_in_the_catalogue(repository: Path) -> None:
    catalogue = import_module("kernels.catalogue")
    for path in (repository / "kernels").rglob("*.py"):
        name = ".".join(path.relative_to(repository).with_suffix("").parts)
        if name == "kernels.catalogue" or not re.search(r"^KERNELS\b", path.read_text(), re.MULTILINE):
            continue
        for kernel in import_module(name).KERNELS:
            assert kernel in catalogue.KERNELS, f"{name} exports {kernel}, which the catalogue does not hold"


def test_kernel_names_are_unique_within_an_op() -> None:
    keys = [(kernel.op, kernel.name) for kernel in import_module("kernels.catalogue").KERNELS]
    assert len(keys) == len(set(keys))


def test_files_read_well(repository: Path) -> None:
    long = {str(path.relative_to(repository)): n for path in modules(repository) if (n := len(path.read_text().splitlines())) > 300}
    assert not long, f"files over 300 lines: {long}"


def test_functions_read_well(repository: Path) -> None:
    for path in modules(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                kernel = "constexpr" in ast.unparse(node.args) or any(ast.unparse(entry).endswith("jit") for entry in node.decorator_list)
                limit = 100 if kernel else 60
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= limit, f"{path.relative_to(repository)}: {node.name} has {lines} lines, the most is {limit}"


def test_no_environment_switches(repository: Path) -> None:
    allowed = {"TRITON_INTERPRET"}
    for path in modules(repository):
        for name in re.findall(r"environ(?:\.get\(|\[)\s*[\"'](\w+)", path.read_text()):
            assert name in allowed, f"{path.relative_to(repository)} reads the environment variable {name}"


def documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def documented(root: Path) -> set[tuple[str, str]]:
    found = set()
    for path in documents(root):
        for module, rest in re.findall(r"python -m ((?:suites|autotune|reports)\.\w+)([^\n`]*)", path.read_text()):
            found |= {(module, flag) for flag in re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest)}
            found.add((module, "--help"))
    return found


@pytest.mark.parametrize("module", COMMANDS)
def test_documented_commands_are_the_real_ones(module: str, repository: Path) -> None:
    line = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(line, cwd=repository, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout.lower()
    for name, flag in documented(repository):
        if name == module:
            assert flag in done.stdout, f"the docs show {module} {flag}, which it does not know"
    assert {name for name, _ in documented(repository)} <= set(COMMANDS)


def test_documents_stand_alone(repository: Path) -> None:
    for path in [*documents(repository), *modules(repository)]:
        text = path.read_text()
        foreign = re.findall(r"(?:^|[^\w.~-])/(?:root|home|work|tmp/v)/\S*|\bSPEC(?:\.md|,? §)|\bHOPPER\.md|\bARCHITECTURE\.md", text)
        assert not foreign, f"{path.relative_to(repository)} speaks of {foreign}"


def test_documented_links_lead_somewhere(repository: Path) -> None:
    for path in documents(repository):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_package_data_and_packages(repository: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in the standard library from Python 3.11 on")
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert [name.rstrip("*") for name in include] == list(LAYERS)
    data = project["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        for pattern in patterns:
            assert list((repository / package).glob(pattern)), f"no file for package data {package}/{pattern}"


def test_a_foreign_package_of_our_name_is_named(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(repository)!r}]; sys.argv[0] = '-m'; import suites"
    done = subprocess.run([sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                          cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "kernels") in done.stderr
