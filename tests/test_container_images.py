"""The lock file of container images, and `make pins`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fmriprep_cases import DIGEST, IMAGE
from semantoks import container_images
from semantoks.container_images import Image
from semantoks.errors import UserError


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry that wants a token and knows one image."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"token": "pass"}).encode())

        def do_HEAD(self) -> None:
            known = self.path == "/v2/nipreps/fmriprep/manifests/25.2.3"
            allowed = self.headers["Authorization"] == "Bearer pass"
            self.send_response(404 if not known else 200 if allowed else 401)
            if not allowed:
                realm = f'Bearer realm="http://127.0.0.1:{self.server.server_port}/token",service="here",scope="pull"'
                self.send_header("WWW-Authenticate", realm)
            self.send_header("Docker-Content-Digest", DIGEST)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pins_fills_in_what_the_registry_says_and_keeps_the_rest(tmp_path: Path, registry: str) -> None:
    path = tmp_path / "images.lock"
    path.write_text(container_images.LOCK.read_text())

    def ask(image: Image) -> str:
        return container_images.ask_registry(f"{registry}/v2/nipreps/fmriprep/manifests/{image.tag}")

    assert [image.tag for image in container_images.pin(path, ask)] == ["25.2.3"]
    assert path.read_text() == container_images.LOCK.read_text().replace(": unresolved", f": {DIGEST}")
    assert container_images.find_image(IMAGE.repository, "25.2.3", path) == IMAGE
    assert container_images.pin(path, lambda _: pytest.fail("asked again")) == []


def test_pins_finds_the_right_line_among_several(tmp_path: Path) -> None:
    path = tmp_path / "images.lock"
    text = "images:\n  docker.io/a/x:\n    '1.0': {}\n    1.0.1: unresolved\n  docker.io/b/x:\n    '1.0': unresolved\n"
    path.write_text(text.format(DIGEST))
    digests = {"docker.io/a/x:1.0.1": "sha256:" + "1" * 64, "docker.io/b/x:1.0": "sha256:" + "2" * 64}
    container_images.pin(path, lambda image: digests[f"{image.repository}:{image.tag}"])
    found = {f"{image.repository}:{image.tag}": image.digest for image in container_images.read_lock(path)}
    assert found == {"docker.io/a/x:1.0": DIGEST, **digests}


def test_registry_out_of_reach_is_one_message() -> None:
    with pytest.raises(UserError, match=r"localhost:9/x:1: expected an answer of the registry localhost:9"):
        container_images.registry_digest(Image("localhost:9/x", "1", "unresolved"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: {a: [1]}", "expected `images:`, below it repositories"),
        ("[]", "expected `images:`"),
        ("images: {a: {'1': 'sha256:12'}}", "a:1: expected sha256:<64"),
    ],
)
def test_wrong_lock_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "images.lock"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        container_images.read_lock(path)
    with pytest.raises(UserError, match="found none"):
        container_images.read_lock(tmp_path / "absent")


def test_default_version_is_in_the_shipped_lock(settings: dict[str, Any]) -> None:
    assert container_images.find_image(settings["image"], settings["version"]).tag == settings["version"]
