package route

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// corsFilter names the policy of a route in typed_per_filter_config.
const corsFilter = "envoy.filters.http.cors"

// compiler compiles one RouteConfiguration. What it cannot honour it reports, and goes on, so that a report is whole.
type compiler struct {
	report *strict.Report
	config *routev3.RouteConfiguration
	own    level // header changes of the configuration
}

// level is the header changes of one level: weighted cluster, route, virtual host or configuration.
type level struct{ request, response edits }

func (c *compiler) table() *Table {
	rc := c.config
	t := &Table{Name: rc.GetName(), ignorePort: rc.GetIgnorePortInHostMatching()}
	if rc.GetName() == "" {
		c.report.Add((*strict.Path)(nil).Field("name"), "required")
	}
	if rc.GetValidateClusters().GetValue() {
		c.report.Add((*strict.Path)(nil).Field("validate_clusters"), "only false: clusters may come later")
	}
	c.own = c.level(rc, nil)
	names := map[string]bool{}
	for i, vh := range rc.GetVirtualHosts() {
		at := (*strict.Path)(nil).Field("virtual_hosts").Index(i)
		if vh.GetName() == "" || names[vh.GetName()] {
			c.report.Add(at.Field("name"), "required, and each only once")
		}
		names[vh.GetName()] = true
		host := c.virtualHost(vh, at)
		t.hosts = append(t.hosts, host)
		if len(vh.GetDomains()) == 0 {
			c.report.Add(at.Field("domains"), `required: ["*"] for all`)
		}
		for k, d := range vh.GetDomains() {
			c.domain(t, host, strings.ToLower(d), at.Field("domains").Index(k))
		}
	}
	slices.SortStableFunc(t.wildcards, func(a, b wildcard) int {
		if a.suffix != b.suffix {
			if a.suffix {
				return -1
			}
			return 1
		}
		return cmp.Compare(len(b.part), len(a.part))
	})
	return t
}

// domain enters a virtual host under one of its domains.
func (c *compiler) domain(t *Table, host *virtualHost, domain string, at *strict.Path) {
	taken := func() { c.report.Add(at, "is the domain of another virtual host already: %q", domain) }
	stars := strings.Count(domain, "*")
	switch {
	case domain == "*":
		if t.any != nil {
			taken()
		}
		t.any = host
	case domain == "" || stars > 1 || stars == 1 && domain[0] != '*' && domain[len(domain)-1] != '*':
		c.report.Add(at, `a host, "*", or a host that begins or ends with "*", not %q`, domain)
	case stars == 1:
		w := wildcard{part: strings.Trim(domain, "*"), suffix: domain[0] == '*', host: host}
		if slices.ContainsFunc(t.wildcards, func(o wildcard) bool { return o.part == w.part && o.suffix == w.suffix }) {
			taken()
		}
		t.wildcards = append(t.wildcards, w)
	default:
		if t.exact == nil {
			t.exact = map[string]*virtualHost{}
		}
		if t.exact[domain] != nil {
			taken()
		}
		t.exact[domain] = host
	}
}

func (c *compiler) virtualHost(vh *routev3.VirtualHost, at *strict.Path) *virtualHost {
	host := &virtualHost{name: vh.GetName()}
	changes := c.level(vh, at)
	c.filters(vh.GetTypedPerFilterConfig(), at, corsFilter, limitFilter)
	cors := c.cors(vh.GetTypedPerFilterConfig(), at)
	host.limit = c.limit(vh.GetTypedPerFilterConfig(), at)
	for i, r := range vh.GetRoutes() {
		host.routes = append(host.routes, c.route(r, changes, cors, at.Field("routes").Index(i)))
		host.routes[i].Limit = host.limit
	}
	host.index = newIndex(host.routes)
	return host
}

func (c *compiler) route(r *routev3.Route, host level, cors *CORS, at *strict.Path) *Route {
	out := &Route{Name: r.GetName(), CORS: cors}
	c.filters(r.GetTypedPerFilterConfig(), at, corsFilter, faultFilter, sessionFilter)
	if own := c.cors(r.GetTypedPerFilterConfig(), at); own != nil {
		out.CORS = own
	}
	out.Fault = c.fault(r.GetTypedPerFilterConfig(), at)
	out.match = c.conditions(r.GetMatch(), at.Field("match"))
	own := c.level(r, at)
	out.response = c.order(own, host).response
	switch {
	case r.GetRoute() != nil:
		out.Forward = c.forward(r.GetRoute(), &out.match.path, own, host, at.Field("route"))
		out.Forward.Session = c.session(r.GetTypedPerFilterConfig(), at)
	case r.GetRedirect() != nil:
		out.Redirect = c.redirect(r.GetRedirect(), &out.match.path, at.Field("redirect"))
	case r.GetDirectResponse() != nil:
		out.Direct = c.direct(r.GetDirectResponse(), at.Field("direct_response"))
	case r.GetAction() == nil:
		c.report.Add(at, "an action is required: route, redirect or direct_response")
	}
	return out
}

// headed is a message with header changes.
type headed interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func (c *compiler) level(m headed, at *strict.Path) level {
	return level{
		request:  c.edits(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove(), at, "request"),
		response: c.edits(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove(), at, "response"),
	}
}

// order joins the changes of levels, the most specific first, and those of the configuration.
func (c *compiler) order(levels ...level) level {
	levels = append(slices.Clone(levels), c.own)
	if c.config.GetMostSpecificHeaderMutationsWins() {
		slices.Reverse(levels)
	}
	var all level
	for _, l := range levels {
		all.request = append(all.request, l.request...)
		all.response = append(all.response, l.response...)
	}
	return all
}

// edits are the changes of one level: what is removed, then what is set, then what is added, as in Envoy.
func (c *compiler) edits(add []*corev3.HeaderValueOption, del []string, at *strict.Path, of string) edits {
	var removes, sets, adds edits
	for i, name := range del {
		if name = c.headerName(name, at.Field(of+"_headers_to_remove").Index(i)); name != "" {
			removes = append(removes, edit{do: remove, name: name})
		}
	}
	for i, o := range add {
		at := at.Field(of + "_headers_to_add").Index(i)
		name := c.headerName(o.GetHeader().GetKey(), at.Field("header").Field("key"))
		value := c.headerValue(o.GetHeader(), at.Field("header"))
		if name == "" || value == "" && !o.GetKeepEmptyValue() {
			continue // Envoy leaves empty fields out as well
		}
		e := edit{name: name, value: value}
		switch action := o.GetAppendAction(); {
		//lint:ignore SA1019 control planes may still say it in this older form
		case o.GetAppend() != nil && !o.GetAppend().GetValue(), action == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			e.do = overwrite
		case action == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			e.do = overwriteIfPresent
		case action == corev3.HeaderValueOption_ADD_IF_ABSENT:
			e.do = addIfAbsent
		case action == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			e.do = appendField
		default:
			c.report.Add(at.Field("append_action"), "%v is not known", action)
		}
		if e.do == overwrite || e.do == overwriteIfPresent {
			sets = append(sets, e)
		} else {
			adds = append(adds, e)
		}
	}
	return slices.Concat(removes, sets, adds)
}

func (c *compiler) headerName(name string, at *strict.Path) string {
	name = strings.ToLower(name)
	switch {
	case name == "host" || strings.HasPrefix(name, ":"):
		c.report.Add(at, "%q cannot be changed as a header field: use host_rewrite_literal or prefix_rewrite", name)
	case !message.ValidName(name):
		c.report.Add(at, "%q is no name of a header field", name)
	default:
		return name
	}
	return ""
}

// headerValue reads a value, in which "%%" stands for "%".
func (c *compiler) headerValue(v *corev3.HeaderValue, at *strict.Path) string {
	value, field := v.GetValue(), "value"
	if len(v.GetRawValue()) > 0 {
		value, field = string(v.GetRawValue()), "raw_value"
	}
	if !message.ValidValue(value) {
		c.report.Add(at.Field(field), "has control characters")
	}
	if strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
		c.report.Add(at.Field(field), "substitutions (%%NAME%%) are not supported: write %%%% for a percent sign")
	}
	return strings.ReplaceAll(value, "%%", "%")
}

func (c *compiler) direct(d *routev3.DirectResponseAction, at *strict.Path) *Direct {
	out := &Direct{Status: int(d.GetStatus()), Body: d.GetBody().GetInlineString()}
	if b := d.GetBody().GetInlineBytes(); len(b) > 0 {
		out.Body = string(b)
	}
	if d.GetStatus() < 200 || d.GetStatus() > 599 {
		c.report.Add(at.Field("status"), "200 to 599, not %d", d.GetStatus())
	}
	if len(out.Body) > maxDirectBodyBytes {
		c.report.Add(at.Field("body"), "%d bytes: at most %d", len(out.Body), maxDirectBodyBytes)
	}
	return out
}

func (c *compiler) redirect(d *routev3.RedirectAction, path *pathMatch, at *strict.Path) *Redirect {
	out := &Redirect{Host: d.GetHostRedirect(), Scheme: strings.ToLower(d.GetSchemeRedirect()), StripQuery: d.GetStripQuery()}
	if d.GetHttpsRedirect() {
		out.Scheme = "https"
	}
	if out.Scheme != "" && out.Scheme != "http" && out.Scheme != "https" {
		c.report.Add(at.Field("scheme_redirect"), "http or https, not %q", out.Scheme)
	}
	if out.Host != "" && !message.ValidAuthority(out.Host) {
		c.report.Add(at.Field("host_redirect"), "%q is no host", out.Host)
	}
	if d.GetPortRedirect() > math.MaxUint16 {
		c.report.Add(at.Field("port_redirect"), "1 to 65535, not %d", d.GetPortRedirect())
	}
	out.Port = uint16(d.GetPortRedirect())
	codes := map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY: http.StatusMovedPermanently, routev3.RedirectAction_FOUND: http.StatusFound,
		routev3.RedirectAction_SEE_OTHER: http.StatusSeeOther, routev3.RedirectAction_TEMPORARY_REDIRECT: http.StatusTemporaryRedirect,
		routev3.RedirectAction_PERMANENT_REDIRECT: http.StatusPermanentRedirect,
	}
	if out.Status = codes[d.GetResponseCode()]; out.Status == 0 {
		c.report.Add(at.Field("response_code"), "%v is not known", d.GetResponseCode())
	}
	switch {
	case d.GetPathRedirect() != "":
		if !message.ValidPath(d.GetPathRedirect()) {
			c.report.Add(at.Field("path_redirect"), "%q is no path", d.GetPathRedirect())
		}
		out.rewrite = rewrite{do: rewriteAll, with: d.GetPathRedirect()}
	case d.GetRegexRewrite() != nil:
		out.rewrite = c.regexRewrite(d.GetRegexRewrite(), at.Field("regex_rewrite"))
	default:
		out.rewrite = c.prefixRewrite(d.GetPrefixRewrite(), path, at.Field("prefix_rewrite"))
	}
	return out
}

// filters reports settings of filters that are none of those that are known.
func (c *compiler) filters(configs map[string]*anypb.Any, at *strict.Path, known ...string) {
	for name := range configs {
		if !slices.Contains(known, name) {
			c.report.Add(at.Field("typed_per_filter_config").Key(name), "not supported: leave it out")
		}
	}
}

// cors reads the policy of a route or virtual host; nil if it has none.
func (c *compiler) cors(configs map[string]*anypb.Any, at *strict.Path) *CORS {
	if configs[corsFilter] == nil {
		return nil
	}
	at = at.Field("typed_per_filter_config").Key(corsFilter)
	var p corsv3.CorsPolicy
	if !supported.Unpack(configs[corsFilter], &p, at, c.report) {
		return nil
	}
	out := &CORS{
		Methods: p.GetAllowMethods(), Headers: p.GetAllowHeaders(), Expose: p.GetExposeHeaders(), MaxAge: p.GetMaxAge(),
		Credentials:  p.GetAllowCredentials().GetValue(),
		RefuseOthers: p.GetForwardNotMatchingPreflights() != nil && !p.GetForwardNotMatchingPreflights().GetValue(),
	}
	for field, v := range map[string]string{"allow_methods": out.Methods, "allow_headers": out.Headers, "expose_headers": out.Expose, "max_age": out.MaxAge} {
		if !message.ValidValue(v) {
			c.report.Add(at.Field(field), "has control characters")
		}
	}
	for i, m := range p.GetAllowOriginStringMatch() {
		out.origins = append(out.origins, c.stringMatch(m, at.Field("allow_origin_string_match").Index(i)))
	}
	if f := p.GetFilterEnabled().GetDefaultValue(); f != nil {
		switch f.GetNumerator() {
		case 0:
			return nil
		case denominator(f):
		default:
			c.report.Add(at.Field("filter_enabled").Field("default_value"), "all requests or none")
		}
	}
	return out
}

func denominator(f *typev3.FractionalPercent) uint32 {
	switch f.GetDenominator() {
	case typev3.FractionalPercent_TEN_THOUSAND:
		return 10_000
	case typev3.FractionalPercent_MILLION:
		return 1_000_000
	}
	return 100
}

// duration reads a duration that is not negative; otherwise, if there is none.
func (c *compiler) duration(d *durationpb.Duration, at *strict.Path, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		c.report.Add(at, "a duration that is not negative, not %d.%09d s", d.GetSeconds(), d.GetNanos())
		return otherwise
	}
	return d.AsDuration()
}
