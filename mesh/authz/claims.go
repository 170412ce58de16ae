package authz

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Claims of tokens that have keys of their own in policies.
const (
	claimIssuer    = "iss"
	claimSubject   = "sub"
	claimAudience  = "aud"
	claimPresenter = "azp"
)

// claimKey is a key for a claim of any name, which may be in other claims: request.auth.claims[realm][roles].
var claimKey = regexp.MustCompile(`^request\.auth\.claims((?:\[[^\[\]]+\])+)$`)

// claimOf says what is made of the values of a condition about tokens.
func claimOf(key string) (func(string) (policy.Expr, error), error) {
	var path []string
	switch key {
	case "request.auth.principal":
		return requestPrincipal, nil
	case "request.auth.audiences":
		path = []string{claimAudience}
	case "request.auth.presenter":
		path = []string{claimPresenter}
	default:
		m := claimKey.FindStringSubmatch(key)
		if m == nil {
			return nil, fmt.Errorf("key %q: want request.auth.claims[NAME], with more [NAME] for what is inside, or request.auth.principal, .audiences, .presenter", key)
		}
		path = strings.Split(strings.Trim(m[1], "[]"), "][")
	}
	return func(v string) (policy.Expr, error) {
		t, err := text(v)
		return claim(t, path...), err
	}, nil
}

// LooksAtTokens reports whether what waypoints make of the policy depends on the token of a request.
func (p *Policy) LooksAtTokens() bool {
	for _, r := range p.Requests.rules {
		for _, one := range slices.Concat(r.from, r.to, r.when) {
			if policy.LooksAtClaims(one.source) {
				return true
			}
		}
	}
	return false
}

// claim is a test of a claim. One that is present is not empty.
func claim(t policy.Text, path ...string) policy.Expr {
	if t.Kind == policy.Present {
		t, _ = policy.NewRegexp("(?s).+")
	}
	return policy.Claim{Path: path, Text: t}
}

// requestPrincipal is a test of issuer/subject, of which the issuer may have slashes and the subject has none: Istio's reading.
func requestPrincipal(v string) (policy.Expr, error) {
	whole, err := text(v)
	if err != nil {
		return policy.Any{}, err
	}
	present := policy.Text{Kind: policy.Present}
	issuer, subject := present, present
	slash := strings.LastIndexByte(v, '/')
	switch {
	case whole.Kind == policy.Present:
	case slash > 0 && v[slash-1] == '/' || strings.HasSuffix(v[:max(slash, 0)], ":"):
		err = fmt.Errorf("%q: what comes after the last / is the subject, and the issuer before it is cut short", v)
	case slash >= 0:
		if issuer, err = text(v[:slash]); err == nil {
			subject, err = text(v[slash+1:])
		}
	case whole.Kind == policy.Prefix:
		issuer = whole
	case whole.Kind == policy.Suffix:
		subject = whole
	default:
		err = fmt.Errorf("%q: want issuer/subject, or a part of it with * before or after", v)
	}
	return policy.All{claim(issuer, claimIssuer), claim(subject, claimSubject)}, err
}
