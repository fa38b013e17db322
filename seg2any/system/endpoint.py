"""Talk to a vision-language model behind an OpenAI-compatible endpoint, such as vLLM's or SGLang's."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence

import cv2
import numpy as np

from seg2any.system.errors import UserError, shown
from seg2any.system.json_text import parse_json
from seg2any.system.patience import NoAnswer

KEY_VARIABLE = "OPENAI_API_KEY"
LARGEST_REPLY = 1 << 20  # bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirect: the key and the pictures are meant for the address that was given."""

    def redirect_request(self, *request: object) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    url    for instance http://localhost:8000/v1
    model  its name at that address
    what   the model's part, for messages

    The key, if one is needed, is read from the environment, OPENAI_API_KEY. Raises UserError for a malformed address.
    """

    def __init__(self, url: str, model: str, what: str, timeout: float = 120.0):
        if not _is_address(url):
            raise UserError(
                f"{what} endpoint {url!r}: the address is malformed; give an address such as http://localhost:8000/v1"
            )
        self.url, self.model, self.what, self.timeout = url.rstrip("/"), model, what, timeout
        self.headers = {"Content-Type": "application/json"} | _authorization()
        if "Authorization" in self.headers and not _is_private(url):
            warnings.warn(
                f"{what} endpoint {url}: sends {KEY_VARIABLE} unencrypted over the network; use https", stacklevel=3
            )

    def post(self, body: dict) -> dict:
        """Post a body of `request_body` to /chat/completions, and return the reply, which may have any form.

        Raises NoAnswer if asking again may help, UserError if it cannot.
        """
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), self.headers)
        deadline = time.monotonic() + self.timeout
        try:
            with OPENER.open(request, timeout=self.timeout) as response:
                return parse_json(_read_until(response, deadline))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:  # timeouts, refused and broken connections
            raise NoAnswer(f"{self.url}: {error}") from None
        except (ValueError, RecursionError):
            raise NoAnswer(f"{self.url}: the reply is not JSON") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return NoAnswer(f"{self.url}: HTTP {error.code}", float(after) if after.isdecimal() else 0.0)
        if error.code in (401, 403):
            return UserError(
                f"{self.what} endpoint {self.url}: HTTP {error.code}; set {KEY_VARIABLE} to a key that it accepts"
            )
        if 300 <= error.code < 400:
            place = shown(error.headers.get("Location", ""), 100)
            return UserError(f"{self.what} endpoint {self.url}: redirects to {place}, which is not followed; give that")
        try:
            said = " ".join(error.read(LARGEST_REPLY).decode(errors="replace").split())[:200]
        except (OSError, http.client.HTTPException):
            said = "no reason given"
        return UserError(
            f"{self.what} endpoint {self.url}: HTTP {error.code} for model {self.model!r}: {said}; check both"
        )


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port  # raises ValueError for a malformed port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not any(map(str.isspace, url))


def _is_private(url: str) -> bool:
    """Tell whether nobody on the network reads what is sent: it is encrypted, or stays on this machine."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


def _authorization() -> dict[str, str]:
    """Build the header of the key, if there is one.

    Raises UserError for a key that a header cannot hold.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE}: the key holds characters that a header cannot; copy it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def request_body(model: str, text: str, images: Sequence[np.ndarray], longest: int) -> dict:
    """Build the JSON that asks a model about images uint8 [H, W, 3], at temperature 0.

    longest  tokens of the answer at most
    """
    content = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    content.append({"type": "text", "text": text})
    return {
        "model": model,
        "temperature": 0,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": longest,
    }


def _data_url(image: np.ndarray) -> str:
    png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"


def _read_until(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read the body until `deadline`, a time of the monotonic clock.

    A socket's own time limit starts anew with every byte, so a slow sender would never reach it.
    """
    body = b""
    while chunk := response.read1(1 << 16):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the reply took too long")
        if len(body) > LARGEST_REPLY:
            raise ValueError("the reply is too long")
    return body
