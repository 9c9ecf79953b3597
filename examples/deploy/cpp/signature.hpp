// Who signed a policy file: its last bytes are an entry of metadata with the public key and the signature.
#pragma once

#include <string>

// Throws std::runtime_error unless the key of a PEM file signed all bytes before the signature at the end of
// `content`, or where this program was built without OpenSSL.
void require_signature(const std::string& content, const std::string& trusted);
