package wire

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	_ "crypto/sha256" // crypto.SHA256
	_ "crypto/sha512" // crypto.SHA384
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	nonceSize = 12
	tagSize   = 16

	// maxRecordsPerKey is after how many records the sender takes the next key. AES-GCM may seal 2^24.5 full records with one
	// (RFC 8446 section 5.5): at 10 Gb/s that is five minutes.
	maxRecordsPerKey = 1 << 24
)

// suite is what the record layer knows of a cipher suite of TLS 1.3.
type suite struct {
	hash    crypto.Hash
	keySize int
	aead    func(key []byte) (cipher.AEAD, error)
}

// suiteOf returns nil for a suite that this package does not know, or leaves to crypto/tls.
func suiteOf(id uint16) *suite {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return &suite{crypto.SHA256, 16, newGCM}
	case tls.TLS_AES_256_GCM_SHA384:
		return &suite{crypto.SHA384, 32, newGCM}
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return &suite{crypto.SHA256, chacha20poly1305.KeySize, chacha20poly1305.New}
	}
	return nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func (s *suite) expand(secret []byte, label string, size int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash.New, secret, string(info), size)
}

// keys protect one direction.
type keys struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD
	iv     [nonceSize]byte
	nonce  [nonceSize]byte // of the record at hand: here, because what is passed to an AEAD goes to the heap
	seq    uint64          // of the next record
}

// newKeys derives the first keys from a traffic secret, which it keeps (RFC 8446 section 7.3).
func newKeys(s *suite, secret []byte) (keys, error) {
	k := keys{suite: s, secret: secret}
	key, err := s.expand(secret, "key", s.keySize)
	if err != nil {
		return k, fmt.Errorf("derive key: %w", err)
	}
	defer clear(key)
	iv, err := s.expand(secret, "iv", nonceSize)
	if err != nil {
		return k, fmt.Errorf("derive iv: %w", err)
	}
	copy(k.iv[:], iv)
	clear(iv)
	if k.aead, err = s.aead(key); err != nil {
		return k, fmt.Errorf("make cipher: %w", err)
	}
	return k, nil
}

// update replaces the keys by the next ones (RFC 8446 section 7.2).
func (k *keys) update() error {
	next, err := k.suite.expand(k.secret, "traffic upd", k.suite.hash.Size())
	if err != nil {
		return fmt.Errorf("derive next secret: %w", err)
	}
	clear(k.secret)
	*k, err = newKeys(k.suite, next)
	return err
}

// next returns the nonce of the next record.
func (k *keys) next() []byte {
	k.nonce = k.iv
	for i := range 8 {
		k.nonce[nonceSize-1-i] ^= byte(k.seq >> (8 * i))
	}
	k.seq++
	return k.nonce[:]
}

// wipe forgets the secret, from which all later keys follow. The AEAD goes with the garbage.
func (k *keys) wipe() {
	clear(k.secret)
	k.secret, k.aead = nil, nil
	clear(k.iv[:])
}

// secrets are the first traffic secrets of a connection, as crypto/tls tells them to Config.KeyLogWriter: there is no other way
// to them. They are written nowhere.
type secrets struct {
	client, server []byte
}

// Write takes a line of the key log: label, client random, secret.
func (s *secrets) Write(line []byte) (int, error) {
	var to *[]byte
	label, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		to = &s.client
	case "SERVER_TRAFFIC_SECRET_0":
		to = &s.server
	default:
		return len(line), nil
	}
	_, text, _ := bytes.Cut(rest, []byte(" "))
	text = bytes.TrimSpace(text)
	secret := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(secret, text); err != nil {
		clear(secret)
		return 0, fmt.Errorf("read key log: %w", err)
	}
	*to = secret
	return len(line), nil
}

func (s *secrets) wipe() {
	clear(s.client)
	clear(s.server)
	s.client, s.server = nil, nil
}

// tap has the secrets of connections under a configuration told to s, and returns whether they will do for records of ours. In
// FIPS 140-3 mode nonces must be made by the module, so crypto/tls goes on there. A server that sends session tickets would have
// used the keys when the handshake is over.
func tap(cfg *tls.Config, server bool, s *secrets) (*tls.Config, bool) {
	if fips140.Enabled() || cfg.KeyLogWriter != nil || server && !cfg.SessionTicketsDisabled {
		return cfg, false
	}
	cfg = cfg.Clone()
	cfg.KeyLogWriter = s
	return cfg, true
}
