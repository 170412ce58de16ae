package route

import (
	"crypto/rand"
	"math/bits"
	"net/netip"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// KeyPart is something that tells requests apart. Exactly one of Header, Parameter, Cookie and Source is set.
type KeyPart struct {
	// Header is the name of a header field, in lower case, or of a pseudo-field.
	Header string
	// Parameter is the name of a parameter of the query.
	Parameter string
	Cookie    *Cookie
	// Source is the client's address.
	Source bool
	// Last: if the request has this part, the others are not looked at.
	Last bool
}

// Cookie is a cookie that requests are told apart by.
type Cookie struct {
	Name string
	// Give says that clients without one are given one, for TTL, or for their session if that is 0.
	Give bool
	TTL  time.Duration
	// Tail is the rest of the line that gives it, from the first ";" on.
	Tail string
}

// Key returns what a request has of Keys as one number; there is none if it has nothing of it. Set, if it is not "", is the value of a
// set-cookie field that the response must have, so that further requests of the client have the same key.
func (f *Forward) Key(req *message.Request, from netip.Addr) (key uint64, ok bool, set string) {
	for _, p := range f.Keys {
		value, there := "", false
		switch {
		case p.Header != "":
			value, there = field(req, p.Header)
		case p.Parameter != "":
			_, query := req.SplitPath()
			value, there = parameter(query, p.Parameter)
		case p.Source:
			there = from.IsValid()
			value = string(from.AsSlice())
		default:
			value, there = CookieOf(req, p.Cookie.Name)
			if !there && p.Cookie.Give && set == "" {
				value, there = rand.Text(), true
				set = p.Cookie.Line(value)
			}
		}
		if !there {
			continue
		}
		key, ok = bits.RotateLeft64(key, 1)^xxhash.Sum64String(value), true
		if p.Last {
			break
		}
	}
	return key, ok, set
}

// Line is the value of a set-cookie field that gives the cookie this value.
func (c *Cookie) Line(value string) string {
	return c.Name + `="` + value + `"` + c.Tail
}

// CookieOf returns the value of a cookie that the client sent, without quotes.
func CookieOf(req *message.Request, name string) (string, bool) {
	for i := range req.Header {
		if req.Header[i].Name != "cookie" {
			continue
		}
		for rest := req.Header[i].Value; rest != ""; {
			var one string
			one, rest, _ = strings.Cut(rest, ";")
			if value, ok := strings.CutPrefix(strings.TrimSpace(one), name); ok && strings.HasPrefix(value, "=") {
				return strings.Trim(value[1:], `"`), true
			}
		}
	}
	return "", false
}

func (c *compiler) keyPart(p *routev3.RouteAction_HashPolicy, at *strict.Path) *KeyPart {
	out := &KeyPart{Last: p.GetTerminal()}
	switch {
	case p.GetHeader() != nil:
		out.Header = strings.ToLower(p.GetHeader().GetHeaderName())
		if !message.ValidName(strings.TrimPrefix(out.Header, ":")) {
			c.report.Add(at.Field("header").Field("header_name"), "%q is no name of a header field", out.Header)
		}
	case p.GetQueryParameter() != nil:
		if out.Parameter = p.GetQueryParameter().GetName(); out.Parameter == "" {
			c.report.Add(at.Field("query_parameter").Field("name"), "required")
		}
	case p.GetCookie() != nil:
		out.Cookie = c.cookie(p.GetCookie(), at.Field("cookie"))
	case p.GetConnectionProperties().GetSourceIp():
		out.Source = true
	default:
		c.report.Add(at, "header, cookie, query_parameter or connection_properties.source_ip is required")
	}
	return out
}

func (c *compiler) cookie(in *routev3.RouteAction_HashPolicy_Cookie, at *strict.Path) *Cookie {
	out := &Cookie{Name: in.GetName(), Give: in.GetTtl() != nil, TTL: c.duration(in.GetTtl(), at.Field("ttl"), 0)}
	c.cookieName(out.Name, at.Field("name"))
	part := c.cookiePart
	var tail strings.Builder
	tail.WriteString(lifetime(out.TTL))
	if p := in.GetPath(); p != "" {
		tail.WriteString("; Path=" + part(p, at.Field("path")))
	}
	for i, a := range in.GetAttributes() {
		at := at.Field("attributes").Index(i)
		tail.WriteString("; " + part(a.GetName(), at.Field("name")))
		if a.GetValue() != "" {
			tail.WriteString("=" + part(a.GetValue(), at.Field("value")))
		}
	}
	tail.WriteString("; HttpOnly")
	out.Tail = tail.String()
	return out
}

func (c *compiler) cookieName(name string, at *strict.Path) {
	if !message.ValidName(strings.ToLower(name)) {
		c.report.Add(at, "%q is no name of a cookie", name)
	}
}

// cookiePart is a value that becomes part of a line that gives a cookie.
func (c *compiler) cookiePart(value string, at *strict.Path) string {
	if !message.ValidValue(value) || strings.Contains(value, ";") {
		c.report.Add(at, "%q cannot be part of a cookie", value)
	}
	return value
}
