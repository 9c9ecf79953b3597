"""Check who signed a policy file; beside run_policy.py, for robots that require it. Needs cryptography."""

from __future__ import annotations

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

BEGINNING = b"\x72\x9b\x01\x0a\x16thousandfold_signature\x12\x80\x01"
TEXT = 128  # base64 of the public key, 32 bytes, and of the signature, 64 bytes


def require_signature(content: bytes, trusted: str) -> None:
    """Raise ValueError unless the key of a PEM file signed all bytes before the signature at the end."""
    with open(trusted, "rb") as file:
        key = load_pem_public_key(file.read())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{trusted} is no public Ed25519 key")
    if content[-TEXT - len(BEGINNING) : -TEXT] != BEGINNING:
        raise ValueError("it is not signed, and a trusted key is required")
    both = base64.b64decode(content[-TEXT:], validate=True)
    if both[:32] != key.public_bytes_raw():
        raise ValueError("it is signed with a key that is not the trusted one")
    try:
        key.verify(both[32:], content[: -TEXT - len(BEGINNING)])
    except InvalidSignature:
        raise ValueError("it was changed after it was signed") from None
