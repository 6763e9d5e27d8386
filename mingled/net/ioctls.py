"""What the kernel says of one interface without netlink, always about our own network namespace.

/sys may show another namespace's interfaces (`nsenter --net` leaves it mounted), so it is believed
only where it gives the interface the same index. Everything here is Linux; elsewhere, and where the
interface is gone, the answer is None.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCETHTOOL, _SIOCGIWNAME = 0x8913, 0x8921, 0x8946, 0x8B01
_ETHTOOL_GSET, _ETHTOOL_GLINK = 0x1, 0xA
_NAME_BYTES = 16  # IFNAMSIZ, the last byte is zero
_IFREQ_BYTES = 40
_ETHTOOL_CMD_BYTES = 44

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40

_SYSFS = Path("/sys/class/net")

_SPEED_UNKNOWN = 0xFFFF_FFFF


def index(name: str) -> int:
    """The kernel's number of the interface; 0 where there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def flags(name: str) -> int | None:
    """IFF_UP, IFF_RUNNING, ..."""
    found = _ask(_SIOCGIFFLAGS, name)
    return None if found is None else int(struct.unpack_from("=H", found, _NAME_BYTES)[0])


def settle(name: str) -> None:
    """Have `flags`, and netlink, show the carrier as it is now: without this question the kernel
    takes up to a second to work it in (`linkwatch_sync_dev`)."""
    _ethtool(name, _ETHTOOL_GLINK, 8)


def mtu_bytes(name: str) -> int | None:
    found = _ask(_SIOCGIFMTU, name)
    return None if found is None else int(struct.unpack_from("=i", found, _NAME_BYTES)[0])


def speed_mbits(name: str) -> int | None:
    """In Mbit/s, as ethtool says; None too where the driver does not know."""
    command = _ethtool(name, _ETHTOOL_GSET, _ETHTOOL_CMD_BYTES)
    if command is None:
        return None
    low, high = struct.unpack_from("=H", command, 12)[0], struct.unpack_from("=H", command, 28)[0]
    speed = int(high << 16 | low)
    # Drivers that know nothing say -1, in 16 or 32 bits, or 0.
    return None if speed in (0, 0xFFFF, _SPEED_UNKNOWN) else speed


def wireless(name: str) -> bool:
    """Whether it is a Wi-Fi card: by the wireless extensions' call, else by /sys."""
    if _ask(_SIOCGIWNAME, name) is not None:
        return True
    # Whether it is our namespace's is asked last: most interfaces have neither.
    at_all = any(os.path.exists(f"{_SYSFS}/{name}/{at}") for at in ("phy80211", "wireless"))
    return at_all and sysfs(name) is not None


def sysfs(name: str, root: Path = _SYSFS) -> Path | None:
    """Its folder, if /sys shows the namespace that we are in."""
    folder = root / name
    try:
        same = int((folder / "ifindex").read_text()) == index(name)
    except (OSError, ValueError):
        return None
    return folder if same else None


def _ethtool(name: str, command: int, size_bytes: int) -> array.array[int] | None:
    """What the driver made of a command of `linux/ethtool.h` and its structure."""
    asked = array.array("B", struct.pack("=I", command).ljust(size_bytes, b"\0"))
    pointer = struct.pack("@P", asked.buffer_info()[0])
    return None if _ask(_SIOCETHTOOL, name, pointer) is None else asked


def _ask(request: int, name: str, argument: bytes = b"") -> bytes | None:
    """The `struct ifreq` that the kernel filled in."""
    encoded = name.encode(errors="surrogateescape")
    if sys.platform != "linux" or not 0 < len(encoded) < _NAME_BYTES or b"\0" in encoded:
        return None
    message = encoded.ljust(_NAME_BYTES, b"\0") + argument
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return fcntl.ioctl(sock.fileno(), request, message.ljust(_IFREQ_BYTES, b"\0"))
    except OSError:
        return None
