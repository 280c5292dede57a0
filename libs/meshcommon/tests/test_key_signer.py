"""The signer that holds a key: one that knows the public key accepts its signatures, and nothing shows the private one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.key_signer import IDENTITY_KEY, PRIVATE_KEY_BYTES, KeySigner
from meshcommon.signer import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer

SEED = bytes(range(PRIVATE_KEY_BYTES))


def test_public_key_checks_what_it_signed() -> None:
    signer: Signer = KeySigner(SEED)
    signature = signer.sign(b"statement")
    assert (len(signer.public_key), len(signature)) == (PUBLIC_KEY_BYTES, SIGNATURE_BYTES)
    Ed25519PublicKey.from_public_bytes(signer.public_key).verify(signature, b"statement")
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(KeySigner(bytes(32)).public_key).verify(signature, b"statement")


def test_same_seed_signs_alike() -> None:
    assert KeySigner(SEED).sign(b"statement") == KeySigner(SEED).sign(b"statement")


def test_seed_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeySigner(SEED[:-1])


def test_private_key_is_not_shown() -> None:
    assert SEED.hex() not in repr(KeySigner(SEED))
    assert repr(SEED) not in repr(KeySigner(SEED))


def test_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    made = KeySigner.load_or_make(tmp_path)
    assert KeySigner.load_or_make(tmp_path).public_key == made.public_key
    assert (tmp_path / IDENTITY_KEY).stat().st_mode & 0o777 == 0o600
    assert KeySigner((tmp_path / IDENTITY_KEY).read_bytes()).public_key == made.public_key


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / IDENTITY_KEY).write_bytes(content)
    with pytest.raises(MeshError) as caught:
        KeySigner.load_or_make(tmp_path)
    assert caught.value.code is ErrorCode.DATA_DIR_INCOMPLETE


def test_key_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        KeySigner.load_or_make(tmp_path / "missing")
    assert caught.value.code is ErrorCode.DATA_DIR_UNWRITABLE
