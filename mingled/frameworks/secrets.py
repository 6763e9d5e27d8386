"""What a join says of keys and secrets, read only where there are some."""

from __future__ import annotations

import os
from collections.abc import Mapping


def secrets(secret_file: str, env: Mapping[str, str]) -> tuple[str, str]:
    """The job's own secret and the id of the user's key, as `mingled.keys.told`, which hashes and
    takes some ms to load: most have neither. Raises `BadInput` and `NotPermitted`."""
    base = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "~"), ".config")
    named = secret_file or env.get("MINGLE_SECRET_FILE") or env.get("MINGLE_KEY_FILE")
    if not named and not os.path.exists(os.path.join(base, "mingled", "key")):
        return "", ""
    from mingled.keys import told

    return told(secret_file, env)
