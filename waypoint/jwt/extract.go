package jwt

import (
	"net/url"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// extract returns the tokens of a request in the places that the provider names: of fields, then parameters, then cookies. All
// count: a backend may look at another one than the first.
func (p *Provider) extract(req *message.Request) []string {
	var out []string
	for _, h := range p.headers() {
		for i := range req.Header {
			f := &req.Header[i]
			if f.Name != h.Name {
				continue
			}
			if rest, ok := h.cut(f.Value); ok {
				out = append(out, strings.Trim(rest, " \t"))
			}
		}
	}
	if params := p.params(); len(params) > 0 {
		_, query := req.SplitPath()
		eachParam(query, func(part, name, value string) {
			if slices.Contains(params, name) {
				out = append(out, value)
			}
		})
	}
	if len(p.Cookies) > 0 {
		for i := range req.Header {
			if f := &req.Header[i]; f.Name == "cookie" {
				eachCookie(f.Value, func(part, name, value string) {
					if slices.Contains(p.Cookies, name) {
						out = append(out, value)
					}
				})
			}
		}
	}
	return out
}

// cut returns what is after the prefix. That of HTTP's own field is a scheme, of which upper and lower case are the same (RFC 9110 section
// 11.1): a backend would take the token however it is written.
func (h Header) cut(value string) (string, bool) {
	if n := len(h.Prefix); h == defaultHeaders[0] && len(value) >= n && strings.EqualFold(value[:n], h.Prefix) {
		return value[n:], true
	}
	return strings.CutPrefix(value, h.Prefix)
}

// eachParam calls f for each parameter of a query: as it is written, its name, and its value.
func eachParam(query string, f func(part, name, value string)) {
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		f(part, unescaped(name), unescaped(value))
	}
}

func unescaped(s string) string {
	if out, err := url.QueryUnescape(s); err == nil {
		return out
	}
	return s
}

// eachCookie calls f for each cookie of a field: as it is written, its name, and its value.
func eachCookie(field string, f func(part, name, value string)) {
	for part := range strings.SplitSeq(field, ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			name = ""
		}
		value = strings.Trim(value, " \t")
		if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		f(part, strings.Trim(name, " \t"), value)
	}
}

// remove takes the tokens out of a request, where extract finds them.
func (p *Provider) remove(req *message.Request) {
	req.Header = slices.DeleteFunc(req.Header, func(f message.Field) bool {
		return slices.ContainsFunc(p.headers(), func(h Header) bool {
			_, is := h.cut(f.Value)
			return is && f.Name == h.Name
		})
	})
	req.Path = p.bare(req.Path)
	if len(p.Cookies) > 0 {
		req.Header = slices.DeleteFunc(req.Header, func(f message.Field) bool { return f.Name == "cookie" && p.withoutCookies(f.Value) == "" })
		for i := range req.Header {
			if f := &req.Header[i]; f.Name == "cookie" {
				f.Value = p.withoutCookies(f.Value)
			}
		}
	}
}

// withoutCookies is a cookie field without the tokens; as it was if it has none.
func (p *Provider) withoutCookies(field string) string {
	var kept []string
	n := 0
	eachCookie(field, func(part, name, _ string) {
		if n++; !slices.Contains(p.Cookies, name) {
			kept = append(kept, part)
		}
	})
	if len(kept) == n {
		return field
	}
	return strings.Trim(strings.Join(kept, ";"), " \t")
}

// bare is a path without tokens in its query; as it was if it has none.
func (p *Provider) bare(path string) string {
	params := p.params()
	before, query, _ := strings.Cut(path, "?")
	if len(params) == 0 || query == "" {
		return path
	}
	var kept []string
	n := 0
	eachParam(query, func(part, name, _ string) {
		if n++; !slices.Contains(params, name) {
			kept = append(kept, part)
		}
	})
	switch len(kept) {
	case n:
		return path
	case 0:
		return before
	}
	return before + "?" + strings.Join(kept, "&")
}
