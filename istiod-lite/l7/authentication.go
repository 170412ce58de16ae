package l7

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/emptypb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// KeySets finds what an issuer publishes, nil if nothing is known of it.
type KeySets func(authn.Source) *cluster.KeySet

// jwtAuthentication is the filter that authenticates requests by tokens, nil if no policy asks for it. It is laid out as Istio does: a
// request passes with a good token of one of the issuers; or if, wherever one of them has its tokens, there is none.
func (p Policies) jwtAuthentication() *jwtv3.JwtAuthentication {
	all := slices.Clone(p.Authentications)
	slices.SortFunc(all, func(a, b *cluster.RequestAuthentication) int { return a.Key.Compare(b.Key) })
	var rules []authn.Rule
	for _, one := range all {
		rules = append(rules, one.Policy.Rules...)
	}
	if len(rules) == 0 {
		return nil
	}
	slices.SortStableFunc(rules, func(a, b authn.Rule) int { return strings.Compare(a.Issuer, b.Issuer) })
	out := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	var each, optional []*jwtv3.JwtRequirement
	for i, r := range rules {
		name := fmt.Sprintf("origins-%d", i)
		out.Providers[name] = p.provider(r)
		by := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
		each = append(each, by)
		optional = append(optional, anyOf(by, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}))
	}
	require := optional[0]
	if len(rules) > 1 {
		require = anyOf(append(each, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: optional}}})...)
	}
	out.Rules = []*jwtv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: require},
	}}
	return out
}

func anyOf(list ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: list}}}
}

func (p Policies) provider(r authn.Rule) *jwtv3.JwtProvider {
	set := r.JWKS
	if !r.Source.IsZero() {
		if fetched := p.KeySets(r.Source); fetched != nil {
			set = fetched.Set
		}
	}
	keys := set.String()
	if r.Broken || set.Len() == 0 {
		keys = jwks.None // by which no token is good
	}
	out := &jwtv3.JwtProvider{
		Issuer: r.Issuer, Audiences: r.Audiences, Forward: r.Forward, ForwardPayloadHeader: r.PayloadHeader, PayloadInMetadata: TokenPayload,
		FromParams: r.Params, FromCookies: r.Cookies,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{SpaceDelimitedClaims: r.Lists},
		JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: keys}}},
	}
	for _, h := range r.Headers {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range r.ClaimHeaders {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	return out
}

// keyFaults says: faults, of which rules tokens are refused though they may be good; unsure, which keys may be old.
func keyFaults(p *authn.Policy, sets KeySets) (faults, unsure []string) {
	for i, r := range p.Rules {
		if r.Broken || r.Source.IsZero() {
			continue
		}
		switch set := sets(r.Source); {
		case set == nil:
			faults = append(faults, fmt.Sprintf("jwtRules[%d]: the keys are not here yet: GET %s; until then its tokens are refused", i, r.Source))
		case set.Set == nil:
			faults = append(faults, fmt.Sprintf("jwtRules[%d]: the keys cannot be had, so its tokens are refused: %s", i, set.Fault))
		case set.Fault != "":
			unsure = append(unsure, fmt.Sprintf("jwtRules[%d]: the keys cannot be fetched again, those that were had last are in force: %s", i, set.Fault))
		}
	}
	return faults, unsure
}

// AuthenticationStatus says what waypoints make of a policy. It depends on what the policy is attached to, and on its issuers.
func AuthenticationStatus(m translate.Mesh, p *cluster.RequestAuthentication, ix Index, gateways Gateways, sets KeySets) translate.Status {
	out := translate.Status{Kind: p.ObjectKind(), Key: p.Key, Type: authz.WaypointConditionType, Seen: p.Seen}
	c := conditions{generation: p.Generation}
	add := func(ok bool, reason, message string) {
		c.add(authz.WaypointConditionType, ok, gatewayv1.RouteConditionReason(reason), message)
		out.Want = c.list[0]
	}
	if !p.Policy.Attached {
		add(false, authz.ReasonUnsupported, "waypoints take policies by targetRefs only, and node proxies see no requests: nothing authenticates by it")
		return out
	}
	bound, reason := 0, ""
	var unattached []string
	for _, t := range p.Policy.Targets {
		why, message := attached(m, p.Namespace, t, ix, gateways)
		if why == "" {
			bound++
			continue
		}
		reason = cmp.Or(reason, why)
		unattached = append(unattached, message)
	}
	keyless, unsure := keyFaults(p.Policy, sets)
	problems, broken := p.Policy.Problems, p.Policy.Broken()
	if broken > 0 {
		problems = append(slices.Clone(problems), "tokens of such rules are refused")
	}
	message := strings.Join(slices.Concat(problems, keyless, unattached, unsure), "; ")
	switch {
	case broken > 0 && broken == len(p.Policy.Rules):
		add(false, policyInvalid, message)
	case len(problems) > 0 && bound > 0:
		add(false, policyPartially, message)
	case bound == 0:
		add(false, cmp.Or(reason, policyInvalid), cmp.Or(message, "targetRefs names nothing"))
	case len(keyless) > 0:
		add(false, authn.ReasonNoKeys, message)
	case len(unattached) > 0:
		add(true, policyPartially, message)
	case len(p.Policy.Rules) == 0:
		add(true, policyAccepted, "it has no jwtRules, so it asks for nothing")
	default:
		add(true, policyAccepted, cmp.Or(message, "enforced by waypoints"))
	}
	return out
}
