package config

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// filterStatePeer is the filter state that has the client's identity, as Istio calls it.
const filterStatePeer = "io.istio.peer_principal"

// rbacFilter is what RBAC filters of requests and of connections have in common.
type rbacFilter interface {
	GetRules() *rbacv3.RBAC
	GetShadowRules() *rbacv3.RBAC
}

// stepKinds are what actions of RBAC do.
var stepKinds = map[rbacv3.RBAC_Action]policy.StepKind{
	rbacv3.RBAC_ALLOW: policy.StepAllow, rbacv3.RBAC_DENY: policy.StepDeny, rbacv3.RBAC_LOG: policy.StepAudit,
}

// step reads one RBAC filter; http tells whether it sees requests. A filter without rules does nothing.
func (d decoder) step(f rbacFilter, http bool, at *strict.Path) (policy.Step, bool) {
	var out policy.Step
	rules, shadow := f.GetRules(), f.GetShadowRules()
	if rules == nil && shadow == nil {
		return out, false
	}
	action := rules.GetAction()
	switch {
	case rules == nil:
		action = shadow.GetAction()
	case shadow != nil && shadow.GetAction() != action:
		d.add(at.Field("shadow_rules").Field("action"), "must be that of rules: use another filter")
	}
	kind, known := stepKinds[action]
	if !known {
		d.add(at.Field("rules").Field("action"), "%v is not known", action)
	}
	if kind == policy.StepAudit && shadow != nil {
		d.add(at.Field("shadow_rules"), "not supported with action LOG, which enforces nothing")
	}
	out.Kind, out.Enforced = kind, rules != nil
	r := rbacReader{d, http}
	out.Policies = r.policies(rules, kind, false, at.Field("rules").Field("policies"))
	out.Dry = r.policies(shadow, kind, true, at.Field("shadow_rules").Field("policies"))
	return out, true
}

// rbacReader reads the policies of RBAC filters.
type rbacReader struct {
	decoder
	http bool
}

// ruleName is how Istio names the rules of an AuthorizationPolicy.
var ruleName = regexp.MustCompile(`^(?:istio-ext-authz-.+-)?ns\[([^\[\]]*)\]-policy\[([^\[\]]*)\]-rule\[([0-9]+)\]$`)

// policyKey names what rules are of.
type policyKey struct{ namespace, name string }

// policies puts the rules of each AuthorizationPolicy together. Policies of other names stand for themselves.
func (r rbacReader) policies(in *rbacv3.RBAC, kind policy.StepKind, dry bool, at *strict.Path) []*policy.RequestPolicy {
	action := policy.Allow
	if kind == policy.StepDeny {
		action = policy.Deny
	}
	rules := map[policyKey][]policy.RequestRule{}
	for _, name := range slices.SortedFunc(maps.Keys(in.GetPolicies()), compareRules) {
		key := policyKey{name: name}
		if m := ruleName.FindStringSubmatch(name); m != nil {
			key = policyKey{m[1], m[2]}
		}
		rules[key] = append(rules[key], r.rule(in.GetPolicies()[name], at.Key(name)))
	}
	var out []*policy.RequestPolicy
	for _, key := range slices.SortedFunc(maps.Keys(rules), func(a, b policyKey) int {
		return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
	}) {
		out = append(out, policy.NewRequestPolicy(key.namespace, key.name, action, dry, rules[key]))
	}
	return out
}

// compareRules orders the rules of a policy by their number.
func compareRules(a, b string) int {
	x, y := ruleName.FindStringSubmatch(a), ruleName.FindStringSubmatch(b)
	if x == nil || y == nil || x[1] != y[1] || x[2] != y[2] {
		return strings.Compare(a, b)
	}
	return cmp.Or(cmp.Compare(len(x[3]), len(y[3])), strings.Compare(x[3], y[3]))
}

func (r rbacReader) rule(p *rbacv3.Policy, at *strict.Path) policy.RequestRule {
	var sources, operations policy.Any
	for i, in := range p.GetPermissions() {
		operations = append(operations, r.permission(in, at.Field("permissions").Index(i)))
	}
	for i, in := range p.GetPrincipals() {
		sources = append(sources, r.principal(in, at.Field("principals").Index(i)))
	}
	if len(operations) == 0 {
		r.add(at.Field("permissions"), "required")
	}
	if len(sources) == 0 {
		r.add(at.Field("principals"), "required")
	}
	return policy.RequestRule{Source: single(sources), Operation: single(operations)}
}

func single(in policy.Any) policy.Expr {
	if len(in) == 1 {
		return in[0]
	}
	return in
}

// never stands for what was reported: the whole is refused then.
func never() policy.Expr { return policy.Any{} }

func (r rbacReader) permission(in *rbacv3.Permission, at *strict.Path) policy.Expr {
	each := func(set *rbacv3.Permission_Set, at *strict.Path) (out []policy.Expr) {
		for i, one := range set.GetRules() {
			out = append(out, r.permission(one, at.Field("rules").Index(i)))
		}
		return out
	}
	switch in := in.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		return policy.All(each(in.AndRules, at.Field("and_rules")))
	case *rbacv3.Permission_OrRules:
		return policy.Any(each(in.OrRules, at.Field("or_rules")))
	case *rbacv3.Permission_NotRule:
		return policy.Not{Expr: r.permission(in.NotRule, at.Field("not_rule"))}
	case *rbacv3.Permission_Any:
		return r.always(in.Any, at.Field("any"))
	case *rbacv3.Permission_Header:
		return r.header(in.Header, at.Field("header"))
	case *rbacv3.Permission_UrlPath:
		return r.path(in.UrlPath, at.Field("url_path"))
	case *rbacv3.Permission_DestinationIp:
		return policy.DestinationIP{Range: r.cidr(in.DestinationIp, at.Field("destination_ip"))}
	case *rbacv3.Permission_DestinationPort:
		return r.ports(in.DestinationPort, in.DestinationPort, at.Field("destination_port"))
	case *rbacv3.Permission_DestinationPortRange:
		first, end := in.DestinationPortRange.GetStart(), in.DestinationPortRange.GetEnd() // of which end is not part
		if first < 0 || end <= first {
			r.add(at.Field("destination_port_range"), "from %d to before %d has no port", first, end)
			return never()
		}
		return r.ports(uint32(first), uint32(end)-1, at.Field("destination_port_range"))
	case *rbacv3.Permission_RequestedServerName:
		return policy.ServerName{Text: r.text(in.RequestedServerName, at.Field("requested_server_name"))}
	case *rbacv3.Permission_UriTemplate:
		return r.template(in.UriTemplate, at.Field("uri_template"))
	case nil:
		r.add(at, "a rule is required")
	} // what else there is, the table of what is understood has reported
	return never()
}

func (r rbacReader) principal(in *rbacv3.Principal, at *strict.Path) policy.Expr {
	each := func(set *rbacv3.Principal_Set, at *strict.Path) (out []policy.Expr) {
		for i, one := range set.GetIds() {
			out = append(out, r.principal(one, at.Field("ids").Index(i)))
		}
		return out
	}
	switch in := in.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		return policy.All(each(in.AndIds, at.Field("and_ids")))
	case *rbacv3.Principal_OrIds:
		return policy.Any(each(in.OrIds, at.Field("or_ids")))
	case *rbacv3.Principal_NotId:
		return policy.Not{Expr: r.principal(in.NotId, at.Field("not_id"))}
	case *rbacv3.Principal_Any:
		return r.always(in.Any, at.Field("any"))
	case *rbacv3.Principal_Authenticated_:
		if in.Authenticated.GetPrincipalName() == nil {
			return policy.Principal{Text: policy.Text{Kind: policy.Present}}
		}
		return policy.Principal{Text: r.text(in.Authenticated.GetPrincipalName(), at.Field("authenticated").Field("principal_name"))}
	case *rbacv3.Principal_FilterState:
		at := at.Field("filter_state")
		if in.FilterState.GetKey() != filterStatePeer {
			r.add(at.Field("key"), "%q is not known here: there is %s", in.FilterState.GetKey(), filterStatePeer)
		}
		return policy.Principal{Text: r.text(in.FilterState.GetStringMatch(), at.Field("string_match"))}
	case *rbacv3.Principal_DirectRemoteIp:
		return policy.SourceIP{Range: r.cidr(in.DirectRemoteIp, at.Field("direct_remote_ip"))}
	case *rbacv3.Principal_RemoteIp:
		return policy.RemoteIP{Range: r.cidr(in.RemoteIp, at.Field("remote_ip"))}
	case *rbacv3.Principal_SourcedMetadata:
		at := at.Field("sourced_metadata")
		if source := in.SourcedMetadata.GetMetadataSource(); source != rbacv3.MetadataSource_DYNAMIC {
			r.add(at.Field("metadata_source"), "%v is not supported: want DYNAMIC", source)
		}
		return r.claim(in.SourcedMetadata.GetMetadataMatcher(), at.Field("metadata_matcher"))
	case *rbacv3.Principal_Header:
		return r.header(in.Header, at.Field("header"))
	case *rbacv3.Principal_UrlPath:
		return r.path(in.UrlPath, at.Field("url_path"))
	case nil:
		r.add(at, "an identifier is required")
	}
	return never()
}

func (r rbacReader) always(is bool, at *strict.Path) policy.Expr {
	if !is {
		r.add(at, "must be true")
	}
	return policy.All{}
}

func (r rbacReader) ports(first, last uint32, at *strict.Path) policy.Expr {
	if last > math.MaxUint16 {
		r.add(at, "%d is no port", last)
		return never()
	}
	return policy.DestinationPort{First: uint16(first), Last: uint16(last)}
}

func (r rbacReader) header(in *routev3.HeaderMatcher, at *strict.Path) policy.Expr {
	r.requests(at)
	out := policy.Field{Name: in.GetName()}
	switch {
	case out.Name == ":authority" || out.Name == ":method":
	case out.Name == "host":
		out.Name = ":authority"
	case !message.ValidName(out.Name):
		r.add(at.Field("name"), "%q is no name of a header in lower case, nor :authority, :method", out.Name)
	}
	switch m := in.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_PresentMatch:
		out.Text.Kind = policy.Present
		if !m.PresentMatch {
			return policy.Not{Expr: out}
		}
	case *routev3.HeaderMatcher_StringMatch:
		out.Text = r.text(m.StringMatch, at.Field("string_match"))
	case nil:
		out.Text.Kind = policy.Present
	}
	return out
}

// What the filter of tokens leaves for policies: its metadata, and their member that has the claims.
const (
	filterTokens = "envoy.filters.http.jwt_authn"
	tokenPayload = "payload"
)

// claim reads a test of metadata: of a claim, that it is a text or has it.
func (r rbacReader) claim(in *matcherv3.MetadataMatcher, at *strict.Path) policy.Expr {
	r.requests(at)
	if in.GetFilter() != filterTokens {
		r.add(at.Field("filter"), "%q is not known here: there is %s", in.GetFilter(), filterTokens)
	}
	var out policy.Claim
	for i, segment := range in.GetPath() {
		if name := segment.GetKey(); i > 0 {
			out.Path = append(out.Path, name)
		} else if name != tokenPayload {
			r.add(at.Field("path").Index(0), "%q is not known here: there is %s", name, tokenPayload)
		}
	}
	if len(out.Path) == 0 {
		r.add(at.Field("path"), "names no claim")
	}
	value, at := in.GetValue().GetOrMatch().GetValueMatchers(), at.Field("value")
	if len(value) != 2 || value[0].GetStringMatch() == nil || !proto.Equal(value[0], value[1].GetListMatch().GetOneOf()) {
		r.add(at, "not supported but as or_match of a string_match and a list_match with one_of the same")
		return never()
	}
	out.Text = r.text(value[0].GetStringMatch(), at.Field("or_match").Field("value_matchers").Index(0).Field("string_match"))
	if in.GetInvert() {
		return policy.Not{Expr: out}
	}
	return out
}

func (r rbacReader) path(in *matcherv3.PathMatcher, at *strict.Path) policy.Expr {
	r.requests(at)
	return policy.Path{Text: r.text(in.GetPath(), at.Field("path"))}
}

// template reads a template in Envoy's form, where * is one segment and ** any text.
func (r rbacReader) template(in *corev3.TypedExtensionConfig, at *strict.Path) policy.Expr {
	r.requests(at)
	var m templatev3.UriTemplateMatchConfig
	at = at.Field("typed_config")
	if !r.unpack(in.GetTypedConfig(), &m, at) {
		return never()
	}
	segments := strings.Split(m.GetPathTemplate(), "/")
	for i, s := range segments {
		if s == "*" || s == "**" {
			segments[i] = "{" + s + "}"
		}
	}
	t, err := policy.NewTemplate(strings.Join(segments, "/"))
	if err != nil {
		r.add(at.Field("path_template"), "%v", err)
	}
	return policy.PathTemplate{Template: t}
}

// requests reports what asks for a request where there is none.
func (r rbacReader) requests(at *strict.Path) {
	if !r.http {
		r.add(at, "not supported in a chain that is not of HTTP: there are no requests")
	}
}

func (r rbacReader) cidr(in *corev3.CidrRange, at *strict.Path) netip.Prefix {
	addr, err := netip.ParseAddr(in.GetAddressPrefix())
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		r.add(at.Field("address_prefix"), "%q is no IP address", in.GetAddressPrefix())
		return netip.Prefix{}
	}
	p, err := addr.Prefix(int(min(in.GetPrefixLen().GetValue(), math.MaxInt16)))
	if err != nil {
		r.add(at.Field("prefix_len"), "0 to %s, not %d", strconv.Itoa(addr.BitLen()), in.GetPrefixLen().GetValue())
	}
	return p
}

func (r rbacReader) text(in *matcherv3.StringMatcher, at *strict.Path) policy.Text {
	out := policy.Text{Fold: in.GetIgnoreCase()}
	switch m := in.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.Value = m.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.Kind, out.Value = policy.Prefix, m.Prefix
	case *matcherv3.StringMatcher_Suffix:
		out.Kind, out.Value = policy.Suffix, m.Suffix
	case *matcherv3.StringMatcher_Contains:
		out.Kind, out.Value = policy.Contains, m.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := policy.NewRegexp(m.SafeRegex.GetRegex())
		if err != nil {
			r.add(at.Field("safe_regex").Field("regex"), "%v", err)
		}
		return re
	case nil:
		r.add(at, "a pattern is required")
	}
	if out.Fold {
		out.Value = strings.ToLower(out.Value)
	}
	return out
}
