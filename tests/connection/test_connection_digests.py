"""Contract: which challenges are answered, and which answers are right; beside the functions of this Python's multiprocessing."""

from __future__ import annotations

import hmac
import multiprocessing.connection as theirs
import os
from multiprocessing import AuthenticationError

import pytest

from trio_offload._connection import digests
from trio_offload._connection.digests import CHALLENGE, DIGESTS, Security, new_challenge

KEY = b"key"
STRICT = Security(KEY, 1.0, allow_md5=False)
LENIENT = Security(KEY, 1.0, allow_md5=True)


def mac(message: bytes, digest: str, key: bytes = KEY) -> bytes:
    return hmac.new(key, message, digest).digest()


def named(digest: str, data: bytes) -> bytes:
    return b"{%s}%s" % (digest.encode(), data)


@pytest.mark.parametrize("digest", DIGESTS)
def test_digests_of_newer_versions(digest: str) -> None:
    challenge = named(digest, os.urandom(40))
    answer = STRICT.answer_to(CHALLENGE + challenge)
    assert answer == named(digest, mac(challenge, digest))
    STRICT.check_answer(challenge, answer)


def test_md5_of_older_versions() -> None:
    # One challenge in 256 begins with a brace.
    for challenge in (b"{" + bytes(19), os.urandom(20)):
        with pytest.raises(AuthenticationError, match="allow_md5"):
            STRICT.answer_to(CHALLENGE + challenge)
        assert LENIENT.answer_to(CHALLENGE + challenge) == mac(challenge, "md5")
    challenge = new_challenge()
    for answer in (mac(challenge, "md5"), named("md5", mac(challenge, "md5"))):
        LENIENT.check_answer(challenge, answer)
        with pytest.raises(AuthenticationError, match="allow_md5"):
            STRICT.check_answer(challenge, answer)


def test_md5_by_its_name() -> None:
    challenge = named("md5", os.urandom(40))
    with pytest.raises(AuthenticationError, match="allow_md5"):
        STRICT.answer_to(CHALLENGE + challenge)
    assert LENIENT.answer_to(CHALLENGE + challenge) == named("md5", mac(challenge, "md5"))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"#CHALLENGE",
        b"GET / HTTP/1.1\r\n",
        CHALLENGE,
        CHALLENGE + bytes(19),
        CHALLENGE + bytes(21),
        CHALLENGE + named("sha1", bytes(40)),
        CHALLENGE + b"{sha256" + bytes(40),
    ],
)
def test_what_is_no_challenge(message: bytes) -> None:
    with pytest.raises(AuthenticationError):
        LENIENT.answer_to(message)


@pytest.mark.parametrize("damage", range(5))
def test_wrong_answers(damage: int) -> None:
    challenge = new_challenge()
    right = mac(challenge, "sha256")
    wrong = [
        b"",
        right,  # without its name
        named("sha256", right[:-1]),
        named("sha256", right[:-1] + bytes([right[-1] ^ 1])),
        named("sha256", mac(challenge, "sha256", b"another key")),
    ][damage]
    with pytest.raises(AuthenticationError):
        LENIENT.check_answer(challenge, wrong)


def test_answers_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(expected: bytes, given: bytes) -> bool:
        compared.append((expected, given))
        return True

    monkeypatch.setattr(digests.hmac, "compare_digest", compare)
    challenge = new_challenge()
    STRICT.check_answer(challenge, named("sha256", b"another answer"))
    assert compared == [(mac(challenge, "sha256"), b"another answer")]


def test_a_system_without_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("disabled for FIPS")

    monkeypatch.setattr(digests.hmac, "new", refuse)
    with pytest.raises(AuthenticationError, match="FIPS"):
        LENIENT.answer_to(CHALLENGE + bytes(20))


def test_constants_are_theirs() -> None:
    names = ("CHALLENGE", "WELCOME", "FAILURE")
    for name in names:
        assert getattr(digests, name) in (getattr(theirs, name, None), getattr(theirs, f"_{name}", None))


@pytest.mark.parametrize("key", ["text", 5, bytearray(b"key")])
def test_a_key_that_is_no_bytes(key: object) -> None:
    with pytest.raises(TypeError, match="authkey must be bytes"):
        Security(key, 1.0, False)  # type: ignore[arg-type]


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Security(b"", 1.0, False)
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="handshake_timeout"):
            Security(KEY, seconds, False)
    with pytest.raises(TypeError, match="handshake_timeout must be a number of seconds, got '1'"):
        Security(KEY, "1", False)  # type: ignore[arg-type]


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Security(b"secret", 1.0, False))
