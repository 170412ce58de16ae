package cluster

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// httpFilters reads a list of filters.
func (b *ruleReader) httpFilters(where string, in []gatewayv1.HTTPRouteFilter) RouteFilters {
	var out RouteFilters
	seen := map[gatewayv1.HTTPRouteFilterType]bool{}
	for i, f := range in {
		at := fmt.Sprintf("%s[%d]", where, i)
		if seen[f.Type] && f.Type != gatewayv1.HTTPRouteFilterRequestMirror {
			b.rule.Faults = append(b.rule.Faults, Fault{true, fmt.Sprintf("%s: there is a %s already", at, f.Type)})
			continue
		}
		seen[f.Type] = true
		missing := false
		switch f.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			if missing = f.RequestHeaderModifier == nil; !missing {
				out.Request = b.headerChanges(at+".requestHeaderModifier", f.RequestHeaderModifier)
			}
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			if missing = f.ResponseHeaderModifier == nil; !missing {
				out.Response = b.headerChanges(at+".responseHeaderModifier", f.ResponseHeaderModifier)
			}
		case gatewayv1.HTTPRouteFilterRequestRedirect:
			if missing = f.RequestRedirect == nil; !missing {
				out.Redirect = b.redirect(at+".requestRedirect", f.RequestRedirect)
			}
		case gatewayv1.HTTPRouteFilterURLRewrite:
			if missing = f.URLRewrite == nil; !missing {
				out.Rewrite = &Rewrite{Path: b.pathChange(at+".urlRewrite.path", f.URLRewrite.Path)}
				if f.URLRewrite.Hostname != nil {
					out.Rewrite.Hostname = b.host(at+".urlRewrite.hostname", string(*f.URLRewrite.Hostname))
				}
			}
		case gatewayv1.HTTPRouteFilterRequestMirror:
			if missing = f.RequestMirror == nil; !missing {
				out.Mirrors = append(out.Mirrors, b.mirror(at+".requestMirror", f.RequestMirror))
			}
		case gatewayv1.HTTPRouteFilterCORS:
			if missing = f.CORS == nil; !missing {
				out.CORS = b.cors(at+".cors", f.CORS)
			}
		case gatewayv1.HTTPRouteFilterExtensionRef:
			if missing = f.ExtensionRef == nil; !missing {
				b.fault("%s.extensionRef: %s %s is not supported", at, f.ExtensionRef.Kind, f.ExtensionRef.Name)
			}
		default:
			b.fault("%s: filter %s is not supported", at, f.Type)
		}
		if missing {
			b.fault("%s: %s has no settings", at, f.Type)
		}
	}
	return out
}

func (b *ruleReader) headerChanges(where string, in *gatewayv1.HTTPHeaderFilter) *HeaderChanges {
	headers := func(in []gatewayv1.HTTPHeader) []Header {
		var out []Header
		for _, h := range in {
			name := strings.ToLower(string(h.Name))
			b.token(where, name)
			if name == headerHost {
				b.host(where, h.Value)
			}
			if !httpguts.ValidHeaderFieldValue(h.Value) {
				b.fault("%s: %q is no value of a header", where, h.Value)
			}
			// Of several with one name the first counts, as the Gateway API wants it.
			if !slices.ContainsFunc(out, func(o Header) bool { return o.Name == name }) {
				out = append(out, Header{name, h.Value})
			}
		}
		return out
	}
	out := &HeaderChanges{Set: headers(in.Set), Add: headers(in.Add)}
	for _, name := range in.Remove {
		name = strings.ToLower(name)
		b.token(where, name)
		if !slices.Contains(out.Remove, name) {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}

// headerHost is the header that names the host of a request.
const headerHost = "host"

// token reports whether something may be the name of a header or of a method, and adds a fault if not. The API server lets none pass
// that may not; waypoints would refuse all routes of the service.
func (b *ruleReader) token(where, s string) bool {
	if !httpguts.ValidHeaderFieldName(s) { // methods have the same form
		b.fault("%s: %q is no name of a header or a method", where, s)
		return false
	}
	return true
}

// tokens reads names, or "*".
func (b *ruleReader) tokens(where string, in []string) []string {
	for _, s := range in {
		b.token(where, s) // an asterisk is one
	}
	return in
}

// hostForm is what a host may be, with or without a port.
var hostForm = regexp.MustCompile(`^(?:[-A-Za-z0-9._]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$`)

// host reads the name of a host.
func (b *ruleReader) host(where, s string) string {
	if !hostForm.MatchString(s) {
		b.fault("%s: %q is no host", where, s)
	}
	return s
}

// pathForm is what the Gateway API lets a path be.
var pathForm = regexp.MustCompile(`^/(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$`)

// goodPath reports whether a path is well-formed, and adds a fault if not.
func (b *ruleReader) goodPath(where, path string) bool {
	if !pathForm.MatchString(path) {
		b.fault("%s: %q is no path", where, path)
		return false
	}
	return true
}

func (b *ruleReader) pathChange(where string, in *gatewayv1.HTTPPathModifier) PathChange {
	if in == nil {
		return PathChange{}
	}
	switch {
	case in.Type == gatewayv1.FullPathHTTPPathModifier && in.ReplaceFullPath != nil:
		path := slashed(*in.ReplaceFullPath)
		b.goodPath(where+".replaceFullPath", path)
		return PathChange{PathReplaced, path}
	case in.Type == gatewayv1.PrefixMatchHTTPPathModifier && in.ReplacePrefixMatch != nil:
		path := slashed(*in.ReplacePrefixMatch)
		b.goodPath(where+".replacePrefixMatch", path)
		return PathChange{PathPrefixReplaced, strings.TrimRight(path, "/")}
	case in.Type == gatewayv1.FullPathHTTPPathModifier || in.Type == gatewayv1.PrefixMatchHTTPPathModifier:
		b.fault("%s: type %s has no value", where, in.Type)
	default:
		b.fault("%s.type: %q is not supported", where, in.Type)
	}
	return PathChange{}
}

// slashed gives a path the slash that it has to begin with.
func slashed(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// redirectStatus is the status of a redirect that does not name one.
const redirectStatus = 302

func (b *ruleReader) redirect(where string, in *gatewayv1.HTTPRequestRedirectFilter) *Redirect {
	out := &Redirect{Status: redirectStatus, Path: b.pathChange(where+".path", in.Path)}
	if in.Scheme != nil {
		if out.Scheme = *in.Scheme; out.Scheme != "http" && out.Scheme != "https" {
			b.fault("%s.scheme: %q is not supported", where, out.Scheme)
		}
	}
	if in.Hostname != nil {
		out.Hostname = b.host(where+".hostname", string(*in.Hostname))
	}
	if in.Port != nil {
		var fault string
		if out.Port, fault = parsePort(where+".port", *in.Port); fault != "" {
			b.fault("%s", fault)
		}
	}
	if in.StatusCode != nil {
		out.Status = *in.StatusCode
		switch out.Status {
		case 301, 302, 303, 307, 308:
		default:
			b.fault("%s.statusCode: %d is not supported", where, out.Status)
		}
	}
	return out
}

// million is the denominator of Mirror.PerMillion.
const million = 1_000_000

func (b *ruleReader) mirror(where string, in *gatewayv1.HTTPRequestMirrorFilter) Mirror {
	out := Mirror{Backend: b.ref(in.BackendRef), PerMillion: million}
	switch {
	case in.Percent != nil && in.Fraction != nil:
		b.rule.Faults = append(b.rule.Faults, Fault{true, where + ": percent and fraction exclude each other"})
	case in.Percent != nil:
		if *in.Percent < 0 || *in.Percent > 100 {
			b.fault("%s.percent: %d is not between 0 and 100", where, *in.Percent)
			break
		}
		out.PerMillion = uint32(*in.Percent) * (million / 100)
	case in.Fraction != nil:
		n, d := in.Fraction.Numerator, int32(100)
		if in.Fraction.Denominator != nil {
			d = *in.Fraction.Denominator
		}
		if n < 0 || d < 1 || n > d {
			b.fault("%s.fraction: %d/%d is not between 0 and 1", where, n, d)
			break
		}
		out.PerMillion = uint32(math.Round(float64(n) / float64(d) * million))
	}
	return out
}

// corsMaxAge is the max age of preflight answers where none is given, the Gateway API's.
const corsMaxAge = 5 * time.Second

func (b *ruleReader) cors(where string, in *gatewayv1.HTTPCORSFilter) *CORS {
	out := &CORS{Credentials: in.AllowCredentials != nil && *in.AllowCredentials, MaxAge: corsMaxAge}
	for i, o := range in.AllowOrigins {
		origin := strings.ToLower(string(o))
		scheme, host, ok := strings.Cut(origin, "://")
		switch {
		case origin == "*":
		case ok && (scheme == "http" || scheme == "https") && hostForm.MatchString(strings.ReplaceAll(host, "*", "x")):
			// Browsers leave default ports out.
			origin = strings.TrimSuffix(origin, map[string]string{"http": ":80", "https": ":443"}[scheme])
		default:
			b.fault("%s.allowOrigins[%d]: %q is not an origin of scheme http or https", where, i, o)
			continue
		}
		out.Origins = append(out.Origins, origin)
	}
	out.Methods = b.tokens(where+".allowMethods", words(in.AllowMethods))
	out.Headers = b.tokens(where+".allowHeaders", words(in.AllowHeaders))
	out.Exposed = b.tokens(where+".exposeHeaders", words(in.ExposeHeaders))
	if in.MaxAge > 0 {
		out.MaxAge = time.Duration(in.MaxAge) * time.Second
	}
	return out
}

func words[S ~string](in []S) []string {
	var out []string
	for _, s := range in {
		out = append(out, string(s))
	}
	return out
}
