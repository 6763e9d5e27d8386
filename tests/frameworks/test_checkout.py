"""The commit and its changes, of real repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mingled.frameworks import checkout
from mingled.frameworks.checkout import Checkout, Look

GIT = shutil.which("git")

pytestmark = pytest.mark.skipif(GIT is None, reason="no git")


def git(folder: Path, *words: str) -> str:
    """What it prints; nobody's configuration but the repository's own."""
    assert GIT is not None
    who = {"GIT_AUTHOR_NAME": "ann", "GIT_AUTHOR_EMAIL": "ann@example.com"}
    who |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in who.items()}
    environ = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        [GIT, "-C", str(folder), *words], env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def look(folder: Path) -> Checkout:
    with Look(str(folder)) as found:
        return found.end()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with one file, and a folder `src` to work in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "train.py").write_text("print(1)\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no git command."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def test_clean_then_changed(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert look(repository / "src") == Checkout(commit=head, dirty=False)
    (repository / "notes.txt").write_text("untracked\n")
    assert look(repository).dirty is False
    (repository / "src" / "train.py").write_text("print(2)\n")
    assert look(repository / "src") == Checkout(commit=head, dirty=True)
    git(repository, "add", ".")
    assert look(repository).dirty is True
    git(repository, "commit", "-q", "-m", "second")
    assert look(repository) == Checkout(commit=git(repository, "rev-parse", "HEAD"), dirty=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("deaf")
def test_the_commit_is_known_without_git(repository: Path, packed: bool) -> None:
    assert GIT is not None
    head = git(repository, "rev-parse", "HEAD")
    if packed:
        git(repository, "pack-refs", "--all")
        assert not (repository / ".git" / "refs" / "heads" / "main").exists()
    found = look(repository)
    assert (found.commit, found.dirty) == (head, None)
    assert "there is no git command" in found.why


@pytest.mark.parametrize("asked", [True, False])
def test_detached_worktree_and_submodule(
    repository: Path, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "second")
    second = git(tmp_path / "other", "rev-parse", "HEAD")
    outer = tmp_path / "outer"
    git(tmp_path, "init", "-q", "-b", "main", str(outer))
    allow = ("-c", "protocol.file.allow=always")
    git(outer, *allow, "submodule", "--quiet", "add", str(repository), "inner")
    git(outer, "commit", "-q", "-m", "outer")
    git(repository, "checkout", "-q", "--detach")
    if not asked:
        monkeypatch.setattr(checkout, "_git", lambda: None)
    dirty = False if asked else None
    why = "" if asked else look(repository).why
    expected = {
        repository: first,
        tmp_path / "other": second,
        outer / "inner": first,
        outer: git(outer, "rev-parse", "HEAD"),
    }
    for folder, commit in expected.items():
        assert look(folder) == Checkout(commit, dirty, why), folder


def test_no_repository_and_no_commit(tmp_path: Path) -> None:
    assert look(tmp_path) == Checkout(why="the working folder is in no git repository")
    git(tmp_path, "init", "-q", "-b", "main")
    assert look(tmp_path) == Checkout(why="there is no commit yet")


def test_nothing_of_the_repository_is_written_or_run(repository: Path, tmp_path: Path) -> None:
    """Not even where its configuration names commands and its index is stale."""
    trap = tmp_path / "sprung"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\ntouch {trap}\n")
    command.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(command))
    git(repository, "config", "core.hooksPath", str(tmp_path))
    shutil.copy(command, tmp_path / "post-index-change")
    os.utime(repository / "src" / "train.py", (1, 1))
    before = (repository / ".git" / "index").read_bytes()
    assert look(repository).dirty is False
    assert (repository / ".git" / "index").read_bytes() == before
    assert not list((repository / ".git").glob("*.lock"))
    assert not trap.exists()
    git(repository, "status")
    assert trap.exists(), "git itself would have run it"


@pytest.mark.parametrize(
    "section", ['[filter "x"]\n\tclean = false', "[core] [FILTER.x]\nclean=false", "[include]"]
)
def test_filters_and_included_files_are_not_run(repository: Path, section: str) -> None:
    head = git(repository, "rev-parse", "HEAD")
    with (repository / ".git" / "config").open("a") as config:
        config.write(f"{section}\n")
    found = look(repository)
    assert (found.commit, found.dirty) == (head, None)
    assert "filters or other files" in found.why


def test_a_configuration_that_is_too_long_is_not_trusted(repository: Path) -> None:
    with (repository / ".git" / "config").open("a") as config:
        config.write("# \n" * 100_000)
    assert look(repository).why == "its .git/config cannot be read"


def fake_git(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "git").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_a_git_that_is_slow_is_left(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_git(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600", monkeypatch)
    monkeypatch.setattr(checkout, "GIT_S", 0.5)
    found = look(repository)
    assert (found.commit, found.dirty) == (git(repository, "rev-parse", "HEAD"), None)
    assert found.why == "git status took more than 0.5 s"
    pid = tmp_path / "pid"
    if pid.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    "script",
    [
        "exit 128",
        "echo '# branch.oid 1234'; exit 128",
        "echo rubbish",
        "printf '# branch.oid 0123456789012345678901234567890123456789'",
    ],
)
def test_a_git_that_fails_knows_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake_git(tmp_path, script, monkeypatch)
    found = look(repository)
    assert (found.commit, found.dirty) == (git(repository, "rev-parse", "HEAD"), None)
    assert "git status fails" in found.why


def test_a_git_in_the_folder_itself_is_not_run(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "git").write_text("#!/bin/sh\ntouch sprung\n")
    (repository / "git").chmod(0o755)
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    assert look(repository).dirty is False
    assert not (repository / "sprung").exists()


def test_where_git_would_be_led_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a command that a git hook starts."""
    git(tmp_path, "init", "-q", str(tmp_path / "else"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "else" / ".git"))
    head = look(repository).commit
    monkeypatch.delenv("GIT_DIR")
    assert head == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("head", ["ref: ../../secret", "ref: refs/../../secret", "x" * 40, ""])
@pytest.mark.usefixtures("deaf")
def test_a_head_that_leads_astray(tmp_path: Path, head: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    (tmp_path / "secret").write_text("0" * 40)
    assert look(tmp_path).commit is None
