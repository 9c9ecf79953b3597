#include "signature.hpp"

#include <stdexcept>

#ifdef WITH_OPENSSL

#include <cstdio>
#include <cstring>
#include <memory>

#include <openssl/evp.h>
#include <openssl/pem.h>

namespace {

const std::string kBeginning = "\x72\x9b\x01\x0a\x16thousandfold_signature\x12\x80\x01";
// Base64 of the public key and of the signature.
constexpr int kText = 128, kKey = 32, kSignature = 64;

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Key read_key(const std::string& path) {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    Key key(file ? PEM_read_PUBKEY(file.get(), nullptr, nullptr, nullptr) : nullptr, EVP_PKEY_free);
    if (!key || EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519) {
        throw std::runtime_error(path + " is no public Ed25519 key in PEM");
    }
    return key;
}

}  // namespace

void require_signature(const std::string& content, const std::string& trusted) {
    const Key key = read_key(trusted);
    const std::size_t size = kBeginning.size() + kText;
    if (content.size() <= size || content.compare(content.size() - size, kBeginning.size(), kBeginning) != 0) {
        throw std::runtime_error("the file is not signed, and a trusted key is required");
    }
    unsigned char both[kKey + kSignature], own[kKey], again[kText + 1];
    std::size_t length = kKey;
    const auto* text = reinterpret_cast<const unsigned char*>(content.data());
    if (EVP_DecodeBlock(both, text + content.size() - kText, kText) != kKey + kSignature ||
        EVP_EncodeBlock(again, both, kKey + kSignature) != kText ||
        std::memcmp(again, text + content.size() - kText, kText) != 0) {
        throw std::runtime_error("the file was changed after it was signed");
    }
    if (EVP_PKEY_get_raw_public_key(key.get(), own, &length) != 1 || std::memcmp(own, both, kKey) != 0) {
        throw std::runtime_error("the file is signed with a key that is not the trusted one");
    }
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (!context || EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
        EVP_DigestVerify(context.get(), both + kKey, kSignature, text, content.size() - size) != 1) {
        throw std::runtime_error("the file was changed after it was signed");
    }
}

#else

void require_signature(const std::string&, const std::string&) {
    throw std::runtime_error("signatures are not checked here: this program was built without OpenSSL");
}

#endif
