package jwt

import (
	"crypto/sha256"
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/mesh/jwks"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maxTokens bounds how many tokens of one request are looked at for a provider. All of them must be good.
const maxTokens = 4

// evaluation is that of one request. Each token is read once, and each provider asked once.
type evaluation struct {
	a       *Authenticator
	req     *message.Request
	known   *Cache
	now     time.Time
	tokens  []seen
	results []result
}

// seen is a token of the request.
type seen struct {
	text    string
	hash    [sha256.Size]byte
	token   *token
	failure *Failure
}

// result is what a provider says of the request's tokens; token is the first if all are good.
type result struct {
	done    bool
	failure *Failure
	token   *token
}

func (b By) met(e *evaluation) *Failure {
	r := &e.results[b]
	if !r.done {
		r.token, r.failure = e.ask(e.a.cfg.Providers[b])
		r.done = true
	}
	return r.failure
}

func (all All) met(e *evaluation) *Failure {
	for _, one := range all {
		if failure := one.met(e); failure != nil {
			return failure
		}
	}
	return nil
}

func (any Any) met(e *evaluation) *Failure {
	var out *Failure
	for _, one := range any {
		failure := one.met(e)
		if failure == nil {
			return nil
		}
		out = worse(out, failure)
	}
	return out
}

func (m Missing) met(e *evaluation) *Failure {
	for _, i := range m {
		if failure := By(i).met(e); failure != ErrMissing {
			return worse(failure, ErrIssuer) // a token that is good is there too
		}
	}
	return nil
}

// ask looks at all tokens that a request has for a provider.
func (e *evaluation) ask(p *Provider) (*token, *Failure) {
	texts := p.extract(e.req)
	if len(texts) == 0 {
		return nil, ErrMissing
	}
	if len(texts) > maxTokens {
		return nil, ErrTooMany
	}
	var first *token
	for _, text := range texts {
		t, failure := e.verify(p, text)
		if failure != nil {
			return nil, failure
		}
		if first == nil {
			first = t
		}
	}
	return first, nil
}

// verify says why a token is not good for a provider.
func (e *evaluation) verify(p *Provider, text string) (*token, *Failure) {
	s := e.see(text)
	if s.failure != nil {
		return nil, s.failure
	}
	t := s.token
	if p.Issuer != "" && p.Issuer != t.issuer {
		return nil, ErrIssuer
	}
	if failure := t.timely(e.now, p.Skew); failure != nil {
		return nil, failure
	}
	if !p.allows(t.audiences) {
		return nil, ErrAudience
	}
	key := cacheKey{p.Fingerprint, s.hash}
	if known := e.known.get(key); known != nil {
		return known, nil
	}
	if p.Keys.Len() == 0 {
		return nil, ErrNoKeys
	}
	switch err := p.Keys.Verify(text, t.key, t.algorithm); {
	case errors.Is(err, jwks.ErrNoKey):
		return nil, ErrNoKey
	case err != nil:
		return nil, ErrSignature
	}
	good := *t
	good.told = t.claims.split(p.Lists)
	e.known.put(key, &good)
	return &good, nil
}

// see reads a token, or finds it where it was read before.
func (e *evaluation) see(text string) seen {
	for _, s := range e.tokens {
		if s.text == text {
			return s
		}
	}
	s := seen{text: text}
	if len(text) > MaxToken {
		s.failure = ErrTooLong
	} else {
		s.hash = sha256.Sum256([]byte(text))
		for _, p := range e.a.cfg.Providers {
			if s.token = e.known.get(cacheKey{p.Fingerprint, s.hash}); s.token != nil {
				break
			}
		}
		if s.token == nil {
			s.token, s.failure = parse(text)
		}
	}
	e.tokens = append(e.tokens, s)
	return s
}
