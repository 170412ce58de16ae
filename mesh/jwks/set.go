package jwks

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of sets. Those of well-known issuers have a handful of keys and a few KiB.
const (
	// MaxText is how long the text of a set may be, in bytes.
	MaxText = 256 << 10
	// MaxKeys is how many keys a set may have.
	MaxKeys = 100
	// minRSA is how long a modulus must be, in bits (RFC 7518 section 3.3).
	minRSA = 2048
)

// maxProblems bounds how many keys that cannot be used are spelt out.
const maxProblems = 5

// Set is a set of public keys. It is immutable and safe for concurrent use; the nil Set is empty.
type Set struct {
	keys []key
	text string
}

// key is one that signatures can be verified by.
type key struct {
	id         string
	algorithms []jose.SignatureAlgorithm // that may be used with it
	public     any
}

// Parse reads a set. Keys that cannot be used are left out, and problems names them; keys for encryption are left out without a
// word. It is an error if the text is no set, or too large a one.
func Parse(text []byte) (set *Set, problems []string, err error) {
	if len(text) > MaxText {
		return nil, nil, fmt.Errorf("is longer than %d bytes", MaxText)
	}
	var doc struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, nil, errors.New(`is no JSON object with a list "keys"`)
	}
	if doc.Keys == nil {
		return nil, nil, errors.New(`has no list "keys"`)
	}
	if len(*doc.Keys) > MaxKeys {
		return nil, nil, fmt.Errorf("has more than %d keys", MaxKeys)
	}
	set = &Set{}
	var public jose.JSONWebKeySet
	for i, raw := range *doc.Keys {
		k, j, err := parseKey(raw)
		switch {
		case err != nil && len(problems) == maxProblems:
			problems = append(problems, "and more")
		case err != nil && len(problems) < maxProblems:
			problems = append(problems, fmt.Sprintf("keys[%d]: %v", i, err))
		case err == nil && k != nil:
			set.keys, public.Keys = append(set.keys, *k), append(public.Keys, j)
		}
	}
	if public.Keys == nil {
		public.Keys = []jose.JSONWebKey{} // a list without elements, not null
	}
	out, err := json.Marshal(public)
	if err != nil {
		return nil, nil, fmt.Errorf("write the set: %w", err)
	}
	set.text = string(out)
	return set, problems, nil
}

// parseKey reads a key; nil if it is not for signatures.
func parseKey(raw []byte) (*key, jose.JSONWebKey, error) {
	var kind struct {
		Type string   `json:"kty"`
		Use  string   `json:"use"`
		Ops  []string `json:"key_ops"`
	}
	var j jose.JSONWebKey
	if err := json.Unmarshal(raw, &kind); err != nil {
		return nil, j, errors.New("is no key")
	}
	if kind.Use != "" && kind.Use != "sig" || kind.Ops != nil && !slices.Contains(kind.Ops, "verify") {
		return nil, j, nil
	}
	if kind.Type == "oct" {
		return nil, j, errors.New("is a symmetric key: whoever could read the set could sign tokens")
	}
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, j, errors.New(strings.TrimPrefix(err.Error(), "go-jose/go-jose: "))
	}
	if !j.IsPublic() {
		j = j.Public()
	}
	if !j.Valid() {
		return nil, j, errors.New("is no key of a kind that is supported: RSA, EC, OKP Ed25519")
	}
	algorithms, err := algorithmsOf(j.Key)
	if err != nil {
		return nil, j, err
	}
	if j.Algorithm != "" {
		own := jose.SignatureAlgorithm(j.Algorithm)
		if !slices.Contains(algorithms, own) {
			return nil, j, fmt.Errorf("algorithm %q is not supported for such a key", j.Algorithm)
		}
		algorithms = []jose.SignatureAlgorithm{own}
	}
	j = jose.JSONWebKey{Key: j.Key, KeyID: j.KeyID, Algorithm: j.Algorithm, Use: j.Use}
	return &key{j.KeyID, algorithms, j.Key}, j, nil
}

// algorithmsOf are the algorithms that go with a key.
func algorithmsOf(public any) ([]jose.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("has %d bits, which are too few: at least %d", k.N.BitLen(), minRSA)
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, nil
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return []jose.SignatureAlgorithm{jose.ES256}, nil
		case 384:
			return []jose.SignatureAlgorithm{jose.ES384}, nil
		case 521:
			return []jose.SignatureAlgorithm{jose.ES512}, nil
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}, nil
	}
	return nil, errors.New("is no key of a kind that is supported: RSA, EC, OKP Ed25519")
}

// supported are the algorithms of tokens: those of public keys. "none" and HMAC are not among them.
var supported = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Supported reports whether tokens may be signed by an algorithm, such as "RS256".
func Supported(algorithm string) bool {
	return slices.Contains(supported, jose.SignatureAlgorithm(algorithm))
}

// Len is how many keys there are.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.keys)
}

// String is the set as JSON: what it was read from, without what is not needed to verify, such as private parts.
func (s *Set) String() string {
	if s == nil {
		return Empty
	}
	return s.text
}

// Empty is the set without keys, as JSON.
const Empty = `{"keys":[]}`

// None is a set of one key that nobody can sign by, for data planes that take no set without keys, as Envoy: its x is a hash, the SHA-256 of
// "ambit: no key" and the first byte by which that is the x of a point, 1, so that nobody knows what it would be a multiple of.
const None = `{"keys":[{"kty":"EC","kid":"none","crv":"P-256","x":"zNkM2CDg7Sw4g-q3cBaWda0T16_MUkYtRZOS-4-_sl8","y":"lUG56A36R9M3dl6AEZfyju1Tz1sMhJYGZv73umkcGE4"}]}`

// Reasons why a token is not verified.
var (
	// ErrNoKey: no key goes with the token's key identifier and algorithm.
	ErrNoKey = errors.New("no key for the token's kid and alg")
	// ErrSignature: the signature is not by any of the keys that do.
	ErrSignature = errors.New("the signature is wrong")
)

// maxTries is by how many keys a token is verified that does not say which, or says what several are called: each costs.
const maxTries = 4

// Verify verifies the signature of a token in compact form, of an algorithm that is Supported. id and algorithm are those of its
// header, id "" if it names no key. Keys without an identifier go with every token of their algorithms.
func (s *Set) Verify(token, id, algorithm string) error {
	alg := jose.SignatureAlgorithm(algorithm)
	var parsed *jose.JSONWebSignature
	tries := 0
	if s == nil {
		return ErrNoKey
	}
	for _, k := range s.keys {
		if id != "" && k.id != "" && k.id != id || !slices.Contains(k.algorithms, alg) {
			continue
		}
		if parsed == nil {
			var err error
			if parsed, err = jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg}); err != nil {
				return fmt.Errorf("%w: %w", ErrSignature, err)
			}
		}
		if _, err := parsed.Verify(k.public); err == nil {
			return nil
		}
		if tries++; tries == maxTries {
			break
		}
	}
	if tries == 0 {
		return ErrNoKey
	}
	return ErrSignature
}
