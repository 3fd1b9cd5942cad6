"""What is packaged: the wheel holds every package, typed, under one namespace."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqrt.bridge_http import paths

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bridge_http", "broker", "client", "protocol", "worker")

# The modules that decide (architecture.md): no clock, socket, thread, random number, log or await inside.
SHELLS = {
    *("broker.__init__", "broker.__main__", "broker.allow_lists", "broker.auth", "broker.config", "broker.join_lines"),
    *("broker.oversized_messages", "broker.server", "broker.sockets"),
}
"""The modules of the broker that may do input and output; all others decide, and are under the contract."""


def project_file() -> str:
    """Return pyproject.toml as text."""
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def packages_on_disk() -> Iterator[str]:
    """Yield the import name of every folder that holds an __init__.py."""
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            yield ".".join(("zmqrt", *init.parent.relative_to(ROOT).parts))


def test_every_package_is_listed() -> None:
    """An unlisted package works in an editable install and is missing from the wheel."""
    listed = tomllib.loads(project_file())["tool"]["setuptools"]["packages"]

    assert sorted(listed) == sorted(packages_on_disk())


def test_every_module_stands_in_a_package() -> None:
    """A folder of modules without __init__.py would be left out without a word."""
    orphans = [
        module.relative_to(ROOT)
        for folder in FOLDERS
        for module in (ROOT / folder).rglob("*.py")
        if not (module.parent / "__init__.py").exists()
    ]

    assert orphans == []


def test_static_files_are_packaged_and_served() -> None:
    """A file that the wheel lacks would end the bridge at its start, and one that no path leads to is dead."""
    data = tomllib.loads(project_file())["tool"]["setuptools"]["package-data"]
    on_disk = {path.name for path in (ROOT / "bridge_http" / "static").iterdir()}

    assert data["zmqrt.bridge_http"] == ["static/*"]
    assert on_disk == {name for name, _ in paths.FILES.values()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_typed_and_linked_for_type_checkers(folder: str) -> None:
    """py.typed is there, and typings/zmqrt/<folder> leads to the folder itself."""
    link = ROOT / "typings" / "zmqrt" / folder

    assert (ROOT / folder / "py.typed").is_file()
    assert link.is_symlink()
    assert not Path.is_absolute(link.readlink())
    assert link.resolve() == ROOT / folder


def test_zmqrt_is_a_namespace_and_never_a_folder() -> None:
    """A root folder or an __init__.py of that name would hide the five packages."""
    assert not (ROOT / "zmqrt").exists()
    assert not (ROOT / "typings" / "zmqrt" / "__init__.py").exists()


def test_what_decides_is_under_the_contract() -> None:
    """Each module of the broker is a shell or named in the import contract, and the cores of the other roles are."""
    contracts = tomllib.loads(project_file())["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in contracts if "zmq" in contract.get("forbidden_modules", ()))
    named = {name.removeprefix("zmqrt.") for name in pure["source_modules"]}
    broker = {f"broker.{path.stem}" for path in (ROOT / "broker").glob("*.py")} - SHELLS

    assert broker <= named
    assert {"client.core", "worker.core", "worker.engines.batcher", "protocol.codec", "bridge_http.v1"} <= named
    assert not named & SHELLS


def test_the_client_needs_no_torch_and_no_http_stack() -> None:
    """The dependencies that everyone installs are the client's alone."""
    dependencies = tomllib.loads(project_file())["project"]["dependencies"]
    names = {re.split(r"[^a-z-]", dependency)[0] for dependency in dependencies}

    assert names == {"click", "msgpack", "msgspec", "python-dotenv", "pyzmq", "rich", "uvloop"}
