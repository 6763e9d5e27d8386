"""The commands of this machine that the lab is made with, and the package that has each."""

from __future__ import annotations

import os
import shutil

from mingled.errors import MingleError

_PACKAGES = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
    "hostname": "hostname",
    "nft": "nftables",
    "tcpdump": "tcpdump",
}

NEEDED = ("ip", "unshare", "nsenter", "setsid", "mount", "hostname")


def search_path() -> str:
    """PATH with the system's sbin directories, which many users' PATH lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing(name: str) -> str | None:
    """One sentence if the command `name` (such as "tcpdump") is not here, else None."""
    if shutil.which(name, path=search_path()):
        return None
    package = _PACKAGES.get(name, name)
    return f"The command `{name}` is missing: install it with `apt install {package}`."


def tool(name: str) -> str:
    """The full path of the command `name`; a `MingleError` names the package if it is missing."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise MingleError(str(missing(name)))
    return found
