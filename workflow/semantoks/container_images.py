"""Container images by tag and digest: the lock file, and ``make pins``, which asks the registries for digests."""

from __future__ import annotations

import argparse
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from semantoks.errors import UserError, run_command
from semantoks.files import write_text

LOCK = Path(__file__).resolve().parents[2] / "containers" / "images.lock"
UNRESOLVED = "unresolved"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)


@dataclass(frozen=True)
class Image:
    """An image of the lock file; ``digest`` is ``sha256:…`` or ``unresolved``."""

    repository: str
    tag: str
    digest: str

    @property
    def resolved(self) -> bool:
        """Whether the registry's digest is known."""
        return self.digest != UNRESOLVED

    @property
    def reference(self) -> str:
        """``repository@digest``: the image itself, whatever its tag comes to mean."""
        return f"{self.repository}@{self.digest}"

    @property
    def file_name(self) -> str:
        """Name of the Apptainer image file made of it, after tag and digest."""
        return f"{self.repository.rsplit('/', 1)[-1]}_{self.tag}_{self.digest.replace(':', '-')}.sif"


def read_lock(path: Path = LOCK) -> list[Image]:
    """All images of a lock file, in its order.

    Raises
    ------
    UserError
        For a missing file, another layout, or a digest that is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a lock file of container images, found none")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    repositories = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(repositories, Mapping) or not all(isinstance(tags, Mapping) for tags in repositories.values()):
        raise UserError(f"{path}: expected `images:`, below it repositories, below them tags with digests")
    images = [Image(name, str(tag), str(digest)) for name, tags in repositories.items() for tag, digest in tags.items()]
    for image in images:
        if image.resolved and not _DIGEST.fullmatch(image.digest):
            raise UserError(
                f"{path}: {image.repository}:{image.tag}: expected sha256:<64 hexadecimal digits> or {UNRESOLVED!r}, "
                f"found {image.digest!r}; run `make pins`"
            )
    return images


def find_image(repository: str, tag: str, path: Path = LOCK) -> Image:
    """The image of a lock file with this tag; a :class:`UserError` names those that there are."""
    images = read_lock(path)
    for image in images:
        if (image.repository, image.tag) == (repository, tag):
            return image
    known = ", ".join(f"{image.repository}:{image.tag}" for image in images)
    raise UserError(
        f"keys 'fmriprep.image' and 'fmriprep.version': expected an image of {path.name} ({known}), "
        f"found {repository}:{tag}; add it there as {UNRESOLVED!r} and run `make pins`"
    )


def pin(path: Path, digest_of: Callable[[Image], str]) -> list[Image]:
    """Fill in the unresolved digests of a lock file, leaving its text otherwise as it is; the images filled in.

    Parameters
    ----------
    digest_of : asks the image's registry (:func:`registry_digest`).
    """
    text = path.read_text(encoding="utf-8")
    waiting = [image for image in read_lock(path) if not image.resolved]
    for image in waiting:
        line = rf"(^ *{re.escape(image.repository)}:\n(?:.*\n)*? *[\"']?{re.escape(image.tag)}[\"']?: ){UNRESOLVED}\b"
        text, count = re.subn(line, rf"\g<1>{digest_of(image)}", text, count=1, flags=re.MULTILINE)
        assert count == 1, image
    write_text(path, text)
    return waiting


def registry_digest(image: Image) -> str:
    """Ask the image's registry for the digest of its tag (Docker Registry HTTP API v2, anonymous token)."""
    registry, repository = image.repository.split("/", 1)
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    url = f"https://{host}/v2/{repository}/manifests/{image.tag}"
    try:
        return ask_registry(url)
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(
            f"{image.repository}:{image.tag}: expected an answer of the registry {host}, found {error}; "
            "run `make pins` where there is a network"
        ) from None


def ask_registry(url: str) -> str:
    """Digest of a manifest's address; an anonymous token is fetched when the registry asks for one."""
    try:
        return _digest_header(url, None)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        challenge = error.headers["WWW-Authenticate"]
    return _digest_header(url, _token(challenge))


def _digest_header(url: str, token: str | None) -> str:
    headers = {"Accept": _MANIFESTS} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        digest = str(answer.headers["Docker-Content-Digest"])
    if not _DIGEST.fullmatch(digest):
        raise UserError(f"{url}: expected a digest in the header Docker-Content-Digest, found {digest!r}")
    return digest


def _token(challenge: str) -> str:
    """An anonymous token for a registry's ``WWW-Authenticate: Bearer realm=…,service=…,scope=…``."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = "&".join(f"{key}={fields[key]}" for key in ("service", "scope") if key in fields)
    with urllib.request.urlopen(f"{fields['realm']}?{query}", timeout=30) as answer:
        content = json.load(answer)
    return str(content.get("token") or content["access_token"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of ``make pins``."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.container_images", description=__doc__)
    parser.add_argument("--lock", type=Path, default=LOCK, help="lock file (default containers/images.lock)")
    arguments = parser.parse_args(argv)
    filled = pin(arguments.lock, registry_digest)
    names = ", ".join(f"{image.repository}:{image.tag}" for image in filled)
    print(f"{arguments.lock}: {f'resolved {names}' if filled else 'nothing to resolve'}")


if __name__ == "__main__":
    run_command(main)
