package route

import (
	"errors"
	"regexp"
	"regexp/syntax"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// principalKey is the filter state under which the client's identity is known, as Istio has it.
const principalKey = "io.istio.peer_principal"

func (c *compiler) conditions(m *routev3.RouteMatch, at *strict.Path) conditions {
	out := conditions{path: c.path(m, at), grpc: m.GetGrpc() != nil}
	for i, h := range m.GetHeaders() {
		hm := c.header(h, at.Field("headers").Index(i))
		if hm.name == ":method" && out.method == "" && hm.kind == headerValue && !hm.invert && hm.value.kind == stringExact && !hm.value.fold && hm.value.value != "" {
			out.method = hm.value.value
			continue
		}
		out.headers = append(out.headers, hm)
	}
	for i, q := range m.GetQueryParameters() {
		out.query = append(out.query, c.query(q, at.Field("query_parameters").Index(i)))
	}
	for i, f := range m.GetFilterState() {
		at := at.Field("filter_state").Index(i)
		if f.GetKey() != principalKey {
			c.report.Add(at.Field("key"), "only %q is known, not %q", principalKey, f.GetKey())
		}
		if f.GetStringMatch() == nil {
			c.report.Add(at, "string_match is required")
			continue
		}
		out.principal = append(out.principal, c.stringMatch(f.GetStringMatch(), at.Field("string_match")))
	}
	return out
}

func (c *compiler) path(m *routev3.RouteMatch, at *strict.Path) pathMatch {
	out := pathMatch{fold: m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		out.kind, out.value = pathExact, p.Path
		if !message.ValidPath(p.Path) || strings.Contains(p.Path, "?") {
			c.report.Add(at.Field("path"), "%q is no path without a query", p.Path)
		}
	case *routev3.RouteMatch_Prefix:
		out.kind, out.value = pathPrefix, p.Prefix
		if strings.ContainsAny(p.Prefix, "?#") {
			c.report.Add(at.Field("prefix"), "%q is no beginning of a path without a query", p.Prefix)
		}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.kind, out.value = pathSegments, p.PathSeparatedPrefix
		if !message.ValidPath(out.value) || strings.ContainsAny(out.value, "?#") || out.value[len(out.value)-1] == '/' {
			c.report.Add(at.Field("path_separated_prefix"), `%q must begin with "/" and not end with it: for all paths use prefix "/"`, out.value)
		}
	case *routev3.RouteMatch_SafeRegex:
		out.kind, out.length, out.fold = pathRegex, -1, false
		out.regex = c.regex(p.SafeRegex, at.Field("safe_regex"))
		return out
	case nil:
		c.report.Add(at, "a condition on the path is required: prefix, path, path_separated_prefix or safe_regex")
	}
	out.length = len(out.value)
	return out
}

func (c *compiler) header(h *routev3.HeaderMatcher, at *strict.Path) headerMatch {
	out := headerMatch{
		name: strings.ToLower(h.GetName()), invert: h.GetInvertMatch(), emptyIfNone: h.GetTreatMissingHeaderAsEmpty(),
	}
	switch out.name {
	case ":method", ":path", ":authority", ":scheme":
	default:
		if !message.ValidName(out.name) {
			c.report.Add(at.Field("name"), "%q is no name of a header field", h.GetName())
		}
	}
	plain := func(kind stringKind, field, v string) {
		out.value = stringMatch{kind: kind, value: v}
		if v == "" {
			c.report.Add(at.Field(field), "must not be empty: use present_match")
		}
	}
	switch m := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		out.kind = headerPresent
	case *routev3.HeaderMatcher_PresentMatch:
		if out.kind = headerPresent; !m.PresentMatch {
			out.kind = headerAbsent
		}
	case *routev3.HeaderMatcher_RangeMatch:
		out.kind, out.from, out.until = headerRange, m.RangeMatch.GetStart(), m.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_StringMatch:
		out.value = c.stringMatch(m.StringMatch, at.Field("string_match"))
	case *routev3.HeaderMatcher_ExactMatch:
		//lint:ignore SA1019 control planes may still say it in this older form
		plain(stringExact, "exact_match", m.ExactMatch)
	case *routev3.HeaderMatcher_PrefixMatch:
		//lint:ignore SA1019 control planes may still say it in this older form
		plain(stringPrefix, "prefix_match", m.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		//lint:ignore SA1019 control planes may still say it in this older form
		plain(stringSuffix, "suffix_match", m.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		//lint:ignore SA1019 control planes may still say it in this older form
		plain(stringContains, "contains_match", m.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		//lint:ignore SA1019 control planes may still say it in this older form
		out.value = stringMatch{kind: stringRegex, regex: c.regex(m.SafeRegexMatch, at.Field("safe_regex_match"))}
	}
	return out
}

func (c *compiler) query(q *routev3.QueryParameterMatcher, at *strict.Path) queryMatch {
	out := queryMatch{name: q.GetName()}
	if out.name == "" {
		c.report.Add(at.Field("name"), "required")
	}
	switch m := q.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		out.present = true
	case *routev3.QueryParameterMatcher_PresentMatch:
		out.present, out.absent = true, !m.PresentMatch
	case *routev3.QueryParameterMatcher_StringMatch:
		out.value = c.stringMatch(m.StringMatch, at.Field("string_match"))
	}
	return out
}

func (c *compiler) stringMatch(m *matcherv3.StringMatcher, at *strict.Path) stringMatch {
	out := stringMatch{fold: m.GetIgnoreCase()}
	needed := func(field string) {
		if out.value == "" {
			c.report.Add(at.Field(field), "must not be empty")
		}
	}
	switch p := m.GetMatchPattern().(type) {
	case nil:
		c.report.Add(at, "a pattern is required: exact, prefix, suffix, contains or safe_regex")
	case *matcherv3.StringMatcher_Exact:
		out.kind, out.value = stringExact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.kind, out.value = stringPrefix, p.Prefix
		needed("prefix")
	case *matcherv3.StringMatcher_Suffix:
		out.kind, out.value = stringSuffix, p.Suffix
		needed("suffix")
	case *matcherv3.StringMatcher_Contains:
		out.kind, out.value = stringContains, p.Contains
		needed("contains")
		if out.fold {
			out.value = strings.ToLower(out.value)
		}
	case *matcherv3.StringMatcher_SafeRegex:
		if out.fold { // it has no effect in Envoy
			c.report.Add(at.Field("ignore_case"), "not with safe_regex: write (?i) in it")
		}
		if ns := namespacePattern.FindStringSubmatch(p.SafeRegex.GetRegex()); ns != nil {
			return stringMatch{kind: stringNamespace, value: ns[1]}
		}
		out.kind, out.regex = stringRegex, c.regex(p.SafeRegex, at.Field("safe_regex"))
	}
	return out
}

// regex compiles a regular expression that must match the whole of a string.
func (c *compiler) regex(m *matcherv3.RegexMatcher, at *strict.Path) *regexp.Regexp {
	return c.expression(m.GetRegex(), `\A(?:`+m.GetRegex()+`)\z`, at.Field("regex"))
}

// expression compiles a regular expression as it was written, and in another form that is returned.
func (c *compiler) expression(written, form string, at *strict.Path) *regexp.Regexp {
	if written == "" {
		c.report.Add(at, "required")
		return nil
	}
	re, err := regexp.Compile(written)
	if err == nil {
		re, err = regexp.Compile(form)
	}
	if err == nil {
		return re
	}
	// The package's own text repeats the expression, whatever is in it.
	var syntaxErr *syntax.Error
	if errors.As(err, &syntaxErr) {
		c.report.Add(at, "%q: %s: %q", written, syntaxErr.Code, syntaxErr.Expr)
	} else {
		c.report.Add(at, "%q is no regular expression", written)
	}
	return nil
}
