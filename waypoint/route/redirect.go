package route

import (
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Redirect is the action of a route that sends the client elsewhere.
type Redirect struct {
	// Status is 301, 302, 303, 307 or 308.
	Status int
	// Scheme and Host take the place of the request's; "" keeps it. Port is that of the new place; 0: see Location.
	Scheme, Host string
	Port         uint16
	// StripQuery leaves the query out.
	StripQuery bool

	rewrite rewrite
}

// Location returns where the client is sent, an absolute URI. The port is, as the Gateway API has it: Port if it is set; else that
// which belongs to Scheme if that is set; else, with a new Host, the one that the client connected to, which port is; else what
// the request's authority says. It is left out where the scheme implies it. The request's scheme is that of x-forwarded-proto if a proxy before us
// said so.
func (r *Redirect) Location(req *message.Request, port uint16) string {
	scheme := req.Scheme
	if v := req.Header.Get("x-forwarded-proto"); v == "http" || v == "https" {
		scheme = v
	}
	if r.Scheme != "" {
		scheme = r.Scheme
	}
	if scheme == "" {
		scheme = "http"
	}
	host, named := splitPort(req.Authority)
	if r.Host != "" {
		host, named = r.Host, strconv.Itoa(int(port))
	}
	switch {
	case r.Port != 0:
		named = strconv.Itoa(int(r.Port))
	case r.Scheme != "":
		named = ""
	}
	if scheme == "http" && named == "80" || scheme == "https" && named == "443" {
		named = ""
	}
	path := r.rewrite.apply(req.Path)
	if r.StripQuery && r.rewrite.do != rewriteAll {
		path, _, _ = strings.Cut(path, "?")
	}
	if path == "*" { // OPTIONS of the whole server
		path = ""
	}
	if host == "" {
		return path // HTTP/1.0 without a host
	}
	if named != "" {
		named = ":" + named
	}
	return scheme + "://" + host + named + path
}

// Response makes the answer, without what EditResponse adds. Port is the one that the client connected to.
func (r *Redirect) Response(req *message.Request, port uint16) *message.Response {
	resp := &message.Response{Status: r.Status}
	resp.Header.Add("location", r.Location(req, port))
	return resp
}
