"""The outer layer of a policy file, read without the onnx package: its graph, its texts, and their hashes.

An ONNX file is one protobuf message. Its fields stand one after the other, each a tag, a length and a
payload; field 14 (``metadata_props``) is one entry of metadata and may come any number of times. All other
fields together are the graph: what the policy computes. Two hashes say what was written:

- The *graph hash* is the SHA-256 of the graph's bytes in the order of the file. The description names it.
- The *policy hash* seals the file and stands in its metadata under ``thousandfold_sha256``: the SHA-256 of
  the graph hash (64 hex digits), a line feed, the description (the text under ``thousandfold``), a line feed
  and the golden rows (the text under ``thousandfold_golden``), in UTF-8.

They show what was changed by accident or by hand. Whoever changes a file on purpose can write other hashes,
but no other signature: see `signature`. Wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.signature import check_signature

METADATA_KEY, GOLDEN_KEY, POLICY_HASH_KEY = "thousandfold", "thousandfold_golden", "thousandfold_sha256"
EXPORT_AGAIN = "export the policy again with `pipeline export-onnx`"

_METADATA_FIELD = 14
_KEY_FIELD, _VALUE_FIELD = 1, 2  # of an entry
_VARINT, _EIGHT_BYTES, _WITH_LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10

MAX_BYTES = 2**31
"""No ONNX file that holds its own weights is larger."""
MAX_FIELDS = 500_000
"""Of one message: a policy of a thousand layers has ten thousand."""


@dataclass(frozen=True)
class ModelBytes:
    """An ONNX file in two parts.

    Attributes:
        graph: everything but the metadata, as it lies in the file.
        metadata: text by key.
    """

    graph: bytes
    metadata: dict[str, str]

    @property
    def graph_sha256(self) -> str:
        """The graph hash of what is here, in hexadecimal."""
        return hashlib.sha256(self.graph).hexdigest()

    @property
    def policy_sha256(self) -> str:
        """The policy hash of what is here, in hexadecimal; a text that is missing counts as empty."""
        texts = (self.metadata.get(key, "") for key in (METADATA_KEY, GOLDEN_KEY))
        return hashlib.sha256("\n".join((self.graph_sha256, *texts)).encode()).hexdigest()

    def sealed(self, description: str, golden: str) -> ModelBytes:
        """Return a whole policy: the graph, both texts, and the policy hash; other metadata is left out.

        Args:
            description: JSON text of its `PolicyMetadata`.
            golden: JSON text of its `GoldenSet`.
        """
        whole = self.with_metadata({GOLDEN_KEY: golden, METADATA_KEY: description})
        # The description comes last: a file cut off anywhere is without it.
        return self.with_metadata(
            {GOLDEN_KEY: golden, POLICY_HASH_KEY: whole.policy_sha256, METADATA_KEY: description}
        )

    def change_since_export(self, graph_sha256: str) -> str | None:
        """Say which part differs from its recorded hash; None where all is as it was exported.

        Args:
            graph_sha256: what the description gives.
        """
        if self.graph_sha256 != graph_sha256:
            return "its graph differs from the recorded hash"
        if POLICY_HASH_KEY not in self.metadata:
            return f"it has no {POLICY_HASH_KEY}"
        if self.metadata[POLICY_HASH_KEY] != self.policy_sha256:
            return "its description or golden rows differ from the recorded hash"
        return None

    def joined(self) -> bytes:
        """Return the file's content: the graph, then the metadata in its order."""
        return self.graph + b"".join(
            _with_length(
                _METADATA_FIELD,
                _with_length(_KEY_FIELD, key.encode()) + _with_length(_VALUE_FIELD, text.encode()),
            )
            for key, text in self.metadata.items()
        )

    def with_metadata(self, metadata: Mapping[str, str]) -> ModelBytes:
        """Return the same graph with other metadata."""
        return ModelBytes(self.graph, dict(metadata))


def split_model(content: bytes) -> ModelBytes:
    """Return the parts of an ONNX file's content; raise ValueError where it is truncated or no protobuf."""
    graph, metadata = [], {}
    view = memoryview(content)
    for count, (number, payload, whole) in enumerate(fields(view)):
        if count == MAX_FIELDS:
            raise ValueError(f"more than {MAX_FIELDS} fields")
        if number == _METADATA_FIELD:
            entry = {field: bytes(text).decode() for field, text, _ in fields(payload)}
            metadata[entry.get(_KEY_FIELD, "")] = entry.get(_VALUE_FIELD, "")
        else:
            graph.append(whole)
    return ModelBytes(b"".join(graph), metadata)


def read_model(path: Path, trusted: Collection[bytes] = (), content: bytes | None = None) -> ModelBytes:
    """Return the parts of an ONNX file; raise DamagedFileError where there is none, or no whole one.

    With `trusted` public keys, one of them must have signed the file, which is checked before anything else.
    `content` is what was read of it before; None: it is read.
    """
    content = read_content(path) if content is None else content
    if trusted:
        check_signature(content, trusted, str(path))
    try:
        return split_model(content)
    except ValueError:
        raise DamagedFileError(f"{path} is truncated or no ONNX file: {EXPORT_AGAIN}.") from None


def read_content(path: Path) -> bytes:
    """Return an ONNX file's bytes; raise DamagedFileError where there is none, an empty or too large one."""
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise DamagedFileError(f"{path} is larger than any policy file, 2 GiB at most: {EXPORT_AGAIN}.")
        content = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedFileError(f"{path} is missing: {EXPORT_AGAIN}.") from None
    if not content:
        raise DamagedFileError(f"{path} is empty: {EXPORT_AGAIN}.")
    return content


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number, payload and all bytes of each field; raise ValueError where they do not fit."""
    at = 0
    while at < len(message):
        start = at
        tag, at = varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            begin, (_, at) = at, varint(message, at)
        elif wire_type == _WITH_LENGTH:
            length, begin = varint(message, at)
            at = begin + length
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            begin, at = at, at + (8 if wire_type == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if at > len(message) or number == 0:
            raise ValueError(f"field {number} at byte {start} does not end")
        yield number, message[begin:at], message[start:at]


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at a byte, 7 bits a byte from the lowest on, and where it ends."""
    if at < len(message) and message[at] < 0x80:  # nearly all of them, thousands in a deep network
        return message[at], at + 1
    value = 0
    for count, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError(f"no number at byte {at}")


def _with_length(field: int, payload: bytes) -> bytes:
    """Return a field as it stands in a file."""
    encoded = bytearray()
    for number in (field << 3 | _WITH_LENGTH, len(payload)):
        while number >= 0x80:
            encoded.append(number & 0x7F | 0x80)
            number >>= 7
        encoded.append(number)
    return bytes(encoded) + payload
