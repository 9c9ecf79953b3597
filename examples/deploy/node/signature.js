// Who signed a policy file: its last bytes are an entry of metadata with the public key and the signature.

import { createPublicKey, verify } from "node:crypto";

const BEGINNING = Buffer.from("\x72\x9b\x01\x0a\x16thousandfold_signature\x12\x80\x01", "latin1");
const TEXT = 128; // base64 of the public key, 32 bytes, and of the signature, 64 bytes

/** Throw unless the key, a text in PEM, signed all bytes before the signature at the end. */
export function requireSignature(bytes, trusted) {
  if (trusted.includes("PRIVATE KEY")) throw new Error("the trusted key is a private one: give the public one, .pub");
  const key = createPublicKey(trusted);
  if (key.asymmetricKeyType !== "ed25519") throw new Error("the trusted key is no public Ed25519 key");
  const end = bytes.length - TEXT - BEGINNING.length;
  if (end < 0 || !BEGINNING.equals(bytes.subarray(end, end + BEGINNING.length))) {
    throw new Error("it is not signed, and a trusted key is required");
  }
  const text = bytes.subarray(-TEXT).toString("latin1");
  const both = Buffer.from(text, "base64");
  if (both.toString("base64") !== text) throw new Error("it was changed after it was signed");
  const own = Buffer.from(key.export({ format: "jwk" }).x, "base64url");
  if (!own.equals(both.subarray(0, 32))) throw new Error("it is signed with a key that is not the trusted one");
  if (!verify(null, bytes.subarray(0, end), key, both.subarray(32))) {
    throw new Error("it was changed after it was signed");
  }
}
