package l7

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// How the filter of external authorization knows what it is asked about: the shadow of an RBAC filter before it tells which of its
// policies matches, and those that want somebody to be asked have names of this form. Istio's.
const (
	filterExtAuthz = "envoy.filters.http.ext_authz"
	askPrefix      = "istio-ext-authz"
	askStats       = "ext_authz_"
	shadowMatched  = "shadow_effective_policy_id"
)

// defaultAskTime bounds a question where the provider has no timeout. Istio's.
const defaultAskTime = 600 * time.Second

// maxAskBody bounds what of a request's body can be shown, in bytes: waypoints hold it.
const maxAskBody = 16 << 20

// afterTokens ends the statistics of those who are asked once tokens have been looked at. No other's end like that.
const afterTokens = "tokens."

// asks are the filters of HTTP by which those outside are asked, and the CUSTOM policies that cannot be carried out: what those match
// is refused. As Istio has it, they are asked before tokens are looked at: they see the token as it came, and may give the request one.
// Only policies that look at tokens themselves, which Istio does not take, come later.
func (p Policies) asks(ix Index) (first, later []*hcmv3.HttpFilter, refusing []*cluster.AuthorizationPolicy) {
	by, byToken := map[string][]*cluster.AuthorizationPolicy{}, map[string][]*cluster.AuthorizationPolicy{}
	for _, one := range p.All {
		if one.Policy.Action != authz.Custom || one.Policy.DryRun {
			continue
		}
		to := by
		if one.Policy.LooksAtTokens() {
			to = byToken
		}
		to[one.Policy.Provider] = append(to[one.Policy.Provider], one)
	}
	first, refused := p.questions(ix, by, "")
	later, refusing = p.questions(ix, byToken, afterTokens)
	return first, later, append(refused, refusing...)
}

// questions are the filters that ask providers about what their policies match.
func (p Policies) questions(ix Index, by map[string][]*cluster.AuthorizationPolicy, end string) (out []*hcmv3.HttpFilter, refusing []*cluster.AuthorizationPolicy) {
	for _, name := range slices.Sorted(maps.Keys(by)) {
		filter, _, err := Provider(p.Mesh, name, ix)
		if err != nil {
			refusing = append(refusing, by[name]...)
			continue
		}
		shadow := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
		for _, one := range by[name] {
			p.add(shadow.Policies, one, true, askPrefix+"-"+name+"-")
		}
		stats := askStats + name + "_" + end
		filter.FilterEnabledMetadata = &matcherv3.MetadataMatcher{
			Filter: filterHTTPRBAC, Path: []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: stats + shadowMatched}}},
			Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: askPrefix}}}},
		}
		out = append(out, httpFilter(filterHTTPRBAC, &httprbacv3.RBAC{ShadowRules: shadow, ShadowRulesStatPrefix: stats}), httpFilter(filterExtAuthz, filter))
	}
	return out, refusing
}

// Provider is the filter by which an external authorizer of the mesh settings is asked, and the service that it is. The error says why
// it cannot be.
func Provider(m translate.Mesh, name string, ix Index) (*authv3.ExtAuthz, *Host, error) {
	i := slices.IndexFunc(m.Providers, func(p *meshv1alpha1.MeshConfig_ExtensionProvider) bool { return p.GetName() == name })
	if i < 0 {
		return nil, nil, fmt.Errorf("provider %q: the mesh settings have no extensionProviders entry of that name", name)
	}
	var h *Host
	var err error
	out := &authv3.ExtAuthz{StatPrefix: name, TransportApiVersion: corev3.ApiVersion_V3}
	switch p := m.Providers[i].GetProvider().(type) {
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc:
		h, err = askGRPC(m, p.EnvoyExtAuthzGrpc, ix, out)
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzHttp:
		h, err = askHTTP(m, p.EnvoyExtAuthzHttp, ix, out)
	default:
		err = errors.New("is neither envoyExtAuthzGrpc nor envoyExtAuthzHttp")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("provider %q of the mesh settings: %w", name, err)
	}
	return out, h, nil
}

func askGRPC(m translate.Mesh, p *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider, ix Index, out *authv3.ExtAuthz) (*Host, error) {
	h, port, err := provided(m, p.GetService(), p.GetPort(), ix)
	if err != nil {
		return nil, err
	}
	timeout, err := askTime(p.GetTimeout())
	if err != nil {
		return nil, err
	}
	out.Services = &authv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
		Timeout: timeout,
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: ClusterName(h, port), Authority: fmt.Sprintf("%s:%d", h.Hostname, port)}},
	}}
	out.FailureModeAllow, out.ClearRouteCache = p.GetFailOpen(), p.GetClearRouteCache()
	out.MetadataContextNamespaces = []string{FilterTokens}
	return h, askCommon(out, p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck())
}

func askHTTP(m translate.Mesh, p *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider, ix Index, out *authv3.ExtAuthz) (*Host, error) {
	h, port, err := provided(m, p.GetService(), p.GetPort(), ix)
	if err != nil {
		return nil, err
	}
	timeout, err := askTime(p.GetTimeout())
	if err != nil {
		return nil, err
	}
	if prefix := p.GetPathPrefix(); prefix != "" && (!strings.HasPrefix(prefix, "/") || strings.ContainsAny(prefix, "?# ")) {
		return nil, fmt.Errorf("pathPrefix: %q is no path", prefix)
	}
	service := &authv3.HttpService{
		PathPrefix: p.GetPathPrefix(),
		ServerUri: &corev3.HttpUri{
			Uri: fmt.Sprintf("http://%s:%d", h.Hostname, port), Timeout: timeout, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: ClusterName(h, port)}},
	}
	//lint:ignore SA1019 settings may still say it in this older form
	asked := append(slices.Clone(p.GetIncludeRequestHeadersInCheck()), p.GetIncludeHeadersInCheck()...)
	response := &authv3.AuthorizationResponse{}
	for _, one := range []struct {
		field  string
		values []string
		to     **matcherv3.ListStringMatcher
	}{
		{"includeRequestHeadersInCheck", asked, &out.AllowedHeaders},
		{"headersToUpstreamOnAllow", p.GetHeadersToUpstreamOnAllow(), &response.AllowedUpstreamHeaders},
		{"headersToDownstreamOnDeny", p.GetHeadersToDownstreamOnDeny(), &response.AllowedClientHeaders},
		{"headersToDownstreamOnAllow", p.GetHeadersToDownstreamOnAllow(), &response.AllowedClientHeadersOnSuccess},
	} {
		if *one.to, err = patterns(one.values); err != nil {
			return nil, fmt.Errorf("%s: %w", one.field, err)
		}
	}
	if response.AllowedUpstreamHeaders != nil || response.AllowedClientHeaders != nil || response.AllowedClientHeadersOnSuccess != nil {
		service.AuthorizationResponse = response
	}
	more := p.GetIncludeAdditionalHeadersInCheck()
	for _, name := range slices.Sorted(maps.Keys(more)) {
		if !fieldName(name) {
			return nil, fmt.Errorf("includeAdditionalHeadersInCheck: %q is no name of a header that can be sent", name)
		}
		if service.AuthorizationRequest == nil {
			service.AuthorizationRequest = &authv3.AuthorizationRequest{}
		}
		service.AuthorizationRequest.HeadersToAdd = append(service.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: strings.ToLower(name), Value: more[name]})
	}
	out.Services = &authv3.ExtAuthz_HttpService{HttpService: service}
	out.FailureModeAllow, out.ClearRouteCache = p.GetFailOpen(), p.GetClearRouteCache()
	return h, askCommon(out, p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck())
}

// askCommon fills in what both kinds have.
func askCommon(out *authv3.ExtAuthz, status string, body *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) error {
	if status != "" {
		code, err := strconv.Atoi(status)
		if err != nil || code < 400 || code > 599 || typev3.StatusCode_name[int32(code)] == "" {
			return fmt.Errorf("statusOnError: %q is no status of HTTP for errors", status)
		}
		out.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(code)}
	}
	if body != nil {
		if n := body.GetMaxRequestBytes(); n < 1 || n > maxAskBody {
			return fmt.Errorf("includeRequestBodyInCheck.maxRequestBytes: 1 to %d, not %d", maxAskBody, n)
		}
		out.WithRequestBody = &authv3.BufferSettings{
			MaxRequestBytes: body.GetMaxRequestBytes(), AllowPartialMessage: body.GetAllowPartialMessage(), PackAsBytes: body.GetPackAsBytes()}
	}
	return nil
}

func askTime(d *durationpb.Duration) (*durationpb.Duration, error) {
	if d == nil {
		return durationpb.New(defaultAskTime), nil
	}
	if d.CheckValid() != nil || d.AsDuration() <= 0 {
		return nil, errors.New("timeout: must be more than 0")
	}
	return d, nil
}

// provided finds the service of a provider.
func provided(m translate.Mesh, service string, number uint32, ix Index) (*Host, uint16, error) {
	namespace, hostname, err := ProviderService(m, service)
	if err != nil {
		return nil, 0, err
	}
	h := ix.Named(namespace, hostname)
	switch {
	case h == nil:
		return nil, 0, fmt.Errorf("service: there is no service %q, which has to be a full name, as name.namespace.svc.%s", service, m.ClusterDomain)
	case h.Unfit != "":
		return nil, 0, fmt.Errorf("service: %s %s", h.Ref, h.Unfit)
	}
	if number > math.MaxUint16 {
		return nil, 0, fmt.Errorf("port: %d is none", number)
	}
	if _, there := h.Port(uint16(number)); !there {
		return nil, 0, fmt.Errorf("port: %s has no port %d", h.Ref, number)
	}
	return h, uint16(number), nil
}

// ProviderOf is the name of the service of an external authorizer, or of who takes spans; "" of what is neither.
func ProviderOf(p *meshv1alpha1.MeshConfig_ExtensionProvider) string {
	return cmp.Or(p.GetEnvoyExtAuthzGrpc().GetService(), p.GetEnvoyExtAuthzHttp().GetService(), p.GetOpentelemetry().GetService())
}

// ProviderService takes the name of a provider's service apart: "host", or "namespace/host".
func ProviderService(m translate.Mesh, service string) (namespace, hostname string, err error) {
	namespace, hostname, found := strings.Cut(service, "/")
	if !found {
		namespace, hostname = "", service
	}
	hostname = strings.ToLower(strings.TrimSuffix(hostname, "."))
	if hostname == "" || found && namespace == "" || strings.ContainsAny(hostname, "/*") {
		return "", "", fmt.Errorf("service: %q is neither host nor namespace/host", service)
	}
	if key, is := KubernetesService(m, hostname); is {
		if namespace != "" && namespace != key.Namespace {
			return "", "", fmt.Errorf("service: %q names two namespaces", service)
		}
		namespace = key.Namespace
	}
	return namespace, hostname, nil
}

// KubernetesService tells which Service has a host name, if it is the name of one.
func KubernetesService(m translate.Mesh, hostname string) (cluster.Key, bool) {
	rest, is := strings.CutSuffix(hostname, ".svc."+m.ClusterDomain)
	name, namespace, two := strings.Cut(rest, ".")
	if !is || !two || strings.Contains(namespace, ".") {
		return cluster.Key{}, false
	}
	return cluster.Key{Namespace: namespace, Name: name}, true
}

// patterns reads names of fields: whole, or with * before or after. Nil of none.
func patterns(values []string) (*matcherv3.ListStringMatcher, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, v := range values {
		m := &matcherv3.StringMatcher{}
		name := strings.ToLower(v)
		switch {
		case !fieldName(strings.Trim(name, "*")) || strings.Count(name, "*") > 1:
			return nil, fmt.Errorf("%q is no name of a header, nor the beginning or the end of one with *", v)
		case strings.HasPrefix(name, "*"):
			m.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: name[1:]}
		case strings.HasSuffix(name, "*"):
			m.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: name[:len(name)-1]}
		default:
			m.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: name}
		}
		out.Patterns = append(out.Patterns, m)
	}
	return out, nil
}

// fieldName tells whether a header can have a field of that name that is not the connection's own.
func fieldName(name string) bool {
	switch name = strings.ToLower(name); cmp.Or(name, "host") {
	case "host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "keep-alive":
		return false
	}
	return !strings.ContainsFunc(name, func(c rune) bool {
		return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("!#$%&'+-.^_`|~", c))
	})
}
