"""Who made a policy file: an Ed25519 signature (RFC 8032) over all of it, in the file's own last bytes.

The signature is the last entry of the file's metadata: the key ``thousandfold_signature``, and as its value
the base64 text of the public key (32 bytes) and the signature (64 bytes). Such an entry always takes
`SIZE` bytes and always begins alike. What is signed is every byte before it. A reader thus checks a file
before it takes it apart: it splits the bytes at a fixed place. To ONNX Runtime the entry is metadata like any
other.

Keys are PEM files as OpenSSL writes them: PKCS #8 for the private key, SubjectPublicKeyInfo for the public
one. Signing and checking need the package cryptography; telling whose key a file names does not.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thousandfold.ground.errors import DamagedFileError, UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_KEY = "thousandfold_signature"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_TEXT_BYTES = 4 * (_KEY_BYTES + _SIGNATURE_BYTES) // 3
# Field 14 of 155 bytes, and in it field 1, the key, and field 2 of 128 bytes, as onnx_bytes explains.
_BEGINNING = b"\x72\x9b\x01\x0a\x16" + SIGNATURE_KEY.encode() + b"\x12\x80\x01"
SIZE = len(_BEGINNING) + _TEXT_BYTES
"""A signature takes so many bytes of a file."""
_LARGEST_KEY_FILE = 65536


@dataclass(frozen=True)
class Signature:
    """What a signed file ends with.

    Attributes:
        public_key: 32 bytes, as the file names it: anybody may sign with a key of his own.
        value: 64 bytes.
    """

    public_key: bytes
    value: bytes


def split_signature(content: bytes) -> tuple[bytes, Signature | None]:
    """Return the bytes that are signed, and the signature after them; all and None where there is none."""
    if len(content) > SIZE and content[-SIZE:-_TEXT_BYTES] == _BEGINNING:
        try:
            both = base64.b64decode(content[-_TEXT_BYTES:], validate=True)
        except binascii.Error:
            return content, None
        return content[:-SIZE], Signature(both[:_KEY_BYTES], both[_KEY_BYTES:])
    return content, None


def signed(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return a file's content with a signature, in place of one that it has."""
    content, _ = split_signature(content)
    both = key.public_key().public_bytes_raw() + key.sign(content)
    return content + _BEGINNING + base64.b64encode(both)


def check_signature(content: bytes, trusted: Collection[bytes], name: str) -> str:
    """Return what is said of the signature of a file that may be used.

    Args:
        content: of the file.
        trusted: public keys, one of which must have signed it; empty: any, or none.
        name: of the file.

    Raises:
        DamagedFileError: the file was changed after it was signed; or a key is required, and the file is
            signed with another or with none.
    """
    content, signature = split_signature(content)
    if signature is None:
        if SIGNATURE_KEY.encode() in content:
            raise DamagedFileError(
                f"{name} was changed after it was signed: its signature is not at its end."
            )
        if trusted:
            raise DamagedFileError(f"{name} is not signed, and a trusted key is required: get a signed copy.")
        return "not signed"
    key = show_key(signature.public_key)
    if trusted and signature.public_key not in trusted:
        raise DamagedFileError(f"{name} is signed with {key}, which is not a trusted key.")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(signature.public_key).verify(signature.value, content)
    except (InvalidSignature, ValueError):  # ValueError: these 32 bytes are no key
        raise DamagedFileError(
            f"{name} was changed after it was signed: its signature with {key} does not hold."
        ) from None
    return f"signed with {key}{', a trusted one' if trusted else ''}"


def show_key(public_key: bytes) -> str:
    """Return a public key as people see it: the end of the one line in its PEM file."""
    return f"key {base64.b64encode(public_key).decode()}"


def read_public_key(path: Path) -> bytes:
    """Return the 32 bytes of a public key's PEM file; raise UserError where it is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_key_file(path)
    if b"PRIVATE KEY" in content:
        raise UserError(f"{path} is a private key, which stays with who signs: give the public one, .pub.")
    try:
        key = load_pem_public_key(content)
    except Exception:  # of several classes, by what is wrong
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is no public Ed25519 key in PEM: `pipeline policy new-key` writes one.")
    return key.public_bytes_raw()


def read_private_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Return the key of a PEM file.

    Raises:
        PassphraseNeededError: it is encrypted, and `passphrase` is None.
        UserError: it is no private Ed25519 key, or the passphrase is wrong.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read_key_file(path), passphrase.encode() if passphrase else None)
    except TypeError:  # there is a passphrase and none is needed, or the other way round
        if passphrase is None:
            raise PassphraseNeededError(f"{path} is encrypted: give its passphrase.") from None
        key = load_pem_private_key(_read_key_file(path), None)
    except Exception:
        if passphrase is not None:
            raise UserError(f"{path} cannot be read with this passphrase.") from None
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is no private Ed25519 key in PEM: `pipeline policy new-key` writes one.")
    return key


class PassphraseNeededError(UserError):
    """A private key is encrypted."""


def write_new_key(path: Path, public_path: Path, passphrase: str | None = None) -> bytes:
    """Write a new private key, for its owner alone to read, and its public key; return the latter's 32 bytes.

    Raises:
        UserError: one of the files is there already.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    cipher = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    texts = {
        public_path: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        path: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher),
    }
    for each in texts:
        if os.path.lexists(each):
            raise UserError(f"{each} is there already, and a key is never replaced: give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    for each, text in texts.items():
        mode = 0o600 if each == path else 0o644
        with open(os.open(each, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(text)
    return key.public_key().public_bytes_raw()


def _read_key_file(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is no file: give a key's PEM file.")
    if path.stat().st_size > _LARGEST_KEY_FILE:
        raise UserError(f"{path} is too large for a key: give a key's PEM file.")
    return path.read_bytes()
