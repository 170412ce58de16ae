package jwt

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// MaxToken is how long a token may be, in bytes. Large ones, of issuers that put a user's hundreds of groups into them, have some
// 10 KiB, and few servers take more than 16 KiB of header.
const MaxToken = 16 << 10

// token is one that was read. It is immutable.
type token struct {
	text           string
	payload        string // as it is in the token
	algorithm, key string // of the header
	claims         Claims
	told           Claims // with lists as such, for the provider for which it was verified
	issuer         string
	audiences      []string
	// from and until are when the token is good; zero if it does not say.
	from, until time.Time
}

// parse reads a token. Nothing of it is verified.
func parse(text string) (*token, *Failure) {
	if len(text) > MaxToken {
		return nil, ErrTooLong
	}
	header, rest, ok := strings.Cut(text, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.IndexByte(signature, '.') >= 0 {
		return nil, ErrFormat
	}
	t := &token{text: strings.Clone(text), payload: strings.Clone(payload)} // it may outlive the request
	if failure := t.readHeader(header); failure != nil {
		return nil, failure
	}
	raw, err := decode(payload)
	if err != nil {
		return nil, ErrBase64
	}
	if t.claims = readObject(raw); t.claims == nil {
		return nil, ErrJSON
	}
	return t, t.readClaims()
}

func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // which the decoder would pass over
		return nil, base64.CorruptInputError(0)
	}
	return base64.RawURLEncoding.DecodeString(s)
}

// maxDepth bounds how deep objects and lists of a token may be in each other.
const maxDepth = 32

// readObject reads one JSON object and no more, numbers as they are written; nil if it is none, or has a name twice: who reads the
// first and who reads the last would not agree on what was signed.
func readObject(raw []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := readValue(d, maxDepth)
	if err != nil {
		return nil
	}
	if _, err := d.Token(); err != io.EOF {
		return nil
	}
	out, _ := v.(map[string]any)
	return out
}

var errObject = errors.New("is no JSON that can be meant")

func readValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil || depth == 0 {
		return nil, cmp.Or(err, errObject)
	}
	switch t {
	case json.Delim('{'):
		out := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, ok := name.(string)
			if _, twice := out[key]; twice || !ok {
				return nil, errObject
			}
			if out[key], err = readValue(d, depth-1); err != nil {
				return nil, err
			}
		}
		_, err = d.Token()
		return out, err
	case json.Delim('['):
		out := []any{}
		for d.More() {
			v, err := readValue(d, depth-1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err = d.Token()
		return out, err
	}
	return t, nil
}

func (t *token) readHeader(text string) *Failure {
	raw, err := decode(text)
	if err != nil {
		return ErrHeaderBase64
	}
	header := readObject(raw)
	if header == nil {
		return ErrHeaderJSON
	}
	var ok bool
	if t.algorithm, ok = header["alg"].(string); !ok {
		return ErrNoAlg
	}
	if !jwks.Supported(t.algorithm) {
		return ErrAlg
	}
	if kid, there := header["kid"]; there {
		if t.key, ok = kid.(string); !ok {
			return ErrKid
		}
	}
	if _, there := header["crit"]; there {
		return ErrCritical
	}
	return nil
}

func (t *token) readClaims() *Failure {
	var ok bool
	if v, there := t.claims["iss"]; there {
		if t.issuer, ok = v.(string); !ok {
			return ErrIss
		}
	}
	if v, there := t.claims["sub"]; there {
		if _, ok = v.(string); !ok {
			return ErrSub
		}
	}
	switch aud := t.claims["aud"].(type) {
	case nil:
	case string:
		t.audiences = []string{aud}
	case []any:
		for _, v := range aud {
			one, ok := v.(string)
			if !ok {
				return ErrAud
			}
			t.audiences = append(t.audiences, one)
		}
	default:
		return ErrAud
	}
	if t.until, ok = date(t.claims["exp"]); !ok {
		return ErrExp
	}
	if t.from, ok = date(t.claims["nbf"]); !ok {
		return ErrNbf
	}
	return nil
}

// farFuture is later than any token's end, in seconds since 1970: times beyond it mean it.
const farFuture = 1 << 40

// date reads seconds since 1970, the zero Time if there are none.
func date(v any) (time.Time, bool) {
	if v == nil {
		return time.Time{}, true
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 {
		return time.Time{}, false
	}
	return time.Unix(int64(min(seconds, farFuture)), 0), true
}

// timely reports why the token is not good at a time.
func (t *token) timely(now time.Time, skew time.Duration) *Failure {
	switch {
	case !t.from.IsZero() && now.Add(skew).Before(t.from):
		return ErrNotYet
	case !t.until.IsZero() && now.After(t.until.Add(skew)):
		return ErrExpired
	}
	return nil
}

// Claims are what a verified token says: a JSON object. It must not be changed.
type Claims map[string]any

// at is the value of a claim, by its name or its way through objects, with dots; nil if there is none.
func (c Claims) at(path string) any {
	if v, there := c[path]; there { // names may have dots, as URLs have
		return v
	}
	name, rest, nested := strings.Cut(path, ".")
	for nested {
		if inner, ok := c[name].(map[string]any); ok {
			if v := Claims(inner).at(rest); v != nil {
				return v
			}
		}
		var more string
		more, rest, nested = strings.Cut(rest, ".")
		name += "." + more
	}
	return nil
}

// text is a value as a field of a header has it, "" for one that it cannot have.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		if v {
			return "true"
		}
		return "false"
	}
	return ""
}

// split returns the claims with those that are lists as such.
func (c Claims) split(paths []string) Claims {
	out, copied := c, false
	for _, path := range paths {
		v, ok := c.at(path).(string)
		if !ok {
			continue
		}
		if !copied {
			out, copied = clone(c), true
		}
		var list []any
		for _, one := range strings.Fields(v) {
			list = append(list, one)
		}
		out.set(path, list)
	}
	return out
}

// clone copies the objects.
func clone(c map[string]any) map[string]any {
	out := make(map[string]any, len(c))
	for k, v := range c {
		if inner, ok := v.(map[string]any); ok {
			v = clone(inner)
		}
		out[k] = v
	}
	return out
}

// set replaces what at returns.
func (c Claims) set(path string, to any) {
	if _, there := c[path]; there {
		c[path] = to
		return
	}
	name, rest, nested := strings.Cut(path, ".")
	for nested {
		if inner, ok := c[name].(map[string]any); ok && Claims(inner).at(rest) != nil {
			Claims(inner).set(rest, to)
			return
		}
		var more string
		more, rest, nested = strings.Cut(rest, ".")
		name += "." + more
	}
}
