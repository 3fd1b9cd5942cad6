"""Container file, compose file and manifests name what there is: files, programs, flags, settings, ports, probes.

No engine for containers runs here. What could be misspelt is held against the sources instead.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from zmqrt.bridge_http.__main__ import main as bridge
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.paths import OWN
from zmqrt.broker.__main__ import main as broker
from zmqrt.broker.config import BrokerSettings
from zmqrt.client.cli.main import COMMANDS
from zmqrt.protocol.settings.declare import settings_of
from zmqrt.worker.__main__ import main as worker
from zmqrt.worker.config import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
PROGRAMS: dict[str, click.Command] = {"zmqrt-broker": broker, "zmqrt-bridge": bridge, "zmqrt-worker": worker}
SETTINGS = (BrokerSettings, BridgeSettings, WorkerSettings)
VARIABLES = {name for cls in SETTINGS for setting in settings_of(cls) for name in setting.env_names}
USER = 10001
DRAIN_S = max(cls().drain_timeout_s for cls in (BridgeSettings, WorkerSettings))


def instructions() -> list[tuple[str, str]]:
    """Read the container file: continued lines joined, comments left out."""
    lines = [line for line in CONTAINERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def parse(command: list[str]) -> dict[str, Any]:
    """Parse a command as its program would, and return its flags; an unknown one is an error."""
    name, *arguments = command
    return PROGRAMS[name].make_context(name, arguments).params


def manifests() -> list[dict[str, Any]]:
    """Return all objects."""
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    texts = [(DEPLOY / "kubernetes" / name).read_text(encoding="utf-8") for name in listed]
    return [one for text in texts for one in yaml.safe_load_all(text)]


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each pod with its one container."""
    for one in manifests():
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))


# --- the image --------------------------------------------------------------------------------------------------------


def test_what_is_copied_exists_and_is_let_through() -> None:
    """A file that .dockerignore holds back fails the build; one that is not held back may be a secret."""
    ignore = (DEPLOY / "container" / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }

    assert "*" in ignore
    assert copied == allowed
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_every_folder_of_the_package_is_copied() -> None:
    """A new one would be missing in the image alone."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    copied = " ".join(rest for word, rest in instructions() if word == "COPY").split()

    assert set(tool["package-dir"].values()) <= set(copied)


def test_stages_exist_before_they_are_used_and_the_last_one_is_nobody_special() -> None:
    """A user with a number, so that Kubernetes can see that it is not root."""
    stages: list[str] = []
    for word, rest in instructions():
        if word == "FROM":
            image, *named = rest.split(" AS ")
            assert image in {*stages, "${BASE}"}
            stages += named
        if found := re.match(r"--from=(\w+)", rest):
            assert found[1] in stages
    last = dict(instructions())

    assert last["USER"] == f"{USER}:{USER}"
    assert any(f"--uid {USER}" in rest for _, rest in instructions())
    assert last["STOPSIGNAL"] == "SIGTERM"


def test_libraries_keep_in_the_image_what_they_keep_under_systemd() -> None:
    """Their own places are in the user's home, where a container whose root is for reading alone has no room."""
    unit = (DEPLOY / "systemd" / "zmqrt-worker.service").read_text(encoding="utf-8")
    kept = {word for line in re.findall(r"^Environment=(.+)", unit, re.MULTILINE) for word in line.split()}
    told = {word for word, rest in instructions() if word == "ENV" for word in rest.split()}

    assert len(kept) > 3
    assert kept <= told


def test_extras_of_the_image_are_extras_of_the_package() -> None:
    """As a default, and in the page for operators."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    named = [rest.partition("=")[2] for _, rest in instructions() if rest.startswith("EXTRAS=")]
    named += re.findall(r"EXTRAS=(\S+)", text)

    assert {extra for one in named for extra in one.split(",")} == {"bridge", "worker", "models"}
    assert {extra for one in named for extra in one.split(",")} <= set(extras)


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell to read them")
def test_shells_can_read_what_is_run() -> None:
    """In the container file and in the compose file."""
    scripts = [rest for word, rest in instructions() if word == "RUN"]
    scripts += [one["command"][2] for one in COMPOSE["services"].values() if one["command"][:2] == ["sh", "-c"]]

    assert len(scripts) > 3
    for script in scripts:
        subprocess.run(["sh", "-n", "-c", script], check=True)


# --- what a release is installed with ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "extras"), [("bridge.txt", ["bridge"]), ("worker.txt", ["worker", "models"])])
def test_releases_are_pinned_by_hash_to_what_is_tested(file: str, extras: list[str]) -> None:
    """Every package that the extras name, in the version of constraints.txt; `make lock` writes the files."""
    entries = (DEPLOY / "requirements" / file).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    pinned = {found[1]: (found[2], entry) for entry in entries if (found := re.match(r"([\w.-]+)==(\S+)", entry))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = {
        name.replace("_", "-").lower(): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", constraints)
    }

    assert len(pinned) == len(entries)
    assert {re.split(r"[\[><=;]", one)[0].strip().lower() for one in wanted} <= set(pinned)
    assert [name for name, (version, _) in pinned.items() if tested.get(name, version) != version] == []
    assert [name for name, (_, entry) in pinned.items() if "--hash=sha256:" not in entry] == []


# --- compose ----------------------------------------------------------------------------------------------------------


def test_services_run_programs_of_ours_with_flags_that_they_know() -> None:
    """Those that make the keys, too."""
    for name, service in COMPOSE["services"].items():
        command = service["command"]
        if command[0] == "sh":
            words = shlex.split(command[2].rpartition("||")[2])
            assert (words[0], words[1] in COMMANDS) == ("zmqrt", True)
        else:
            assert parse(command), name
        assert set(service.get("environment", ())) <= VARIABLES, name


def test_addresses_and_mounts_of_services_fit_together() -> None:
    """A bridge asks the port for clients, nodes that for workers, and the keys are where the first one puts them."""
    services = COMPOSE["services"]
    told = " ".join(services["broker"]["command"])
    ports = dict(re.findall(r"--(clients|workers)=tcp://0\.0\.0\.0:(\d+)", told))

    assert f"--broker=tcp://broker:{ports['clients']}" in services["bridge"]["command"]
    nodes = [service for name, service in services.items() if name.startswith("node-")]
    assert len(nodes) == 2
    for node in nodes:
        assert f"tcp://broker:{ports['workers']}" in node["command"]
    for service in services.values():
        assert any(volume.startswith("state:/var/lib/zmqrt") for volume in service["volumes"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
    assert services["keys"]["build"]["dockerfile"] == str(CONTAINERFILE.relative_to(ROOT))
    assert (DEPLOY / "compose" / services["keys"]["build"]["context"]).resolve() == ROOT


def test_the_image_that_is_built_is_not_that_which_nodes_are_told() -> None:
    """`up --build` with a worker's image for the nodes would write the small one, which cannot run a model, over it."""
    services = COMPOSE["services"]
    named = {name: service["image"] for name, service in services.items()}

    assert {named[name] for name in named if not name.startswith("node-")} == {"zmqrt"}
    assert {named[name] for name in named if name.startswith("node-")} == {"${ZMQRT_IMAGE:-zmqrt}"}


def test_only_the_bridge_is_reachable_and_from_this_machine_alone() -> None:
    """Its port is the one it listens on, and its check asks there for a path that there is."""
    services = COMPOSE["services"]
    ((inside, outside),) = [
        (port.split(":")[2], port.split(":")[0]) for service in services.values() for port in service.get("ports", ())
    ]
    check = " ".join(services["bridge"]["healthcheck"]["test"])

    assert outside == "127.0.0.1"
    assert f"--port={inside}" in services["bridge"]["command"]
    (path,) = re.findall(rf"http://127\.0\.0\.1:{inside}(/\w+)", check)
    assert OWN[path] == "GET"


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to read them")
def test_kubectl_puts_the_manifests_together() -> None:
    """As many objects as there are in the files."""
    made = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], check=True, capture_output=True, text=True
    )

    assert len(list(yaml.safe_load_all(made.stdout))) == len(manifests())


def test_no_service_makes_a_variable_that_is_a_setting() -> None:
    """Kubernetes writes NAME_PORT=tcp://… and more into every pod beside a Service."""
    made = set[str]()
    for one in manifests():
        if one["kind"] == "Service":
            name = one["metadata"]["name"].upper().replace("-", "_")
            made |= {f"{name}_SERVICE_HOST", f"{name}_SERVICE_PORT", f"{name}_PORT"}
            for port, part in itertools.product(one["spec"]["ports"], ("", "_PROTO", "_PORT", "_ADDR")):
                made |= {f"{name}_PORT_{port['port']}_TCP{part}", f"{name}_SERVICE_PORT_{port['name'].upper()}"}

    assert made
    assert not made & VARIABLES
    assert not [name for name in made if name.startswith("ZMQRT_")]
    assert all(pod["enableServiceLinks"] is False for pod, _ in pods())


def test_containers_run_programs_of_ours_with_flags_and_variables_that_they_know() -> None:
    """And pods look for the labels that they have."""
    assert len(list(pods())) == 3
    for _, container in pods():
        assert parse([*container["command"], *container["args"]])
        assert {one["name"] for one in container.get("env", ())} <= VARIABLES
    for one in manifests():
        if one["kind"] == "Deployment":
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_ports_and_addresses_are_those_that_programs_use() -> None:
    """Of Services, containers, flags, and of whoever asks them."""
    listening = {
        int(port) for _, one in pods() for flag in one["args"] for port in re.findall(r"0\.0\.0\.0:(\d+)", flag)
    }
    listening |= {int(flag.partition("=")[2]) for _, one in pods() for flag in one["args"] if "--port=" in flag}
    named = {port["name"]: port["containerPort"] for _, one in pods() for port in one.get("ports", ())}
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in manifests() if one["kind"] == "Service"}
    asked = [re.fullmatch(r"--broker=tcp://([\w-]+):(\d+)", flag) for _, one in pods() for flag in one["args"]]

    assert set(named.values()) == listening
    assert {port["targetPort"] for ports in services.values() for port in ports} == set(named)
    found = [match for match in asked if match]
    assert len(found) == 2
    for match in found:
        assert int(match[2]) in {port["port"] for port in services[match[1]]}


def test_probes_ask_for_paths_and_ports_that_there_are() -> None:
    """Those of the bridge without a key; nodes have no port that anybody could ask."""
    paths = set[str]()
    for _, container in pods():
        named = {port["name"] for port in container.get("ports", ())}
        for probe in (value for name, value in container.items() if name.endswith("Probe")):
            asks = probe.get("httpGet") or probe["tcpSocket"]
            assert asks["port"] in named
            paths |= {asks["path"]} if "path" in asks else set()

    assert paths == {"/startupz", "/readyz", "/livez"}
    assert all(OWN[path] == "GET" for path in paths)


def test_pods_are_closed_and_have_the_time_to_drain() -> None:
    """As the strictest of the standards for pods asks, which the namespace enforces."""
    for pod, container in pods():
        assert pod["terminationGracePeriodSeconds"] > DRAIN_S
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_each_role_has_the_files_of_keys_that_it_needs_and_no_more() -> None:
    """Under the names of `zmqrt keygen`; the page for operators makes Secrets with these keys."""
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    needs = {
        "broker": {"broker/secret.key", "broker/public.key", "authorized_workers", "authorized_clients"},
        "bridge": {"broker/public.key", "client/secret.key", "client/public.key"},
        "worker": {"broker/public.key", "worker/secret.key", "worker/public.key"},
    }
    for pod, container in pods():
        (secret,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "keys"]
        (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "keys"]

        assert {item["path"] for item in secret["items"]} == needs[container["name"]]
        assert f"--keys={folder}" in container["args"]
        assert f"generic {secret['secretName']} " in text
        for item in secret["items"]:
            assert fnmatch(text, f"*--from-file={item['key']}=fleet-keys/{item['path']}*"), item
