"""The examples run as their README says: on LANs of namespaces, with what their files hold."""

from __future__ import annotations

from tests.lan.conftest import lan

__all__ = ["lan"]
