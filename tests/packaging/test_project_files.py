"""Files of the project that no program of the repository reads: they parse, and name what exists."""

import os
import re
import subprocess
import sys

import pytest
import tomllib
import yaml
from checkpoint_files import ROOT

TARGETS = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def steps_of(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_workflow_runs_what_this_repository_has():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = {name: steps_of(job) for name, job in workflow["jobs"].items()}

    assert commands["checks"] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert commands["remote-code"][-1] == "python .ci/import_remote_code.py"
    matrix = workflow["jobs"]["remote-code"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert (
        f">={min(matrix['python'], key=lambda v: tuple(map(int, v.split('.'))))}"
        == project()["requires-python"]
    )


def test_minimal_dependencies_of_the_workflow_are_those_of_the_package():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    install = next(c for c in steps_of(workflow["jobs"]["remote-code"]) if c.startswith("pip install "))
    asked = {word.strip('"') for word in install.split()[2:]}
    assert asked <= set(project()["dependencies"])


def test_remote_code_imports_as_the_workflow_does_it():
    script = ROOT / ".ci/import_remote_code.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {"modeling_pvc", "processing_pvc", "preprocess"} <= set(done.stdout.split())


def test_commands_of_ci_are_targets_of_the_makefile():
    targets = set(TARGETS.findall((ROOT / "Makefile").read_text()))
    wanted = re.search(r"^make (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1].split()
    assert set(wanted) <= targets


def test_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    # make run by another make tells of the folders that it enters
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    printed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=outside
    ).stdout
    described = {line.split()[0] for line in printed.splitlines() if len(line.split()) > 1}
    assert described == set(TARGETS.findall(makefile)) - {"define"}


def test_citation_has_the_version_and_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project()["version"], project()["license"])
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in project()["authors"]]


def test_citation_is_the_paper_of_the_readme():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert paper["title"] in readme and authors in readme


def test_changelog_tells_of_the_version():
    assert f"## {project()['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_are_of_the_pinned_version():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["rev"] == f"v{pinned()['ruff']}"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format"}


def test_bug_report_has_fields_of_its_own_names():
    body = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())["body"]
    names = [field["id"] for field in body]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md"])
def test_files_that_a_page_names_exist(name):
    text = (ROOT / name).read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    folder = (ROOT / name).parent
    assert [target for target in links if not (folder / target).exists()] == []

    paths = [p for p in re.findall(r"`([\w./-]+/[\w.-]*)`", text) if not p.startswith(".venv")]
    assert [p for p in paths if not any((base / p).exists() for base in (folder, ROOT))] == []
