"""Payloads travel encrypted between hosts where the settings ``tls`` say so, and nobody without a certificate gets one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import redist
from redist import Client, LocalCluster
from redist.errors import ConfigurationError, TransferError
from redist.tls import client_context
from servers import set_apart


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings with a certificate that is its own authority."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is needed to make a certificate")
    place = tmp_path_factory.mktemp("certificates")
    key, cert = str(place / "key.pem"), str(place / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=redist"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"tls.ca-file": cert, "tls.cert": cert, "tls.key": key}


@pytest.fixture(scope="module")
def cluster(settings: dict[str, str]) -> Iterator[LocalCluster]:
    with redist.config.set(settings):
        cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    with cluster:
        set_apart(cluster)
        yield cluster


def last_of(array: Any) -> tuple[str, int]:
    return str(redist.get_worker().name), int(array[-1])


def test_payloads_travel_encrypted(cluster: LocalCluster, settings: dict[str, str]) -> None:
    first, second = cluster.workers
    with redist.config.set(settings), Client(cluster) as client:
        assert all(address.startswith("tls://") for address in client.scheduler_info()["workers"])
        future = client.scatter(np.arange(100_000), workers=first)
        assert future.result()[-1] == 99_999
        assert client.submit(last_of, future, workers=second).result(20) == (second, 99_999)


def test_a_client_without_a_certificate_is_told_what_to_set(cluster: LocalCluster) -> None:
    with redist.config.set({"client.copies-timeout": 0.1}), Client(cluster) as client:
        with pytest.raises(TransferError, match=r"wants TLS: set tls\.ca-file"):
            client.scatter(np.arange(100_000))


def test_settings_that_do_not_go_together(settings: dict[str, str], tmp_path: Path) -> None:
    with redist.config.set({"tls.cert": settings["tls.cert"]}):
        with pytest.raises(ConfigurationError, match=r"tls\.ca-file, tls\.key is not set"):
            client_context()
    with redist.config.set({**settings, "tls.key": str(tmp_path / "none.pem")}):
        with pytest.raises(ConfigurationError, match=r"none\.pem"):
            client_context()
