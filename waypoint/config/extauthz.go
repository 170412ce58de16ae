package config

import (
	"math"
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpauthv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/extauthz"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// What a filter of RBAC leaves for the filter of external authorization after it: which policy of its shadow matches. The policies that
// want somebody to be asked have names of this form.
const (
	filterRBAC    = "envoy.filters.http.rbac"
	shadowMatched = "shadow_effective_policy_id"
	askPrefix     = "istio-ext-authz"
)

// Defaults of external authorization, Envoy's, and bounds of ours.
const (
	defaultAskTimeout = 200 * time.Millisecond
	defaultAskStatus  = 403
	maxAskBody        = 16 << 20
)

// asking gathers, from filters in their order, who is to be asked about what.
type asking struct {
	// shadows are the policies of shadows that nothing has used yet, by the metadata that tells of them.
	shadows map[string]*shadow
	asks    []Ask
}

// shadow is one of RBAC that selects requests.
type shadow struct {
	policies []*policy.RequestPolicy
	at       *strict.Path
	used     bool
}

// selects takes a filter of RBAC whose shadow selects what is asked about; false if it is none.
func (d decoder) selects(a *asking, m *httprbacv3.RBAC, at *strict.Path) bool {
	prefix := m.GetShadowRulesStatPrefix()
	if m.GetRules() != nil || !strings.HasPrefix(prefix, shadowOfAsk) {
		return false
	}
	r := rbacReader{d, true}
	field := at.Field("shadow_rules")
	if kind := stepKinds[m.GetShadowRules().GetAction()]; kind != policy.StepDeny {
		d.add(field.Field("action"), "must be DENY: what is selected is in doubt")
	}
	if a.shadows == nil {
		a.shadows = map[string]*shadow{}
	}
	key := prefix + shadowMatched
	if a.shadows[key] != nil {
		d.add(at.Field("shadow_rules_stat_prefix"), "there is a filter with %q already", prefix)
	}
	a.shadows[key] = &shadow{policies: r.policies(m.GetShadowRules(), policy.StepDeny, true, field.Field("policies")), at: at}
	return true
}

// shadowOfAsk is how the statistics of a shadow begin that selects what is asked about.
const shadowOfAsk = "ext_authz_"

// ask reads a filter of external authorization.
func (d decoder) ask(a *asking, m *httpauthv3.ExtAuthz, at *strict.Path) {
	p := &extauthz.Config{
		Name: m.GetStatPrefix(), FailOpen: m.GetFailureModeAllow(), StatusOnError: defaultAskStatus, Reroute: m.GetClearRouteCache(),
		Headers: d.names(m.GetAllowedHeaders(), at.Field("allowed_headers")),
	}
	if s := m.GetStatusOnError(); s != nil {
		if p.StatusOnError = int(s.GetCode()); p.StatusOnError < 400 || p.StatusOnError > 599 {
			d.add(at.Field("status_on_error").Field("code"), "400 to 599, not %d", p.StatusOnError)
		}
	}
	if b := m.GetWithRequestBody(); b != nil {
		p.Body = &extauthz.Body{Max: int(min(b.GetMaxRequestBytes(), math.MaxInt32)), Partial: b.GetAllowPartialMessage(), Raw: b.GetPackAsBytes()}
		if p.Body.Max < 1 || p.Body.Max > maxAskBody {
			d.add(at.Field("with_request_body").Field("max_request_bytes"), "1 to %d, not %d", maxAskBody, b.GetMaxRequestBytes())
		}
	}
	for i, name := range m.GetMetadataContextNamespaces() {
		if name != filterTokens {
			d.add(at.Field("metadata_context_namespaces").Index(i), "%q is not known here: there is %s", name, filterTokens)
		}
		p.Claims = true
	}
	switch {
	case m.GetGrpcService() != nil:
		d.askGRPC(p, m.GetGrpcService(), at.Field("grpc_service"))
	case m.GetHttpService() != nil:
		d.askHTTP(p, m.GetHttpService(), at.Field("http_service"))
	default:
		d.add(at, "grpc_service or http_service is required")
	}
	if v := m.GetTransportApiVersion(); v != corev3.ApiVersion_V3 {
		d.add(at.Field("transport_api_version"), "%v is not supported: V3", v)
	}
	a.asks = append(a.asks, Ask{Provider: p, Policies: d.selected(a, m.GetFilterEnabledMetadata(), at.Field("filter_enabled_metadata"))})
}

// selected are the policies by which a filter is enabled.
func (d decoder) selected(a *asking, m *matcherv3.MetadataMatcher, at *strict.Path) []*policy.RequestPolicy {
	path := m.GetPath()
	if m.GetFilter() != filterRBAC || len(path) != 1 || m.GetInvert() || m.GetValue().GetStringMatch().GetPrefix() != askPrefix {
		d.add(at, "not supported but as a test that the shadow of an RBAC filter before has matched a policy called %s*", askPrefix)
		return nil
	}
	s := a.shadows[path[0].GetKey()]
	if s == nil {
		d.add(at.Field("path").Index(0), "%q: no RBAC filter before has a shadow of that statistics", path[0].GetKey())
		return nil
	}
	s.used = true
	return s.policies
}

// end reports what selects requests for nothing: whoever wrote it meant them to be judged.
func (d decoder) end(a *asking) {
	for _, s := range a.shadows {
		if !s.used {
			d.add(s.at.Field("shadow_rules_stat_prefix"), "no ext_authz filter asks about what these rules select")
		}
	}
}

func (d decoder) askGRPC(p *extauthz.Config, s *corev3.GrpcService, at *strict.Path) {
	p.Timeout = d.duration(s.GetTimeout(), at.Field("timeout"), defaultAskTimeout)
	e := s.GetEnvoyGrpc()
	at = at.Field("envoy_grpc")
	if p.Cluster, p.Authority = e.GetClusterName(), e.GetAuthority(); p.Cluster == "" {
		d.add(at.Field("cluster_name"), "required")
	}
	if p.Authority == "" {
		p.Authority = p.Cluster
	}
	if !message.ValidAuthority(p.Authority) {
		d.add(at.Field("authority"), "%q is no host", p.Authority)
	}
}

func (d decoder) askHTTP(p *extauthz.Config, s *httpauthv3.HttpService, at *strict.Path) {
	server := s.GetServerUri()
	p.Timeout = d.duration(server.GetTimeout(), at.Field("server_uri").Field("timeout"), defaultAskTimeout)
	if p.Cluster = server.GetCluster(); p.Cluster == "" {
		d.add(at.Field("server_uri").Field("cluster"), "required")
	}
	if u, err := url.Parse(server.GetUri()); err != nil || u.Scheme != "http" {
		d.add(at.Field("server_uri").Field("uri"), "%q is no URL of http", server.GetUri())
	}
	response := s.GetAuthorizationResponse()
	field := at.Field("authorization_response")
	p.HTTP = &extauthz.HTTP{
		PathPrefix: s.GetPathPrefix(),
		ToBackend:  d.names(response.GetAllowedUpstreamHeaders(), field.Field("allowed_upstream_headers")),
		ToDenied:   d.names(response.GetAllowedClientHeaders(), field.Field("allowed_client_headers")),
		ToClient:   d.names(response.GetAllowedClientHeadersOnSuccess(), field.Field("allowed_client_headers_on_success")),
	}
	if prefix := p.HTTP.PathPrefix; prefix != "" && (!message.ValidPath(prefix) || strings.Contains(prefix, "?")) {
		d.add(at.Field("path_prefix"), "%q is no path", prefix)
	}
	for i, h := range s.GetAuthorizationRequest().GetHeadersToAdd() {
		if !message.ValidName(h.GetKey()) || !message.ValidValue(h.GetValue()) || message.Hop(h.GetKey()) || h.GetKey() == "host" {
			d.add(at.Field("authorization_request").Field("headers_to_add").Index(i), "%q is no field in lower case that can be sent", h.GetKey())
		}
		p.HTTP.Add.Add(h.GetKey(), h.GetValue())
	}
}

// names reads tests of names; nil if there is no list.
func (d decoder) names(in *matcherv3.ListStringMatcher, at *strict.Path) extauthz.Names {
	if in == nil {
		return nil
	}
	out := extauthz.Names{}
	for i, p := range in.GetPatterns() {
		out = append(out, rbacReader{d, true}.text(p, at.Field("patterns").Index(i)))
	}
	return out
}
