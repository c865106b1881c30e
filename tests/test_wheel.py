"""The wheel holds all that a project in an empty folder needs."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

PACKAGES = {"flows", "raft_tasks", "pocket_world"}
ROOT = Path(__file__).resolve().parents[1]
DATA = (".jinja", ".css", ".js", ".yaml", ".jsonl", ".json", ".safetensors")


def tracked():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files that git has, in a copy: setuptools writes into the folder that it builds."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as archive:
        yield archive


@pytest.mark.slow
def test_the_wheel_has_code_and_data_of_all_packages(wheel):
    there = set(wheel.namelist())
    expected = {str(path) for path in tracked() if path.parts[0] in PACKAGES and path.suffix in (".py", *DATA)}
    expected |= {f"pocket_world/model/{path.name}" for path in (ROOT / "models/pocket-base").iterdir()}
    assert expected <= there, sorted(expected - there)
    assert {name.split("/")[0] for name in there if "dist-info" not in name} == PACKAGES
    assert max(info.file_size for info in wheel.infolist()) < 10_000_000


@pytest.mark.slow
def test_links_to_the_repository_s_files_became_copies(wheel):
    assert wheel.read("flows/project/graph.yaml") == (ROOT / "dvc.yaml").read_bytes()
    assert wheel.read("flows/project/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()
    assert wheel.read("flows/project/gitignore") == (ROOT / "flows/project/gitignore").read_bytes()
    weights = (ROOT / "models/pocket-base/model.safetensors").read_bytes()
    assert wheel.read("pocket_world/model/model.safetensors") == weights


@pytest.mark.slow
def test_the_command_is_installed(wheel):
    points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "raft = flows.cli:main" in wheel.read(points).decode()


def test_no_pin_asks_for_a_newer_python_than_the_project():
    """Debian 12 has Python 3.11.2; pip calls a pin for 3.11.5 a conflict and names neither."""
    needs = {package.name: package.metadata["Requires-Python"] or "" for package in importlib.metadata.distributions()}
    assert len(needs) > 100
    assert {name: need for name, need in needs.items() if not SpecifierSet(need).contains("3.11.0")} == {}
