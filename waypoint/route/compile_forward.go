package route

import (
	"net/http"
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

func (c *compiler) forward(a *routev3.RouteAction, path *pathMatch, route, host level, at *strict.Path) *Forward {
	out := &Forward{
		Timeout:           c.duration(a.GetTimeout(), at.Field("timeout"), defaultRouteTime),
		IdleTimeout:       c.duration(a.GetIdleTimeout(), at.Field("idle_timeout"), NotSet),
		MaxStreamDuration: NotSet,
		GRPCTimeoutMax:    NotSet,
	}
	if m := a.GetMaxStreamDuration(); m != nil {
		at := at.Field("max_stream_duration")
		out.MaxStreamDuration = c.duration(m.GetMaxStreamDuration(), at.Field("max_stream_duration"), NotSet)
		out.GRPCTimeoutMax = c.duration(m.GetGrpcTimeoutHeaderMax(), at.Field("grpc_timeout_header_max"), NotSet)
	}
	codes := map[routev3.RouteAction_ClusterNotFoundResponseCode]int{
		routev3.RouteAction_SERVICE_UNAVAILABLE: http.StatusServiceUnavailable, routev3.RouteAction_NOT_FOUND: http.StatusNotFound,
		routev3.RouteAction_INTERNAL_SERVER_ERROR: http.StatusInternalServerError,
	}
	if out.NotFoundStatus = codes[a.GetClusterNotFoundResponseCode()]; out.NotFoundStatus == 0 {
		c.report.Add(at.Field("cluster_not_found_response_code"), "%v is not known", a.GetClusterNotFoundResponseCode())
	}
	base := Target{
		host: c.host(a.GetHostRewriteLiteral(), at.Field("host_rewrite_literal")), forwardedHost: a.GetAppendXForwardedHost(),
		hostHeader: strings.ToLower(a.GetHostRewriteHeader()),
	}
	if a.GetPrefixRewrite() != "" && a.GetRegexRewrite() != nil {
		c.report.Add(at.Field("regex_rewrite"), "not together with prefix_rewrite")
	}
	if a.GetRegexRewrite() != nil {
		base.rewrite = c.regexRewrite(a.GetRegexRewrite(), at.Field("regex_rewrite"))
	} else {
		base.rewrite = c.prefixRewrite(a.GetPrefixRewrite(), path, at.Field("prefix_rewrite"))
	}
	c.targets(out, a, base, []level{route, host}, at)
	if p := a.GetRetryPolicy(); p != nil {
		out.Retry = c.retry(p, at.Field("retry_policy"))
	}
	for i, p := range a.GetHashPolicy() {
		out.Keys = append(out.Keys, c.keyPart(p, at.Field("hash_policy").Index(i)))
	}
	for i, m := range a.GetRequestMirrorPolicies() {
		out.Mirrors = append(out.Mirrors, c.mirror(m, at.Field("request_mirror_policies").Index(i)))
	}
	for i, u := range a.GetUpgradeConfigs() {
		name := strings.ToLower(u.GetUpgradeType())
		if name == "" || name == "connect" {
			c.report.Add(at.Field("upgrade_configs").Index(i).Field("upgrade_type"), "a protocol such as websocket, not %q", u.GetUpgradeType())
		}
		if out.Upgrades == nil {
			out.Upgrades = map[string]bool{}
		}
		out.Upgrades[name] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return out
}

// targets reads the clusters of a route.
func (c *compiler) targets(out *Forward, a *routev3.RouteAction, base Target, levels []level, at *strict.Path) {
	if a.GetWeightedClusters() == nil {
		t, all := base, c.order(levels...)
		t.Cluster, t.Weight, t.request, t.response = a.GetCluster(), 1, all.request, all.response
		if t.Cluster == "" {
			c.report.Add(at, "cluster or weighted_clusters is required")
		}
		out.Targets, out.split = []*Target{&t}, NewSplit([]uint32{1})
		return
	}
	at = at.Field("weighted_clusters").Field("clusters")
	var weights []uint32
	for i, w := range a.GetWeightedClusters().GetClusters() {
		at := at.Index(i)
		t, all := base, c.order(slices.Concat([]level{c.level(w, at)}, levels)...)
		t.Cluster, t.Weight, t.request, t.response = w.GetName(), w.GetWeight().GetValue(), all.request, all.response
		if w.GetHostRewriteLiteral() != "" {
			t.host = c.host(w.GetHostRewriteLiteral(), at.Field("host_rewrite_literal"))
		}
		if t.Cluster == "" {
			c.report.Add(at.Field("name"), "required")
		}
		if t.Weight == 0 {
			continue // never chosen
		}
		out.Targets = append(out.Targets, &t)
		weights = append(weights, t.Weight)
	}
	if out.split = NewSplit(weights); out.split == nil {
		c.report.Add(at, "the sum of the weights must not be 0")
	}
}

func (c *compiler) host(literal string, at *strict.Path) string {
	if literal != "" && !message.ValidAuthority(literal) {
		c.report.Add(at, "%q is no authority", literal)
	}
	return literal
}

func (c *compiler) mirror(m *routev3.RouteAction_RequestMirrorPolicy, at *strict.Path) *Mirror {
	out := &Mirror{Cluster: m.GetCluster(), Numerator: 1, Denominator: 1, HostSuffix: "-shadow"}
	if out.Cluster == "" {
		c.report.Add(at.Field("cluster"), "required")
	}
	if m.GetDisableShadowHostSuffixAppend() {
		out.HostSuffix = ""
	}
	if f := m.GetRuntimeFraction(); f != nil {
		out.Numerator, out.Denominator = f.GetDefaultValue().GetNumerator(), denominator(f.GetDefaultValue())
	}
	return out
}

func (c *compiler) retry(p *routev3.RetryPolicy, at *strict.Path) *Retry {
	out := &Retry{
		Number:        defaultRetries,
		PerTryTimeout: c.duration(p.GetPerTryTimeout(), at.Field("per_try_timeout"), 0),
		BackOffBase:   defaultBackOff,
	}
	for word := range strings.SplitSeq(p.GetRetryOn(), ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		on, ok := retryNames[word]
		if !ok {
			c.report.Add(at.Field("retry_on"), "condition %q is not supported: leave it out", word)
		}
		out.On |= on
	}
	for i, code := range p.GetRetriableStatusCodes() {
		if code < 100 || code > 599 {
			c.report.Add(at.Field("retriable_status_codes").Index(i), "100 to 599, not %d", code)
		}
		out.Codes = append(out.Codes, int(code))
	}
	slices.Sort(out.Codes)
	if n := p.GetNumRetries(); n != nil {
		out.Number = int(n.GetValue())
	}
	if b := p.GetRetryBackOff(); b != nil {
		at := at.Field("retry_back_off")
		if out.BackOffBase = c.duration(b.GetBaseInterval(), at.Field("base_interval"), 0); out.BackOffBase < time.Millisecond {
			c.report.Add(at.Field("base_interval"), "at least 1ms")
		}
		out.BackOffLeast = out.BackOffBase
		out.BackOffMax = c.duration(b.GetMaxInterval(), at.Field("max_interval"), 0)
		if b.GetMaxInterval() != nil && out.BackOffMax < out.BackOffBase {
			c.report.Add(at.Field("max_interval"), "at least base_interval")
		}
	}
	if out.BackOffMax == 0 {
		out.BackOffMax = defaultBackOffMax * out.BackOffBase
	}
	for i, h := range p.GetRetryHostPredicate() {
		at := at.Field("retry_host_predicate").Index(i).Field("typed_config")
		supported.Unpack(h.GetTypedConfig(), &previousv3.PreviousHostsPredicate{}, at, c.report)
	}
	return out
}

func (c *compiler) prefixRewrite(with string, path *pathMatch, at *strict.Path) rewrite {
	if with == "" {
		return rewrite{}
	}
	if !message.ValidPath(rooted(with)) || strings.Contains(with, "?") {
		c.report.Add(at, "%q is no path without a query", with)
	}
	return rewrite{do: rewritePrefix, matched: path.length, with: with}
}

func (c *compiler) regexRewrite(m *matcherv3.RegexMatchAndSubstitute, at *strict.Path) rewrite {
	written := m.GetPattern().GetRegex()
	out := rewrite{do: rewriteRegex, regex: c.expression(written, written, at.Field("pattern").Field("regex"))}
	if out.regex == nil {
		return rewrite{}
	}
	at = at.Field("substitution")
	// \1 is how Envoy, and ${1} how Go refers to a group.
	var b strings.Builder
	s := m.GetSubstitution()
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] != '\\':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == '\\':
			i++
			b.WriteByte('\\')
		case i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			i++
			if int(s[i]-'0') > out.regex.NumSubexp() {
				c.report.Add(at, `\%c: the pattern has only %d groups`, s[i], out.regex.NumSubexp())
			}
			b.WriteString("${" + s[i:i+1] + "}")
		default:
			c.report.Add(at, `a back-slash must be followed by a digit or another`)
			return out
		}
	}
	if !message.ValidPath("/"+s) || strings.Contains(s, "?") {
		c.report.Add(at, "%q cannot be part of a path without a query", s)
	}
	out.with = b.String()
	return out
}
