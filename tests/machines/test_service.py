"""An administrator installs the service, looks after it, and takes it away."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import INSTALLED, install
from .image import VENV
from .machine import Machine, until

MINGLE = f"{VENV}/bin/mingle"

Site = tuple[Machine, ...]


def test_it_runs_for_everybody_as_a_user_of_its_own(site: Site) -> None:
    one = site[0]
    uid = one.root("ps", "-o", "user=", "-p", str(one.daemon)).stdout.strip()
    assert uid == "mingle"
    assert one.root("stat", "-c", "%a %U", "/run/mingled/control.sock").stdout == "666 root\n"
    (report,) = json.loads(one.user(MINGLE, "status", "--json").stdout)
    assert (report["pid"], report["private"], report["release"]) == (one.daemon, False, INSTALLED)
    assert report["addresses"] == [f"host0 {one.address}"]
    said = json.loads(one.user(MINGLE, "service", "status", "--json").stdout)
    assert said["running_release"] == said["installed_release"] == INSTALLED
    states = {unit["name"]: (unit["state"], unit["enabled"]) for unit in said["units"]}
    assert states == {
        "mingled.socket": ("active", True),
        "mingled.service": ("active", True),
    }
    assert one.shown("StatusText").startswith("no jobs; link port 29490")


def test_installing_again_changes_nothing(site: Site) -> None:
    one = site[0]
    before = one.daemon
    done = one.root(MINGLE, "service", "install")
    assert done.stderr == (
        f"mingle service: mingled {INSTALLED} is installed and runs already: nothing to do\n"
    )
    assert one.daemon == before


def test_an_ordinary_user_may_look_only(site: Site) -> None:
    done = site[0].user(MINGLE, "service", "install", check=False)
    assert done.returncode == 85
    assert done.stderr == (
        f"mingle: mingle service install on gpu1 is for root: sudo {MINGLE} service install\n"
    )


def test_code_of_somebody_else_is_not_run(site: Site) -> None:
    one = site[0]
    package = one.root(f"{VENV}/bin/python", "-c", "import mingled; print(mingled.__path__[0])")
    file = package.stdout.strip() + "/daemon.py"
    one.root("chown", "ada", file)
    done = one.root(MINGLE, "service", "install", check=False)
    one.root("chown", "root", file)
    assert done.returncode == 2
    assert done.stderr == (
        f"mingle: {file} on gpu1 belongs to ada, who could change what runs; a daemon for all "
        "users must not run it: make the installation anew: sudo /usr/bin/python3 -m venv "
        "--clear /opt/mingled\n"
    )
    one.root("cp", "-a", VENV, "/home/ada/venv")
    words = ("/home/ada/venv/bin/python", "-m", "mingled.cli.mingle", "service", "install")
    done = one.root(*words, check=False)
    one.root("rm", "-r", "/home/ada/venv")
    assert done.returncode == 2
    assert "/home/ada/venv/bin/mingled on gpu1 lies below a home (/home)" in done.stderr


def test_the_key_is_the_daemons_and_nobody_elses(site: Site) -> None:
    one = site[0]
    one.root(MINGLE, "key", "new")
    try:
        one.root("systemctl", "reload", "mingled")
        mode = one.root("stat", "-c", "%a %U %G", "/etc/mingled/key").stdout
        assert mode == "640 root mingle\n"
        assert one.user("cat", "/etc/mingled/key", check=False).returncode == 1
        (report,) = json.loads(one.user(MINGLE, "status", "--json").stdout)
        key_id = one.root(MINGLE, "key", "id").stdout.split()[0]
        assert report["key_ids"] == [key_id], one.journal()
    finally:
        one.root("rm", "/etc/mingled/key")
        one.root("systemctl", "restart", "mingled")


def test_a_reload_with_a_bad_file_fails_and_changes_nothing(site: Site) -> None:
    one = site[0]
    file = "/etc/mingled/mingled.toml"
    before = one.daemon
    one.root("sh", "-c", f"echo 'log_levle = \"debug\"' > {file}")
    done = one.root("systemctl", "reload", "mingled", check=False)
    assert done.returncode != 0
    named = f"{file}, line 1 on gpu1: no key 'log_levle'; there are socket, link_port"
    assert named in one.journal()
    one.root("sh", "-c", f"echo 'log_level = \"debug\"' > {file}")
    one.root("systemctl", "reload", "mingled")
    one.root("rm", file)
    one.root("systemctl", "reload", "mingled")
    assert "configuration read again: changed: log_level" in one.journal()
    assert one.daemon == before


def test_a_bad_file_is_no_reason_to_try_again_and_again(site: Site) -> None:
    one = site[0]
    file = "/etc/mingled/mingled.toml"
    one.root("sh", "-c", f"echo 'peers = 7' > {file}")
    assert one.root("systemctl", "restart", "mingled", check=False).returncode != 0
    one.root("rm", file)
    assert (one.shown("ActiveState"), one.shown("NRestarts")) == ("failed", "0")
    done = one.user(MINGLE, "service", "status", check=False)
    assert done.returncode == 80
    assert "the service mingled on gpu1 is failed (exit-code); see journalctl" in done.stderr
    one.root("systemctl", "start", "mingled")


def test_an_address_that_comes_late_is_waited_for(site: Site) -> None:
    one = site[0]
    file = "/etc/mingled/mingled.toml"
    one.root("systemctl", "reset-failed", "mingled")  # what other tests have started counts, too
    one.root("sh", "-c", f"echo 'subnet = [\"10.79.0.0/24\"]' > {file}")
    try:
        assert one.root("systemctl", "restart", "mingled", check=False).returncode != 0
        assert "gpu1 has no address in 10.79.0.0/24" in one.journal()
        until(lambda: int(one.shown("NRestarts")) > 5, "systemd gives up")
        one.root("ip", "address", "add", "10.79.0.1/24", "dev", "host0")
        until(lambda: one.shown("ActiveState") == "active", "it does not start")
    finally:
        one.root("ip", "address", "delete", "10.79.0.1/24", "dev", "host0", check=False)
        one.root("rm", file)
        one.root("systemctl", "restart", "mingled")


def test_a_daemon_by_hand_comes_first(site: Site) -> None:
    one = site[0]
    one.root(MINGLE, "service", "uninstall")
    hand = one.start("mingled", user="root")
    hand.until("on /run/mingled/control.sock, link port ")
    before = one.root("stat", "-c", "%i", "/run/mingled/control.sock").stdout
    done = one.root(MINGLE, "service", "install", check=False)
    assert done.returncode == 80
    assert "a mingled that is no service serves it already" in done.stderr
    assert one.root("stat", "-c", "%i", "/run/mingled/control.sock").stdout == before
    (report,) = json.loads(one.user(MINGLE, "status", "--json").stdout)
    one.root("kill", "-KILL", str(report["pid"]))
    hand.end()
    assert "control.sock.lock" in one.root("ls", "/run/mingled").stdout
    one.root(MINGLE, "service", "install")
    assert one.shown("ActiveState") == "active"


def test_failures_are_forgotten_at_the_way_out_and_in(site: Site) -> None:
    one = site[0]
    file = "/etc/mingled/mingled.toml"

    def fail() -> None:
        one.root("sh", "-c", f"echo 'peers = 7' > {file}")
        for _ in range(12):  # eight starts in 10 s are allowed
            one.root("systemctl", "restart", "mingled", check=False)
        one.root("rm", file)

    fail()
    until(lambda: "Start request repeated too quickly" in one.journal(), "there is no limit")
    one.root(MINGLE, "service", "install")
    assert one.shown("ActiveState") == "active"
    fail()
    one.root(MINGLE, "service", "uninstall")
    assert "mingled" not in one.root("systemctl", "--failed", "--plain").stdout
    one.root(MINGLE, "service", "install")
    assert one.shown("ActiveState") == "active"


def test_the_whole_way_out_and_in_again(site: Site, wheels: Path) -> None:
    one = site[0]
    done = one.root(MINGLE, "service", "uninstall")
    assert "mingle service: removed /etc/systemd/system/mingled.service\n" in done.stderr
    again = one.root(MINGLE, "service", "uninstall")
    assert again.stderr == ("mingle service: no unit of mingled is installed here: nothing to do\n")
    status = one.user(MINGLE, "service", "status", check=False)
    assert status.returncode == 80
    assert "mingled is no service on gpu1; sudo /opt/mingled/bin/mingle service" in status.stderr
    assert one.root("ls", "/run/mingled").stdout == ""
    install(one, wheels, INSTALLED)
    done = one.root(MINGLE, "service", "install")
    assert "wrote /etc/systemd/system/mingled.service" in done.stderr
    assert f"mingled {INSTALLED} runs for every user of gpu1, and at boot" in done.stderr
