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
			if rest, ok := strings.CutPrefix(f.Value, h.Prefix); ok {
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
			return f.Name == h.Name && strings.HasPrefix(f.Value, h.Prefix)
		})
	})
	if params := p.params(); len(params) > 0 {
		if path, query := req.SplitPath(); query != "" {
			var kept []string
			eachParam(query, func(part, name, _ string) {
				if !slices.Contains(params, name) {
					kept = append(kept, part)
				}
			})
			req.Path = path
			if len(kept) > 0 {
				req.Path += "?" + strings.Join(kept, "&")
			}
		}
	}
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
