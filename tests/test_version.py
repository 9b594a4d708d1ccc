"""Version number, version bounds, and what `import gersp_mm` does about its neighbours."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import gersp_mm
from gersp_mm.version import CORE, DISTRIBUTIONS, STACKS, SUPPORTED, version_key

ROOT = Path(__file__).resolve().parent.parent


def listed(name: str) -> dict[str, str]:
    """distribution -> specifier of a requirement file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?([<>=][^#\s]*)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("2.1", "2.1.1"), ("0.9.9", "0.10.0"), ("2.11.0", "2.12"), ("1.2.0", "1.10")],
)
def test_version_key_orders_by_number(lower: str, higher: str) -> None:
    assert version_key(lower) < version_key(higher)


def test_version_key_drops_suffixes() -> None:
    assert version_key("2.11.0+cu130") == version_key("2.11") == (2, 11, 0)
    assert version_key("1.0.0rc1") == (1, 0, 0)
    assert version_key("unknown") == (0, 0, 0)


def test_one_version_number_everywhere() -> None:
    assert f"\nversion: {gersp_mm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {gersp_mm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_requirements_and_table_agree() -> None:
    for module in ("torch", "torchvision"):
        assert listed("runtime")[module] == f">={SUPPORTED[module][0]}"
    for stack in STACKS.values():
        assert set(stack["packages"]) | set(stack.get("absent", {})) == set(SUPPORTED)
        for row in stack["packages"].values():
            assert version_key(row["oldest"]) <= version_key(row["tested"])
            assert row["why"]
    assert DISTRIBUTIONS["mmcv"] == ("onedl-mmcv", "mmcv", "mmcv-lite")
    assert SUPPORTED["mmengine"] == ("0.10.0", "0.10.12")


def test_every_bound_states_its_reason() -> None:
    for file in ("runtime", "demo", "docs"):
        for line in (ROOT / "requirements" / f"{file}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.search(r"# \S", line), f"{file}.txt: {line}"


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, gersp_mm\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg',"
        "'mmrotate'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_names_arrive_on_first_use() -> None:
    for name in gersp_mm.__all__:
        assert name in dir(gersp_mm)
        assert getattr(gersp_mm, name) is not None
    assert gersp_mm.GeRSP.__name__ == "GeRSP"
    with pytest.raises(AttributeError, match="no attribute 'GeRPS'"):
        _ = gersp_mm.GeRPS


@pytest.mark.parametrize("use", ["gersp_mm.GeRSP", "MODELS.build(dict(type='gersp_mm.GeRSP'))"])
def test_a_missing_library_is_said_when_a_type_is_built(use: str) -> None:
    code = (
        "import sys, importlib.util as util\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mmpretrain': raise ModuleNotFoundError(name=name)\n"
        "find_spec = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'mmpretrain' else find_spec(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import gersp_mm\n"
        "print(gersp_mm.__version__, flush=True)\n"
        "from mmengine.registry import MODELS\n" + use
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == gersp_mm.__version__  # the package itself works
    said = done.stderr.splitlines()[-1]
    start = "gersp_mm.registry.MissingLibraryError: gersp_mm needs mmpretrain, which this Python "
    assert said.startswith(start)
    assert f'-m pip install "onedl-mmpretrain=={SUPPORTED["mmpretrain"][1]}"   (in a' in said


def test_a_missing_library_is_named_as_the_installed_family_spells_it(monkeypatch) -> None:
    from gersp_mm import registry

    monkeypatch.setattr(registry, "installed", lambda paths: {"mmengine": "0.10.7"})
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "mmpretrain" else 1)
    with pytest.raises(registry.MissingLibraryError, match=r'pip install "mmpretrain==1\.2\.0"   '):
        registry.require_libraries()


@pytest.mark.parametrize(
    ("distribution", "version", "words"),
    [
        ("mmcv", "99.0.0", "is newer than 2.3.6, the newest tested with gersp_mm"),
        ("mmcv", "1.7.0", "is older than 2.0.0, the oldest .*mmcv==2.1.0"),
        ("mmcv-lite", "1.7.0", "is older than 2.0.0, the oldest .*mmcv-lite==2.1.0"),
    ],
)
def test_untested_versions_warn(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str, words: str
) -> None:
    monkeypatch.setattr(gersp_mm, "_installed", lambda: {distribution: version})
    with pytest.warns(UserWarning, match=f"^mmcv {version} {words}") as caught:
        gersp_mm._check_neighbours()
    assert len(caught) == 1
    assert "onedl" not in str(caught[0].message)  # the other family would overwrite its files


def test_tested_and_original_versions_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, bound in itertools.product(STACKS.values(), ("oldest", "tested")):
        rows = [table["packages"][name] for name in CORE]
        versions = {row["names"][-1]: row[bound] for row in rows}
        monkeypatch.setattr(gersp_mm, "_installed", lambda found=versions: found)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gersp_mm._check_neighbours()


def test_original_distribution_names_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "mmcv-lite":
            return "2.1.0"
        raise gersp_mm.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gersp_mm.metadata, "version", version)
    assert gersp_mm._installed() == {"mmcv-lite": "2.1.0"}


def test_the_installation_page_shows_the_table() -> None:
    lines = []
    for module in SUPPORTED:
        cells = [module]
        for stack in STACKS.values():
            row = stack["packages"].get(module)
            cells += [row["oldest"], f"{row['names'][0]} {row['tested']}"] if row else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    pythons = [", ".join(sorted(s["pythons"], key=version_key)) for s in STACKS.values()]
    lines.append(f"| Python | {pythons[0]} | 3.11 | {pythons[1]} | 3.11 |")
    page = (ROOT / "docs" / "guide" / "install.md").read_text()
    table = page.partition("|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == lines
