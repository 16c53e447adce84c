"""llama.cpp's own tests of its server, asked of `edgemoe serve`: `llama_suite/` says how, and which are left out."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.forks import ROOT

pytestmark = pytest.mark.serve

RELEASE = "llama-cpp-python==0.3.36"
DOWNLOADED = ROOT / "build" / "llama-cpp"
"""A folder in which the source may lie already."""
PARTS = ("tools/server/tests/", "models/templates/")
LEAST = 190


def unpacked(folder: Path) -> Path:
    """The folder of the tests, from the source of a release, which is downloaded unless it is there."""
    archives = [*DOWNLOADED.glob("llama_cpp_python-*.tar.gz")]
    if not archives:
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder), RELEASE]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True, timeout=600)
        archives = [*folder.glob("*.tar.gz")]
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and name.startswith(PARTS):
                member.name = name
                archive.extract(member, folder, filter="data")
    return folder / PARTS[0]


@pytest.mark.timeout(900)
def test_the_server_passes_the_tests_of_llama_cpp(tmp_path: Path) -> None:
    suite = unpacked(tmp_path)
    report = tmp_path / "report.xml"
    own = {"PYTHONPATH": str(ROOT), "LLAMA_SUITE": str(suite), "LLAMA_SUITE_STORES": str(tmp_path / "stores")}
    options = ["-p", "tests.server.llama_suite.overrides", "-p", "no:cacheprovider", "-m", "not slow", "-n", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *options, f"--junit-xml={report}"],
        cwd=suite,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    counts = ElementTree.parse(report).getroot()[0].attrib
    told = done.stdout[-8000:] + done.stderr[-2000:]
    assert (counts["failures"], counts["errors"]) == ("0", "0"), told
    assert int(counts["tests"]) - int(counts["skipped"]) >= LEAST, told
