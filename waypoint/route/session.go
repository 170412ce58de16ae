package route

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"time"

	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	cookiesessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	headersessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/header/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// sessionFilter names the session of a route in typed_per_filter_config.
const sessionFilter = "envoy.filters.http.stateful_session"

// Session keeps a client with the endpoint that answered it first: the answer names the endpoint, in a cookie or a header field, and the
// client's further requests do. What a client says is no proof of anything: it only chooses among the endpoints that its requests may
// go to anyway. Exactly one of Cookie and Header is set.
type Session struct {
	Cookie *Cookie
	// Path is a prefix of the paths that the session is for; "" for all.
	Path string
	// Header is the name of a field, in lower case.
	Header string
}

// Endpoint returns the endpoint that a request names; the zero AddrPort if it names none.
func (s *Session) Endpoint(req *message.Request) netip.AddrPort {
	value := ""
	if s.Cookie != nil {
		value, _ = CookieOf(req, s.Cookie.Name)
	} else {
		value = req.Header.Get(s.Header)
	}
	if value == "" || len(value) > maxSession {
		return netip.AddrPort{}
	}
	raw, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return netip.AddrPort{}
	}
	addr, err := netip.ParseAddrPort(string(raw))
	if err != nil || addr.Addr().Zone() != "" {
		return netip.AddrPort{}
	}
	return addr
}

// maxSession bounds what may be an endpoint's name, in bytes.
const maxSession = 128

// Name has a response name the endpoint that it came from.
func (s *Session) Name(h *message.Fields, endpoint netip.AddrPort) {
	value := base64.RawURLEncoding.EncodeToString([]byte(endpoint.String()))
	if s.Cookie != nil {
		h.Add("set-cookie", s.Cookie.Line(value))
	} else {
		h.Set(s.Header, value)
	}
}

// session reads the session of a route; nil if it has none.
func (c *compiler) session(configs map[string]*anypb.Any, at *strict.Path) *Session {
	if configs[sessionFilter] == nil {
		return nil
	}
	at = at.Field("typed_per_filter_config").Key(sessionFilter)
	var p sessionv3.StatefulSessionPerRoute
	if !supported.Unpack(configs[sessionFilter], &p, at, c.report) || p.GetDisabled() {
		return nil
	}
	state := p.GetStatefulSession().GetSessionState()
	at = at.Field("stateful_session").Field("session_state").Field("typed_config")
	switch state.GetTypedConfig().GetTypeUrl() {
	case "type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState":
		var m cookiesessionv3.CookieBasedSessionState
		if !supported.Unpack(state.GetTypedConfig(), &m, at, c.report) {
			return nil
		}
		in, at := m.GetCookie(), at.Field("cookie")
		out := &Cookie{Name: in.GetName(), TTL: c.duration(in.GetTtl(), at.Field("ttl"), 0)}
		c.cookieName(out.Name, at.Field("name"))
		tail := lifetime(out.TTL)
		if path := in.GetPath(); path != "" {
			tail += "; Path=" + c.cookiePart(path, at.Field("path"))
		}
		out.Tail = tail + "; HttpOnly"
		return &Session{Cookie: out, Path: in.GetPath()}
	case "type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState":
		var m headersessionv3.HeaderBasedSessionState
		if !supported.Unpack(state.GetTypedConfig(), &m, at, c.report) {
			return nil
		}
		return &Session{Header: c.headerName(m.GetName(), at.Field("name"))}
	}
	c.report.Add(at, "%q is not supported: CookieBasedSessionState or HeaderBasedSessionState", state.GetTypedConfig().GetTypeUrl())
	return nil
}

// For tells whether the session is for requests of a path.
func (s *Session) For(path string) bool { return strings.HasPrefix(path, s.Path) }

// lifetime is the part of a cookie's line that says how long it lasts.
func lifetime(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return fmt.Sprintf("; Max-Age=%d", max(1, int64(d/time.Second)))
}
