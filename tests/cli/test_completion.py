"""`mingle completion` in the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mingled.cli.completion import PROGRAMS, SHELLS, command
from tests.lan.conftest import absent

BIN = Path(sys.executable).parent


def said(shell: str, script: str, *options: str) -> list[str]:
    """The lines that `script` prints in that shell, which has our commands on its PATH."""
    program = shutil.which(shell)
    if program is None:
        absent(f"{shell} is not installed")
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    words = [program or shell, *options, "-c", script]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def in_bash(line: str) -> list[str]:
    """What the tab key offers at the end of `line`."""
    words = line.split(" ")
    script = f"""
eval "$(mingle completion bash)"
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
compopt() {{ echo compopt "$@"; }}
$function {words[0]} '{words[-1]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return said("bash", script, "--noprofile", "--norc")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mingle ke", ["key"]),
        ("mingle key sh", ["show"]),
        ("mingle wait --on-lost re", ["restart"]),
        ("mingle-wait --node", ["--node-rank", "--nodes"]),
        ("mingle-wait --on-lost ", ["ignore", "restart", "stop", "warn"]),
        ("mingled --log-level war", ["warning"]),
    ],
)
def test_bash_completes(line: str, offered: list[str]) -> None:
    assert sorted(in_bash(line)) == offered


def test_bash_completes_files_for_cmd() -> None:
    assert in_bash("mingle-wait --job bert -- torchrun tr")[0] == "compopt -o default"


def test_fish_completes() -> None:
    asked = "mingle completion fish | source; complete -C'mingle ke'"
    (line,) = said("fish", asked, "--no-config")
    assert line.startswith("key\tThe cluster's key")
    asked = "mingle completion fish | source; complete -C'mingle-wait --on-lost re'"
    assert said("fish", asked, "--no-config") == ["restart"]


def test_zsh_knows_what_completes_each_program() -> None:
    asked = 'autoload -U compinit; compinit -D; eval "$(mingle completion zsh)"; '
    asked += "; ".join(f"print -- $_comps[{program}]" for program in PROGRAMS)
    names = [f"_{program.replace('-', '_')}_completion" for program in PROGRAMS]
    assert said("zsh", asked, "-f") == names


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shells_text_names_every_program(shell: str) -> None:
    done = CliRunner().invoke(command, [shell])
    assert done.exit_code == 0
    for program in PROGRAMS:
        assert program in done.output


def test_another_shell_is_refused_with_those_that_are_known() -> None:
    done = CliRunner().invoke(command, ["tcsh"])
    assert done.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in done.output
