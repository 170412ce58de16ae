package jwt

import (
	"crypto/sha256"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/jwks"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Provider is an issuer of tokens, and what is done with them. Values are not changed once they are in use.
type Provider struct {
	// Issuer is what a token's iss must be; "" for any.
	Issuer string
	// Audiences are those of which a token must name one; none: whatever it names. "http://", "https://" and a last slash make no
	// difference.
	Audiences []string
	// Keys sign the tokens.
	Keys *jwks.Set
	// Skew is how far the issuer's clock may be from ours.
	Skew time.Duration

	// Headers, Params and Cookies are where tokens are looked for; none of them: in "authorization: Bearer ", and in the query
	// parameter access_token.
	Headers []Header
	Params  []string
	Cookies []string
	// Forward leaves tokens in the request that backends get.
	Forward bool

	// PayloadHeader is the field in which backends get the payload as it is in the token; "" for none. Padded: in whole groups of four.
	PayloadHeader string
	Padded        bool
	// ClaimHeaders are fields in which backends get single claims.
	ClaimHeaders []ClaimHeader
	// Lists are claims whose text is a list, its elements separated by spaces. "a.b" is b in a.
	Lists []string

	// Fingerprint tells providers apart whose tokens do not count for each other. Providers that are equal may have the same.
	Fingerprint [sha256.Size]byte
}

// Header is a field of the header in which a token may be, after a prefix.
type Header struct{ Name, Prefix string }

// ClaimHeader is a field that is set to the value of a claim: text, number or truth. "a.b" is b in a.
type ClaimHeader struct{ Claim, Header string }

// Default places of tokens (RFC 6750).
var (
	defaultHeaders = []Header{{"authorization", "Bearer "}}
	defaultParams  = []string{"access_token"}
)

func (p *Provider) headers() []Header {
	if p.isDefault() {
		return defaultHeaders
	}
	return p.Headers
}

func (p *Provider) params() []string {
	if p.isDefault() {
		return defaultParams
	}
	return p.Params
}

func (p *Provider) isDefault() bool { return len(p.Headers)+len(p.Params)+len(p.Cookies) == 0 }

// written are the fields that only the provider writes.
func (p *Provider) written() []string {
	var out []string
	if p.PayloadHeader != "" {
		out = append(out, p.PayloadHeader)
	}
	for _, c := range p.ClaimHeaders {
		out = append(out, c.Header)
	}
	return out
}

// allows reports whether one of a token's audiences is allowed.
func (p *Provider) allows(audiences []string) bool {
	if len(p.Audiences) == 0 {
		return true
	}
	for _, is := range audiences {
		for _, want := range p.Audiences {
			if plain(is) == plain(want) {
				return true
			}
		}
	}
	return false
}

// plain is an audience without what makes no difference.
func plain(audience string) string {
	if rest, ok := strings.CutPrefix(audience, "https://"); ok {
		audience = rest
	} else {
		audience = strings.TrimPrefix(audience, "http://")
	}
	return strings.TrimSuffix(audience, "/")
}

// Requirement says what tokens a request must have: one of the types below.
type Requirement interface {
	// met evaluates; a failure is why not.
	met(e *evaluation) *Failure
}

type (
	// By is a good token of a provider, by its index in Config.Providers.
	By int
	// All is that each of them is met.
	All []Requirement
	// Any is that one of them is met: the first counts.
	Any []Requirement
	// Missing is that there is no token where any of the providers would have one.
	Missing []int
)

// Config configures an Authenticator.
type Config struct {
	Providers []*Provider
	Require   Requirement
	// Preflight lets cross-origin preflight requests pass, which never have a token.
	Preflight bool
}

// Authenticator authenticates requests. It is immutable and safe for concurrent use.
type Authenticator struct {
	cfg     Config
	written []string
}

// New makes an Authenticator.
func New(cfg Config) *Authenticator {
	a := &Authenticator{cfg: cfg}
	for _, p := range cfg.Providers {
		a.written = append(a.written, p.written()...)
	}
	return a
}

// Authenticate returns what the token of a request claims, nil if it has none or, with a failure, why the request is refused. It
// changes the request as the provider says; the path must be as it is routed. known keeps what was verified, for any number of
// Authenticators.
func (a *Authenticator) Authenticate(req *message.Request, known *Cache, now time.Time) (Claims, *Failure) {
	for _, name := range a.written {
		req.Header.Del(name)
	}
	if a.cfg.Preflight && isPreflight(req) {
		return nil, nil
	}
	e := evaluation{a: a, req: req, known: known, now: now, results: make([]result, len(a.cfg.Providers))}
	if failure := a.cfg.Require.met(&e); failure != nil {
		return nil, failure
	}
	var claims Claims
	for i, r := range e.results {
		if r.done && r.failure == nil {
			p := a.cfg.Providers[i]
			claims = p.apply(req, r.token)
		}
	}
	return claims, nil
}

// Bare is a path without the tokens that its query may have, for those who tell of it.
func (a *Authenticator) Bare(path string) string {
	for _, p := range a.cfg.Providers {
		path = p.bare(path)
	}
	return path
}

func isPreflight(req *message.Request) bool {
	return req.Method == "OPTIONS" && req.Header.Get("origin") != "" && req.Header.Get("access-control-request-method") != ""
}

// apply does to a request what the provider says, by the token that was good.
func (p *Provider) apply(req *message.Request, t *token) Claims {
	if !p.Forward {
		p.remove(req)
	}
	if p.PayloadHeader != "" {
		payload := t.payload
		if p.Padded {
			payload += strings.Repeat("=", (4-len(payload)%4)%4)
		}
		req.Header.Set(p.PayloadHeader, payload)
	}
	for _, c := range p.ClaimHeaders {
		if value := text(t.claims.at(c.Claim)); value != "" && message.ValidValue(value) {
			req.Header.Set(c.Header, value)
		}
	}
	return t.told
}
