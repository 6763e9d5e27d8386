"""`examples/kubernetes`: the manifest by its schema; what its pods run, on a network as theirs."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mingled.lab import Lan, Node
from mingled.lab.tools import missing
from tests.lan.conftest import MakeLan, absent
from tests.lan.helpers import BIN, Running, start

from .containers import container, image
from .documented import EXAMPLES, copy_of, needs

EXAMPLE = "kubernetes"
MANIFEST = EXAMPLES / EXAMPLE / "digits.yaml"
NAMESPACE = "demo-project"


def manifest() -> dict[str, dict[str, Any]]:
    """What the file asks for, by kind."""
    needs("yaml")
    parts = MANIFEST.read_text().split("\n---\n")
    documents = [msgspec.yaml.decode(part, type=dict[str, Any]) for part in parts]
    return {document["kind"]: document for document in documents}


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("version", ["1.28", "1.34"])
def test_the_schema_is_content(version: str) -> None:
    validator = BIN / "kubernetes-validate"
    if not validator.exists():
        absent("kubernetes-validate is not installed")
    done = subprocess.run(
        [validator, "--strict", "--kubernetes-version", version, MANIFEST],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert (done.stderr + done.stdout).count(" passed ") == 2


def test_the_service_lists_all_pods_of_the_job_from_the_start() -> None:
    service, job = manifest()["Service"], manifest()["Job"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert job["spec"]["completionMode"] == "Indexed"
    # Fewer at once, and those would wait for others that are not allowed to start.
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert f"--nnodes={job['spec']['completions']}" in pod(0)[0]


# ---------------------------------------------------------------- what its pods do


def pod(index: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of that pod's container, as the kubelet hands them over."""
    (spec,) = manifest()["Job"]["spec"]["template"]["spec"]["containers"]
    env = {"JOB_COMPLETION_INDEX": str(index)}  # the Job's controller adds it
    for variable in spec.get("env", []):
        if "value" in variable:
            env[variable["name"]] = variable["value"]
        else:
            assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
            env[variable["name"]] = NAMESPACE
    words = [*spec.get("command", []), *spec.get("args", [])]
    argv = [re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], word) for word in words]
    return argv, env


class Cluster:
    """A pod's network: neither multicast nor broadcast, and one name server for all."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        if sentence := missing("nft"):
            absent(sentence)
        if shutil.which("dnsmasq", path="/usr/sbin:/usr/bin") is None:
            absent("The command `dnsmasq` is missing: install it with `apt install dnsmasq-base`.")
        self._names, self._resolv = folder / "hosts", folder / "resolv.conf"
        self._resolv.write_text(f"nameserver {lan.node(1).address}\n")
        self._service = manifest()["Service"]["metadata"]["name"]
        for node in lan.nodes:
            self.admit(node)
        self._write([])
        options = ("-k", "-C", "/dev/null", "--no-resolv", "--no-hosts")
        unrooted = ("--user=root", "--group=root", "--pid-file=", "--log-facility=-")
        hosts = f"--addn-hosts={self._names}"
        self._server = start(lan.node(1), "/usr/sbin/dnsmasq", *options, hosts, *unrooted)
        self._server.until("started")

    def admit(self, node: Node) -> None:
        for match in ("meta pkttype multicast", "meta pkttype broadcast"):
            node.drop(match)
        node.run(["mount", "--bind", str(self._resolv), "/etc/resolv.conf"], check=True)

    def publish(self, addresses: list[str]) -> None:
        """The headless service's pods, from now on."""
        self._write(addresses)
        self._server.says_after(
            lambda: self._server.process.send_signal(signal.SIGHUP), f"read {self._names}"
        )

    def _write(self, addresses: list[str]) -> None:
        name = f"{self._service}.{NAMESPACE}.svc.cluster.local"
        self._names.write_text("".join(f"{address} {name}\n" for address in addresses))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    needs("torch", "sklearn", "yaml")
    return copy_of(EXAMPLE, tmp_path)


def run_pod(node: Node, folder: Path, index: int) -> Running:
    argv, env = pod(index)
    assert image(folder / "Dockerfile").cmd == argv[argv.index("--") + 1 :]
    return container(node, argv, folder, env)


@pytest.mark.lan
@pytest.mark.torch
def test_pods_find_each_other_by_the_service(lan: MakeLan, folder: Path, tmp_path: Path) -> None:
    three = lan(nodes=3)
    Cluster(three, tmp_path).publish([node.address for node in three.nodes])
    pods = [run_pod(node, folder, index) for index, node in enumerate(three.nodes)]
    outs = [one.well().out for one in pods]
    assert "3 processes on cpu, rank 0 is at 10.77.0.1" in outs[0]
    assert float(re.findall(r"test accuracy ([\d.]+)%", outs[0])[0]) > 90
    assert outs[1:] == ["", ""]
    assert not any("joins again" in one.err for one in pods)


@pytest.mark.lan
@pytest.mark.torch
def test_a_pod_is_replaced_and_the_others_wait_for_it(
    lan: MakeLan, folder: Path, tmp_path: Path
) -> None:
    three = lan(nodes=3)
    cluster = Cluster(three, tmp_path)
    cluster.publish([node.address for node in three.nodes])
    pods = [run_pod(node, folder, index) for index, node in enumerate(three.nodes)]
    pods[0].until("epoch  2/", kind="out")
    pods[2].process.kill()  # as when its memory is used up
    pods[2].end()
    for one in pods[:2]:
        one.until("joins again: restart 1 of 10")
    node, new = three.node(3), "10.77.0.99"  # another pod has another address
    node.configure([f"addr del {node.address}/24 dev eth0", f"addr add {new}/24 brd + dev eth0"])
    cluster.publish([*(other.address for other in three.nodes[:2]), new])
    pods[2] = run_pod(node, folder, 2)
    outs = [one.well().out for one in pods]
    assert outs[0].count("3 processes on cpu, rank 0 is at 10.77.0.1") == 2
    assert "test accuracy" in outs[0]
    assert f"({new}, " in pods[0].err
