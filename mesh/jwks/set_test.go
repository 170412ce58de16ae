package jwks_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/mesh/jwks"
)

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, k crypto.Signer, id string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign([]byte(`{"iss":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func text(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	out, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func parse(t testing.TB, keys ...jose.JSONWebKey) *jwks.Set {
	t.Helper()
	s, problems, err := jwks.Parse(text(t, keys...))
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	return s
}

func TestVerify(t *testing.T) {
	r, e, other := rsaKey(t, 2048), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	e384 := ecKey(t, elliptic.P384())
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := parse(t,
		jose.JSONWebKey{Key: r.Public(), KeyID: "r"}, jose.JSONWebKey{Key: e.Public(), KeyID: "e", Algorithm: "ES256", Use: "sig"},
		jose.JSONWebKey{Key: ed.Public(), KeyID: "ed"}, jose.JSONWebKey{Key: e384.Public(), KeyID: "e384"})
	again, _, err := jwks.Parse([]byte(set.String()))
	if err != nil || again.String() != set.String() {
		t.Fatalf("%v: %s", err, again)
	}
	for name, tc := range map[string]struct {
		alg  jose.SignatureAlgorithm
		key  crypto.Signer
		id   string
		want error
	}{
		"RS256":                {jose.RS256, r, "r", nil},
		"PS512":                {jose.PS512, r, "r", nil},
		"ES256":                {jose.ES256, e, "e", nil},
		"ES384":                {jose.ES384, e384, "e384", nil},
		"EdDSA":                {jose.EdDSA, ed, "ed", nil},
		"no id":                {jose.ES256, e, "", nil},
		"unknown id":           {jose.ES256, e, "x", jwks.ErrNoKey},
		"another's id":         {jose.ES256, e, "r", jwks.ErrNoKey},
		"another key":          {jose.ES256, other, "e", jwks.ErrSignature},
		"another key, no id":   {jose.ES256, other, "", jwks.ErrSignature},
		"alg of another curve": {jose.ES512, ecKey(t, elliptic.P521()), "e384", jwks.ErrNoKey},
	} {
		t.Run(name, func(t *testing.T) {
			token := sign(t, tc.alg, tc.key, tc.id)
			if err := set.Verify(token, tc.id, string(tc.alg)); !errors.Is(err, tc.want) || err == nil != (tc.want == nil) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if tc.want == nil {
				head, rest, _ := strings.Cut(token, ".")
				if err := set.Verify(head+"."+"e30"+rest[strings.IndexByte(rest, '.'):], tc.id, string(tc.alg)); !errors.Is(err, jwks.ErrSignature) {
					t.Errorf("another payload: %v", err)
				}
			}
		})
	}
}

// TestConfusion: nobody signs by what everybody knows.
func TestConfusion(t *testing.T) {
	r := rsaKey(t, 2048)
	set := parse(t, jose.JSONWebKey{Key: r.Public(), KeyID: "r"})
	der, err := x509.MarshalPKIXPublicKey(r.Public())
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	input := enc([]byte(`{"alg":"HS256","kid":"r"}`)) + "." + enc([]byte(`{"iss":"x"}`))
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte(input))
	for alg, token := range map[string]string{
		"HS256": input + "." + enc(mac.Sum(nil)),
		"none":  enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(`{"iss":"x"}`)) + ".",
	} {
		if jwks.Supported(alg) {
			t.Errorf("%s is supported", alg)
		}
		if err := set.Verify(token, "r", alg); err == nil {
			t.Errorf("%s is taken", alg)
		}
		if err := set.Verify(token, "r", "RS256"); err == nil {
			t.Errorf("%s is taken as RS256", alg)
		}
	}
}

func TestParse(t *testing.T) {
	e := ecKey(t, elliptic.P256())
	good := jose.JSONWebKey{Key: e.Public(), KeyID: "e"}
	private := parse(t, jose.JSONWebKey{Key: e, KeyID: "e"})
	if want := parse(t, good).String(); private.String() != want || strings.Contains(private.String(), `"d"`) {
		t.Errorf("a private key becomes %s, want %s", private, want)
	}
	set, problems, err := jwks.Parse(text(t,
		jose.JSONWebKey{Key: rsaKey(t, 1024).Public()}, good, jose.JSONWebKey{Key: []byte("secret secret secret secret secret"), KeyID: "s"},
		jose.JSONWebKey{Key: e.Public(), Use: "enc"}, jose.JSONWebKey{Key: e.Public(), Algorithm: "RS256"}))
	if err != nil || set.Len() != 1 {
		t.Fatal(set, err)
	}
	want := []string{
		"keys[0]: has 1024 bits, which are too few: at least 2048",
		"keys[2]: is a symmetric key: whoever could read the set could sign tokens",
		`keys[4]: algorithm "RS256" is not supported for such a key`,
	}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Error(diff)
	}
	for in, want := range map[string]string{
		``: `is no JSON object with a list "keys"`, `[]`: `is no JSON object with a list "keys"`, `{}`: `has no list "keys"`,
		`{"keys":[` + strings.Repeat("{},", 100) + `{}]}`:      "has more than 100 keys",
		`{"keys":[],"x":"` + strings.Repeat("x", 1<<18) + `"}`: "is longer than 262144 bytes",
	} {
		if _, _, err := jwks.Parse([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v, want %s", in, err, want)
		}
	}
	empty, problems, err := jwks.Parse([]byte(jwks.Empty))
	if err != nil || problems != nil || empty.String() != jwks.Empty || (*jwks.Set)(nil).String() != jwks.Empty {
		t.Errorf("%v, %v, %v", empty, problems, err)
	}
	if err := (*jwks.Set)(nil).Verify("a.b.c", "", "ES256"); !errors.Is(err, jwks.ErrNoKey) {
		t.Error(err)
	}
}

// TestNone: the key comes from a hash and from nothing else.
func TestNone(t *testing.T) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(jwks.None), &set); err != nil || len(set.Keys) != 1 {
		t.Fatal(set, err)
	}
	want := sha256.Sum256([]byte("ambit: no key\x01"))
	point, err := set.Keys[0].Key.(*ecdsa.PublicKey).Bytes()
	if err != nil || !bytes.Equal(point[1:33], want[:]) {
		t.Errorf("%x, want %x: %v", point, want, err)
	}
	if parsed, problems, err := jwks.Parse([]byte(jwks.None)); err != nil || problems != nil || parsed.String() != jwks.None {
		t.Error(parsed, problems, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(jwks.Empty))
	f.Add(text(f, jose.JSONWebKey{Key: ecKey(f, elliptic.P256()).Public(), KeyID: "e"}))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":""},null,1]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		set, _, err := jwks.Parse(in)
		if err != nil {
			return
		}
		again, problems, err := jwks.Parse([]byte(set.String()))
		if err != nil || len(problems) > 0 || again.String() != set.String() {
			t.Fatalf("%s becomes %s: %v %v", set, again, problems, err)
		}
	})
}
