package config

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/mesh/jwks"
	"github.com/ambit-mesh/ambit/waypoint/jwt"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// defaultSkew is how far an issuer's clock may be from ours. Envoy's.
const defaultSkew = time.Minute

// authentication reads a jwt_authn filter; nil if it asks for nothing.
func (d decoder) authentication(m *jwtv3.JwtAuthentication, at *strict.Path) *jwt.Authenticator {
	cfg := jwt.Config{Preflight: m.GetBypassCorsPreflight()}
	index := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(m.GetProviders())) {
		index[name] = len(cfg.Providers)
		cfg.Providers = append(cfg.Providers, d.provider(m.GetProviders()[name], at.Field("providers").Key(name)))
	}
	if len(m.GetRules()) == 0 {
		return nil
	}
	if len(m.GetRules()) > 1 {
		d.add(at.Field("rules"), "one is supported, for all paths")
	}
	rule := m.GetRules()[0]
	at = at.Field("rules").Index(0)
	if rule.GetMatch().GetPrefix() != "/" {
		d.add(at.Field("match").Field("prefix"), "must be /: a rule is for all paths")
	}
	if rule.GetRequires() == nil {
		return nil // Envoy asks for nothing then
	}
	cfg.Require = d.requirement(rule.GetRequires(), index, nil, at.Field("requires"))
	return jwt.New(cfg)
}

// requirement reads what tokens a request must have. used are the providers beside it of which one would do.
func (d decoder) requirement(m *jwtv3.JwtRequirement, index map[string]int, used jwt.Missing, at *strict.Path) jwt.Requirement {
	switch r := m.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		i, ok := index[r.ProviderName]
		if !ok {
			d.add(at.Field("provider_name"), "there is no provider %q", r.ProviderName)
		}
		return jwt.By(i)
	case *jwtv3.JwtRequirement_RequiresAny:
		var out jwt.Any
		for _, one := range r.RequiresAny.GetRequirements() {
			if i, ok := index[one.GetProviderName()]; ok {
				used = append(slices.Clone(used), i)
			}
		}
		at := at.Field("requires_any").Field("requirements")
		missing := false
		for i, one := range r.RequiresAny.GetRequirements() {
			if one.GetAllowMissing() != nil {
				missing = true
				continue
			}
			out = append(out, d.requirement(one, index, nil, at.Index(i)))
		}
		if missing { // after those that want a token
			out = append(out, used)
		}
		return out
	case *jwtv3.JwtRequirement_RequiresAll:
		var out jwt.All
		for i, one := range r.RequiresAll.GetRequirements() {
			out = append(out, d.requirement(one, index, nil, at.Field("requires_all").Field("requirements").Index(i)))
		}
		return out
	case *jwtv3.JwtRequirement_AllowMissing:
		d.add(at.Field("allow_missing"), "only in requires_any, beside the providers that it is about")
	case nil:
		d.add(at, "a requirement is required")
	}
	return jwt.All{}
}

func (d decoder) provider(m *jwtv3.JwtProvider, at *strict.Path) *jwt.Provider {
	out := &jwt.Provider{
		Issuer: m.GetIssuer(), Audiences: m.GetAudiences(), Skew: defaultSkew, Params: m.GetFromParams(), Cookies: m.GetFromCookies(),
		Forward: m.GetForward(), PayloadHeader: m.GetForwardPayloadHeader(), Padded: m.GetPadForwardPayloadHeader(),
		Lists: m.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(), Keys: d.keys(m, at),
	}
	if s := m.GetClockSkewSeconds(); s > 0 {
		out.Skew = time.Duration(s) * time.Second
	}
	if name := m.GetPayloadInMetadata(); name != tokenPayload {
		d.add(at.Field("payload_in_metadata"), "must be %q, where policies look for it, not %q", tokenPayload, name)
	}
	field := func(name string, at *strict.Path) {
		if !message.ValidName(name) {
			d.add(at, "%q is no name of a header in lower case", name)
		}
	}
	for i, h := range m.GetFromHeaders() {
		field(h.GetName(), at.Field("from_headers").Index(i).Field("name"))
		out.Headers = append(out.Headers, jwt.Header{Name: h.GetName(), Prefix: h.GetValuePrefix()})
	}
	if out.PayloadHeader != "" {
		field(out.PayloadHeader, at.Field("forward_payload_header"))
	}
	for i, c := range m.GetClaimToHeaders() {
		field(c.GetHeaderName(), at.Field("claim_to_headers").Index(i).Field("header_name"))
		out.ClaimHeaders = append(out.ClaimHeaders, jwt.ClaimHeader{Claim: c.GetClaimName(), Header: c.GetHeaderName()})
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		d.add(at, "cannot be written: %v", err)
	}
	out.Fingerprint = sha256.Sum256(text)
	return out
}

func (d decoder) keys(m *jwtv3.JwtProvider, at *strict.Path) *jwks.Set {
	source := m.GetLocalJwks()
	at = at.Field("local_jwks")
	text := source.GetInlineBytes()
	if text == nil {
		text = []byte(source.GetInlineString())
	}
	if len(text) == 0 {
		d.add(at, "inline_string or inline_bytes is required: the control plane fetches keys")
		return nil
	}
	if string(text) == jwks.None { // the control plane has none
		return nil
	}
	set, _, err := jwks.Parse(text)
	if err != nil {
		d.add(at, "%v", err)
	}
	return set
}
