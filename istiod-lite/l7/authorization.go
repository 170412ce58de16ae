package l7

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Names of Envoy's extensions.
const (
	filterHTTPRBAC    = "envoy.filters.http.rbac"
	filterNetworkRBAC = "envoy.filters.network.rbac"
	matcherTemplate   = "envoy.path.match.uri_template.uri_template_matcher"
)

// What the filter of tokens leaves for policies: its metadata, and their member that has the claims.
const (
	FilterTokens = "envoy.filters.http.jwt_authn"
	TokenPayload = "payload"
)

// Policies are the policies that waypoints enforce for a host.
type Policies struct {
	Mesh translate.Mesh
	All  []*cluster.AuthorizationPolicy
	// Telemetry is what is told of the requests that they decide about.
	Telemetry Telemetry
	// Authentications say whose tokens requests may have, by keys from KeySets.
	Authentications []*cluster.RequestAuthentication
	KeySets         KeySets
}

// Applies reports whether a policy of a namespace is for a service at a waypoint: by the service itself, by the waypoint, or by all
// waypoints.
func Applies(m translate.Mesh, namespace string, targets []authz.Target, service cluster.ObjectRef, gateway cluster.Key) bool {
	return slices.ContainsFunc(targets, func(t authz.Target) bool {
		key := cluster.Key{Namespace: namespace, Name: t.Name}
		switch t.Kind {
		case authz.TargetService:
			return service.IsService() && service.Key == key
		case authz.TargetServiceEntry:
			return service.IsEntry() && service.Key == key
		case authz.TargetGateway:
			return gateway == key
		case authz.TargetGatewayClass:
			return namespace == m.RootNamespace
		}
		return false
	})
}

// rbac is one filter: the policies of one action.
type rbac struct {
	rules, shadow *rbacv3.RBAC
	prefix        string // of the shadow's statistics
}

// before has the policies asked before a chain of bytes serves a connection. It changes the chain and returns it.
func (p Policies) before(c *listenerv3.FilterChain) *listenerv3.FilterChain {
	for i, f := range p.filters(false, nil) {
		c.Filters = slices.Insert(c.Filters, i, networkFilter(filterNetworkRBAC, f.network(c.Name)))
	}
	return c
}

// filters are the filters of a chain, in the order in which Istio has them. CUSTOM policies are of those that deny; on HTTP the given
// ones only.
func (p Policies) filters(http bool, refusing []*cluster.AuthorizationPolicy) []rbac {
	all := slices.Clone(p.All)
	slices.SortFunc(all, func(a, b *cluster.AuthorizationPolicy) int { return a.Key.Compare(b.Key) })
	var out []rbac
	for _, step := range []struct {
		action  rbacv3.RBAC_Action
		name    string
		actions []authz.Action
	}{
		{rbacv3.RBAC_LOG, "audit", []authz.Action{authz.Audit}},
		{rbacv3.RBAC_DENY, "deny", []authz.Action{authz.Custom, authz.Deny}},
		{rbacv3.RBAC_ALLOW, "allow", []authz.Action{authz.Allow}},
	} {
		f := rbac{prefix: "dry_run_" + step.name + "_"}
		for _, one := range all {
			if !slices.Contains(step.actions, one.Policy.Action) || step.action == rbacv3.RBAC_LOG && one.Policy.DryRun {
				continue
			}
			if one.Policy.Action == authz.Custom && (one.Policy.DryRun || http && !slices.Contains(refusing, one)) {
				continue
			}
			to := &f.rules
			if one.Policy.DryRun {
				to = &f.shadow
			}
			if *to == nil {
				*to = &rbacv3.RBAC{Action: step.action, Policies: map[string]*rbacv3.Policy{}}
			}
			p.add((*to).Policies, one, http, "")
		}
		if f.rules != nil || f.shadow != nil {
			out = append(out, f)
		}
	}
	return out
}

// add adds the rules of a policy, under the names that Istio gives them, which may have a prefix. A policy without rules is there too, and matches nothing.
func (p Policies) add(to map[string]*rbacv3.Policy, one *cluster.AuthorizationPolicy, http bool, prefix string) {
	rules := one.Policy.RequestRules(p.Mesh.Authorization())
	if len(rules) == 0 {
		rules = []policy.RequestRule{{Source: policy.Any{}, Operation: policy.Any{}}}
	}
	e := expressions{http}
	// What cannot be told on a connection counts as the worse for whoever asks.
	doubt := one.Policy.Action != authz.Allow
	for i, r := range rules {
		to[prefix+fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", one.Namespace, one.Name, i)] = &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{e.permission(r.Operation, doubt)},
			Principals:  []*rbacv3.Principal{e.principal(r.Source, doubt)},
		}
	}
}

func (f rbac) http() proto.Message {
	out := &httprbacv3.RBAC{Rules: f.rules, ShadowRules: f.shadow}
	if f.shadow != nil {
		out.ShadowRulesStatPrefix = f.prefix
	}
	return out
}

func (f rbac) network(name string) proto.Message {
	out := &networkrbacv3.RBAC{Rules: f.rules, ShadowRules: f.shadow, StatPrefix: name + "."}
	if f.shadow != nil {
		out.ShadowRulesStatPrefix = f.prefix
	}
	return out
}

// expressions writes statements as Envoy has them, for requests or for connections.
type expressions struct{ http bool }

func (e expressions) permission(in policy.Expr, doubt bool) *rbacv3.Permission {
	always := &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	constant := func(is bool) *rbacv3.Permission {
		if is {
			return always
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: always}}
	}
	each := func(in []policy.Expr) (out []*rbacv3.Permission) {
		for _, one := range in {
			out = append(out, e.permission(one, doubt))
		}
		return out
	}
	switch in := in.(type) {
	case policy.All:
		if len(in) == 0 {
			return constant(true)
		} else if len(in) == 1 {
			return e.permission(in[0], doubt)
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: each(in)}}}
	case policy.Any:
		if len(in) == 0 {
			return constant(false)
		} else if len(in) == 1 {
			return e.permission(in[0], doubt)
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: each(in)}}}
	case policy.Not:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: e.permission(in.Expr, !doubt)}}
	case policy.DestinationIP:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: cidr(in.Range)}}
	case policy.DestinationPort:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(in.First)}}
	case policy.ServerName:
		name := text(in.Text)
		if in.Text.Kind == policy.Present { // a name that is empty is none
			name.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".+"}}
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: name}}
	}
	if !e.http {
		return constant(doubt)
	}
	switch in := in.(type) {
	case policy.Field:
		h := &routev3.HeaderMatcher{Name: in.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
		if in.Text.Kind != policy.Present {
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: text(in.Text)}
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: h}}
	case policy.Path:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: text(in.Text)}}}}
	case policy.PathTemplate:
		template := strings.NewReplacer("{**}", "**", "{*}", "*").Replace(in.Template.String())
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{
			Name: matcherTemplate, TypedConfig: config(&templatev3.UriTemplateMatchConfig{PathTemplate: template})}}}
	}
	return constant(doubt) // no statement about what is asked for
}

func (e expressions) principal(in policy.Expr, doubt bool) *rbacv3.Principal {
	always := &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	constant := func(is bool) *rbacv3.Principal {
		if is {
			return always
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: always}}
	}
	each := func(in []policy.Expr) (out []*rbacv3.Principal) {
		for _, one := range in {
			out = append(out, e.principal(one, doubt))
		}
		return out
	}
	switch in := in.(type) {
	case policy.All:
		if len(in) == 0 {
			return constant(true)
		} else if len(in) == 1 {
			return e.principal(in[0], doubt)
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: each(in)}}}
	case policy.Any:
		if len(in) == 0 {
			return constant(false)
		} else if len(in) == 1 {
			return e.principal(in[0], doubt)
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: each(in)}}}
	case policy.Not:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: e.principal(in.Expr, !doubt)}}
	case policy.Principal:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
			Key: FilterStatePeer, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: text(in.Text)}}}}
	case policy.SourceIP:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: cidr(in.Range)}}
	case policy.RemoteIP:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: cidr(in.Range)}}
	case policy.Claim:
		if e.http {
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{SourcedMetadata: &rbacv3.SourcedMetadata{MetadataMatcher: claim(in)}}}
		}
	}
	return constant(doubt) // no statement about who asks
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

// claim is a test of a claim in what the filter of tokens has left: its text, or one of its texts.
func claim(in policy.Claim) *matcherv3.MetadataMatcher {
	is := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: text(in.Text)}}
	out := &matcherv3.MetadataMatcher{Filter: FilterTokens, Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
		OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{is, {MatchPattern: &matcherv3.ValueMatcher_ListMatch{
			ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: is}}}}}}}}}
	for _, name := range append([]string{TokenPayload}, in.Path...) {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: name}})
	}
	return out
}

// text is a test of a string that is there. Envoy takes no empty prefix for one that always holds.
func text(t policy.Text) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: t.Fold && t.Kind != policy.Regexp}
	switch t.Kind {
	case policy.Prefix:
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: t.Value}
	case policy.Suffix:
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: t.Value}
	case policy.Contains:
		out.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: t.Value}
	case policy.Present, policy.Regexp:
		out.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: cmp.Or(t.Value, ".*")}}
	default:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: t.Value}
	}
	return out
}
