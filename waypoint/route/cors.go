package route

import (
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// CORS is what pages of other origins may ask for and read (the Fetch standard, section 3.2).
type CORS struct {
	// Methods, Headers, Expose and MaxAge are as they are sent, MaxAge in seconds; "" leaves the field out.
	Methods, Headers, Expose, MaxAge string
	// Credentials may be sent.
	Credentials bool
	// RefuseOthers: preflights of origins that are not allowed are answered by us, without permission; else they are passed on.
	RefuseOthers bool

	origins []stringMatch
}

// Preflight returns the answer to req if it is a preflight that is answered by us, without what EditResponse adds; nil if it
// is none, or goes on to the backend.
func (c *CORS) Preflight(req *message.Request) *message.Response {
	if req.Method != "OPTIONS" {
		return nil
	}
	origin, ok := req.Header.Lookup("origin")
	if !ok {
		return nil
	}
	method := req.Header.Get("access-control-request-method")
	if method == "" {
		return nil
	}
	if !c.allows(origin) {
		if c.RefuseOthers {
			return &message.Response{Status: 200, Header: message.Fields{{Name: "vary", Value: "origin"}}}
		}
		return nil
	}
	resp := &message.Response{Status: 200}
	c.permit(origin, &resp.Header)
	resp.Header.Add("vary", "origin")
	asked, _ := req.Header.Joined("access-control-request-headers")
	for _, f := range []message.Field{
		{Name: "access-control-allow-methods", Value: c.wildcard(c.Methods, method)},
		{Name: "access-control-allow-headers", Value: c.wildcard(c.Headers, asked)},
		{Name: "access-control-max-age", Value: c.MaxAge},
	} {
		if f.Value != "" {
			resp.Header = append(resp.Header, f)
		}
	}
	return resp
}

// Respond says in the header of a response what the page that caused the request may do with it; origin is the request's origin
// field, "" if it had none. What the backend said of it is replaced, if the origin is allowed.
func (c *CORS) Respond(origin string, h *message.Fields) {
	if origin == "" {
		return
	}
	if !hasToken(h.Values("vary"), "origin") {
		h.Add("vary", "origin") // a cache must not give one page's permission to another
	}
	if !c.allows(origin) {
		return
	}
	c.permit(origin, h)
	if expose := c.exposed(*h); expose != "" {
		h.Set("access-control-expose-headers", expose)
	}
}

func (c *CORS) permit(origin string, h *message.Fields) {
	h.Set("access-control-allow-origin", origin)
	if c.Credentials {
		h.Set("access-control-allow-credentials", "true")
	}
}

func (c *CORS) allows(origin string) bool {
	for i := range c.origins {
		if c.origins[i].match(origin) {
			return true
		}
	}
	return false
}

// wildcard returns what is sent for a list that allows all if it has "*". With credentials a browser would take "*" as a name:
// what was asked for is named instead.
func (c *CORS) wildcard(list, asked string) string {
	if c.Credentials && list == "*" {
		return asked
	}
	return list
}

// exposed is as wildcard: it names all fields of the response.
func (c *CORS) exposed(h message.Fields) string {
	if !c.Credentials || c.Expose != "*" {
		return c.Expose
	}
	var names []string
	for _, f := range h {
		if !strings.HasPrefix(f.Name, "access-control-") && f.Name != "set-cookie" && !hasToken(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	return strings.Join(names, ",")
}

// hasToken tells whether one of the lists has a token, or is "*".
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for one := range strings.SplitSeq(list, ",") {
			if one = strings.TrimSpace(one); one == "*" || strings.EqualFold(one, token) {
				return true
			}
		}
	}
	return false
}
