"""The handshake of ``multiprocessing.connection``, without its I/O.

Each side sends a random challenge, and the other answers with its HMAC under the key. Python 3.12
and later begin a challenge, and the answer, with the name of the digest in braces. Earlier ones
have HMAC-MD5 only, without a name: their challenge has 20 bytes, their answer 16.
"""

from __future__ import annotations

import hmac
import os
from multiprocessing import AuthenticationError
from typing import Final

import attrs

from .._sizes import check_seconds

CHALLENGE: Final = b"#CHALLENGE#"
WELCOME: Final = b"#WELCOME#"
FAILURE: Final = b"#FAILURE#"
# The longest message of a handshake that `multiprocessing` accepts.
MAX_LENGTH: Final = 256
# Digests of Python 3.12 and later, without MD5.
DIGESTS: Final = ("sha256", "sha384", "sha3_256", "sha3_384")
_MD5: Final = "md5"
_MD5_ANSWER_SIZE: Final = 16
_MD5_CHALLENGE_SIZE: Final = 20
_RANDOM_SIZE: Final = 40
_MD5_HINT: Final = "as Python up to 3.11 does; pass allow_md5=True to accept it"


def _check_authkey(_: object, __: object, value: bytes | None) -> None:
    if value is not None and not isinstance(value, bytes):
        raise TypeError(f"authkey must be bytes or None, got {value!r}")
    # With an empty key, the two sides of Python up to 3.12 disagree whether they have one.
    if value == b"":
        raise ValueError("authkey must not be empty")


def _check_timeout(_: object, __: object, value: float) -> None:
    check_seconds("handshake_timeout", value, positive=True)


@attrs.frozen
class Security:
    """How a connection is authenticated."""

    authkey: bytes | None = attrs.field(validator=_check_authkey, repr=False)
    """The key that both sides know. None means without a handshake."""
    handshake_timeout: float = attrs.field(validator=_check_timeout)
    """Seconds after which a handshake has failed."""
    allow_md5: bool
    """True if Python up to 3.11 is accepted."""

    @property
    def key(self) -> bytes:
        """The key of a handshake."""
        if self.authkey is None:
            raise AuthenticationError("a handshake needs an authkey")
        return self.authkey

    def answer_to(self, message: bytes) -> bytes:
        """Return the answer to the other side's challenge.

        Raises:
            AuthenticationError: it is no challenge, or needs a digest that is not allowed.
        """
        if not message.startswith(CHALLENGE):
            raise AuthenticationError("the other side sent no challenge: it has no authkey, or speaks another protocol")
        challenge = message[len(CHALLENGE) :]
        if len(challenge) < _MD5_CHALLENGE_SIZE:
            raise AuthenticationError(f"the other side's challenge is too short: {len(challenge)} bytes")
        if len(challenge) == _MD5_CHALLENGE_SIZE:
            self._check(_MD5)
            return _mac(self.key, challenge, _MD5)
        digest, _ = _split(challenge)
        self._check(digest)
        return b"{%s}%s" % (digest.encode(), _mac(self.key, challenge, digest))

    def check_answer(self, challenge: bytes, answer: bytes) -> None:
        """Check the other side's answer to a challenge of ours.

        Raises:
            AuthenticationError: it is wrong, or made by a digest that is not allowed.
        """
        digest, mac = (_MD5, answer) if len(answer) == _MD5_ANSWER_SIZE else _split(answer)
        self._check(digest)
        if not hmac.compare_digest(_mac(self.key, challenge, digest), mac):
            raise AuthenticationError("the other side has another authkey")

    def _check(self, digest: str) -> None:
        if digest == _MD5 and not self.allow_md5:
            raise AuthenticationError(f"the other side uses HMAC-MD5, {_MD5_HINT}")


def new_challenge() -> bytes:
    """Return a random challenge. All versions of Python can answer it."""
    return b"{sha256}" + os.urandom(_RANDOM_SIZE)


def _split(message: bytes) -> tuple[str, bytes]:
    """Return the digest that a message names, and the bytes behind the name.

    Raises:
        AuthenticationError: it names an unknown digest, or lacks a name.
    """
    for digest in (*DIGESTS, _MD5):
        name = b"{%s}" % digest.encode()
        if message.startswith(name):
            return digest, message[len(name) :]
    raise AuthenticationError("the other side names an unknown digest")


def _mac(key: bytes, message: bytes, digest: str) -> bytes:
    try:
        return hmac.new(key, message, digest).digest()
    except ValueError as error:
        raise AuthenticationError(f"HMAC-{digest} is not available here: {error}") from error
