"""What is printed for `eval`, evaluated by the real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mingled.cli.shell import assignments, failure

SHELLS = [
    pytest.param(
        [name, *quiet], marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name}")
    )
    for name, *quiet in (["bash", "--norc"], ["dash"], ["zsh", "-f"], ["sh"])
]

ANY_SHELL = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: str(shell[0]))

# Python hands an environment on as UTF-8: no NUL, no lone surrogates.
VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.text(alphabet="'\"\\$`!(){};&|<>*?~#=\n\t ab-", max_size=40),
    st.sampled_from(["$(exit 7)", "`exit 7`", "'", "''", "\\", "\n", "a'\n'b", "!!", "-n", "$$"]),
)


def evaluate(
    shell: list[str], text: str, then: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `eval "$(...)"` as a user does, then `then`; the text arrives through a variable."""
    script = f'eval "$(printf %s "$TEXT")"\n{then}\n'
    done = subprocess.run(
        [*shell, "-c", script],
        env={"PATH": "/usr/bin:/bin", "TEXT": text, "LC_ALL": "C.UTF-8"} | env,
        capture_output=True,
        check=False,
        timeout=60,
    )
    # Decoded here: text mode would make a newline of a carriage return.
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@ANY_SHELL
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(VALUES, min_size=1, max_size=12))
def test_fault_38_values_arrive_as_they_are(shell: list[str], values: list[str]) -> None:
    wanted = {f"V{at}": value for at, value in enumerate(values)}
    done = evaluate(shell, assignments(wanted, [], adopt=None), "env -0")
    assert (done.returncode, done.stderr) == (0, "")
    got = dict(entry.partition("=")[::2] for entry in done.stdout.split("\0"))
    assert {name: got.get(name) for name in wanted} == wanted


@ANY_SHELL
def test_zsh_and_bash_options_do_not_change_the_reading(shell: list[str]) -> None:
    text = assignments({"A": "'it''s'", "B": "x y"}, [], adopt=None)
    strict = "set -eu; " + ("setopt rc_quotes; " if shell[0] == "zsh" else "")
    script = strict + 'eval "$TEXT"; printf "%s|%s" "$A" "$B"'
    done = subprocess.run(
        [*shell, "-c", script], env={"TEXT": text}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("'it''s'|x y", "")


@ANY_SHELL
def test_without_quotes_around_the_substitution(shell: list[str]) -> None:
    text = assignments({"A": "1", "B": "2"}, ["C"], adopt=["true"])
    done = evaluate(
        shell, "", 'eval $(printf %s "$MORE"); echo "$? $A $B ${C-none}"', MORE=text, C="9"
    )
    assert done.stdout == "0 1 2 none\n"


@ANY_SHELL
def test_stale_names_go(shell: list[str]) -> None:
    done = evaluate(
        shell,
        assignments({"A": "1"}, ["OLD", "NEVER_SET"], adopt=None),
        'echo "${OLD-none}"',
        OLD="4",
    )
    assert (done.stdout, done.stderr) == ("none\n", "")


@ANY_SHELL
def test_the_evaluating_shell_adopts_and_eval_returns_its_status(shell: list[str]) -> None:
    adopt = ["/bin/sh", "-c", 'echo "$1 $2"; exit 7', "it's mingle", "tok$en"]
    done = evaluate(shell, assignments({"A": "1"}, [], adopt=adopt), 'echo "$? $$"')
    token, adopted, status, pid = done.stdout.split()
    assert (token, status) == ("tok$en", "7")
    assert adopted == pid


@ANY_SHELL
def test_a_failure_makes_eval_return_it_and_the_shell_live(shell: list[str]) -> None:
    assert evaluate(shell, failure(82), 'echo "$?"').stdout == "82\n"


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A;reboot"])
def test_a_name_that_is_none_is_our_mistake(name: str) -> None:
    with pytest.raises(ValueError, match="no shell variable name"):
        assignments({name: "1"}, [], adopt=None)
    with pytest.raises(ValueError, match="no shell variable name"):
        assignments({}, [name], adopt=None)


def test_a_nul_byte_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="NUL"):
        assignments({"A": "\0"}, [], adopt=None)
