"""Config to environment variables, and back to what is only a wish."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mingled.core.config import Config, Member
from mingled.core.words import Form
from mingled.errors import BadInput
from mingled.frameworks.environment import (
    EXPORTED,
    VARIABLES,
    check_interfaces,
    defaults,
    environment,
    exported,
)

NODES = [0, 0, 1]  # node ranks by rank: two processes on the first node


def member(rank: int) -> Member:
    return Member(
        rank=rank,
        node_rank=NODES[rank],
        local_index=rank % 2,
        nproc=1,
        global_rank=rank,
        host=f"gpu{NODES[rank]}",
        address=f"10.0.0.{NODES[rank] + 1}",
        user="ada",
        node=f"{NODES[rank]:032x}",
        participant=f"{rank:032x}",
    )


def config(form: Form, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "job": "bert",
        "form": form,
        "round": 2,
        "claim": "c" * 32,
        "rank": 1,
        "master_addr": "10.0.0.1",
        "master_port": 29512,
        "interface": "eth0",
        "address": "10.0.0.1",
        "nnodes": 2,
        "node_rank": 0,
        "nproc_per_node": 1,
        "global_rank": 1,
        "world_size": 3,
        "local_rank": 1,
        "local_world_size": 2,
        "members": (member(0), member(1), member(2)),
        "leader_host": "gpu0",
    }
    return Config(**values | changes)


def launcher() -> Config:
    return config(Form.LAUNCHER, nproc_per_node=4, global_rank=4, world_size=8, local_rank=0)


def plain(**changes: Any) -> Config:
    sizes = dict.fromkeys(["nnodes", "world_size", "local_world_size", "global_rank"], 0)
    return config(Form.PLAIN, **sizes | {"members": ()} | changes)


def for_frameworks(values: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("MINGLE_") and not name.endswith("_IFNAME")
    }


def test_launcher_form() -> None:
    assert for_frameworks(environment(launcher(), present={}).values) == {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "10.0.0.1",
        "PET_MASTER_PORT": "29512",
        "PET_NPROC_PER_NODE": "4",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29512",
    }


def test_process_form() -> None:
    assert for_frameworks(environment(config(Form.PROCESS), present={}).values) == {
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29512",
        "WORLD_SIZE": "3",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }


def test_plain_form_brings_no_sizes() -> None:
    values = environment(plain(interface=None, address=None), present={}).values
    assert for_frameworks(values) == {
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29512",
        "RANK": "1",
    }
    assert not [name for name in values if name.endswith(("IFNAME", "SIZE", "NNODES", "HOSTS"))]
    assert "MINGLE_INTERFACE" not in values


@pytest.mark.parametrize("form", list(Form))
def test_the_table_holds_every_field_of_the_config(form: Form) -> None:
    names = {variable.name for variable in VARIABLES if form in variable.forms}
    apart = {"members", "leader_link"}  # MINGLE_HOSTS says one; the other is between daemons
    fields = {f"MINGLE_{name.upper()}" for name in Config.__struct_fields__ if name not in apart}
    if form is not Form.PLAIN:
        assert names >= fields
    assert all(variable.meaning for variable in VARIABLES)


def test_hosts_are_the_nodes_in_node_rank_order() -> None:
    values = environment(config(Form.PROCESS), present={}).values
    assert values["MINGLE_HOSTS"] == "10.0.0.1,10.0.0.2"
    assert values["MINGLE_FORM"] == "process"


def test_the_interface_in_each_librarys_syntax_unless_the_user_set_it() -> None:
    values = environment(launcher(), present={"GLOO_SOCKET_IFNAME": "ib0"}).values
    assert values["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert values["TP_SOCKET_IFNAME"] == "eth0"
    assert "GLOO_SOCKET_IFNAME" not in values
    assert environment(launcher(), present={"GLOO_SOCKET_IFNAME": ""}).values[
        "GLOO_SOCKET_IFNAME"
    ] == ("eth0")


@pytest.mark.parametrize(
    ("address", "present", "family"),
    [
        ("fd00::1", {}, "AF_INET6"),
        ("fe80::1%eth0", {}, "AF_INET6"),
        ("10.0.0.1", {}, None),
        ("fd00::1", {"NCCL_SOCKET_FAMILY": "AF_INET"}, None),
        ("fd00::1", {"NCCL_SOCKET_IFNAME": "ib0"}, None),
    ],
)
def test_nccl_is_told_of_ipv6(address: str, present: dict[str, str], family: str | None) -> None:
    values = environment(config(Form.PROCESS, address=address), present=present).values
    assert values.get("NCCL_SOCKET_FAMILY") == family


def test_each_replaced_value_is_reported_and_ours_are_not() -> None:
    first = environment(config(Form.PROCESS), present={"MASTER_ADDR": "h", "RANK": "1"})
    assert first.replaced == [("MASTER_ADDR", "h", "10.0.0.1")]
    present = first.merged({"HOME": "/root", "MASTER_ADDR": "h"})
    again = environment(config(Form.PROCESS, master_addr="10.0.0.9"), present=present)
    assert again.replaced == []
    assert again.values["MASTER_ADDR"] == "10.0.0.9"


def test_our_own_exports_are_no_defaults_and_a_changed_one_is() -> None:
    present = environment(config(Form.PROCESS), present={}).merged({"HOME": "/root"})
    assert defaults(present) == {"HOME": "/root"}
    assert defaults(present | {"RANK": "2"}) == {"HOME": "/root", "RANK": "2"}


@pytest.mark.parametrize("record", ["", "{", "[1]", '{"RANK": 1}', "\udce9"])
def test_a_broken_record_counts_as_none(record: str) -> None:
    assert defaults({"RANK": "1", EXPORTED: record}) == {"RANK": "1"}


def test_the_record_holds_any_value() -> None:
    values = {"A": "é\n\"'\\ ", "B": ""}
    assert msgspec.json.decode(exported(values)) == values


def test_another_forms_leftovers_of_ours_go_and_the_users_stay() -> None:
    present = environment(config(Form.PROCESS), present={}).merged({"HOME": "/root"})
    assert present["WORLD_SIZE"] == "3"
    change = environment(launcher(), present=present | {"LOCAL_RANK": "7"})
    assert {"WORLD_SIZE", "RANK", "NODE_RANK"} <= set(change.unset)
    assert "LOCAL_RANK" not in change.unset
    merged = change.merged(present)
    assert "WORLD_SIZE" not in merged
    assert merged["HOME"] == "/root"


def test_our_old_interface_goes_when_the_new_one_is_not_known() -> None:
    present = environment(launcher(), present={}).merged({})
    change = environment(plain(interface=None), present=present)
    assert "NCCL_SOCKET_IFNAME" in change.unset
    assert environment(launcher(), present=present).unset == []


HERE = ["lo", "eth0", "ib0", "eth1.100"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_SOCKET_IFNAME", "=eth0"),
        ("NCCL_SOCKET_IFNAME", "=eth9,ib0:4711"),
        ("NCCL_SOCKET_IFNAME", "eth"),
        ("NCCL_SOCKET_IFNAME", "wlan,ib"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo"),
        ("NCCL_SOCKET_IFNAME", ""),
        ("GLOO_SOCKET_IFNAME", "eth0"),
        ("GLOO_SOCKET_IFNAME", "eth0,ib0,"),
        ("TP_SOCKET_IFNAME", "eth1.100"),
        ("TP_SOCKET_IFNAME", ""),
    ],
)
def test_interfaces_that_the_node_has(name: str, value: str) -> None:
    check_interfaces({name: value}, HERE)


@pytest.mark.parametrize(
    ("name", "value", "missing"),
    [
        ("NCCL_SOCKET_IFNAME", "=eth", "eth"),
        ("NCCL_SOCKET_IFNAME", "=eth9,ib1", "eth9 or ib1"),
        ("NCCL_SOCKET_IFNAME", "wlan", r"wlan\*"),
        ("GLOO_SOCKET_IFNAME", "eth0,eth9", "eth9"),
        ("GLOO_SOCKET_IFNAME", "=eth0", "=eth0"),
        ("GLOO_SOCKET_IFNAME", "eth", "eth"),
        ("TP_SOCKET_IFNAME", "eth0,ib0", "eth0,ib0"),
    ],
)
def test_interfaces_that_the_node_lacks(name: str, value: str, missing: str) -> None:
    with pytest.raises(
        BadInput, match=f"{name}={value}: .* no interface {missing}, .*unset {name}"
    ):
        check_interfaces({name: value.replace("\\", "")}, HERE)


def test_an_interface_that_we_set_ourselves_is_passed() -> None:
    check_interfaces(environment(launcher(), present={}).merged({}), ["lo"])
