package policy

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// Request is what waypoints decide on: a request, or a connection that is not of HTTP.
type Request struct {
	// Connection is that to the service: Destination is what the client asked for, not the pod behind it.
	Connection
	// URI is Peer.String(), for those who have it already; it is made if it is empty.
	URI string
	// Remote is the client's address before all proxies that say so; the zero Addr if that is not known.
	Remote netip.Addr
	// Head is that of the request, nil on a connection that is not of HTTP.
	Head *Head
	// Server is the name of the server that a client of TLS asks for. Where it is "", Unnamed tells that it is known to ask for none; a
	// request has come without TLS.
	Server  string
	Unnamed bool
	// Claims are those of the token that the request has proved itself by, as encoding/json decodes its payload; nil if there is none.
	Claims map[string]any
}

// Head is what a request says of itself, its path in the form in which it is routed.
type Head struct {
	Method, Authority, Path string
	Header                  []h2.Field // names in lower case
}

// Expr is a statement about a Request: All, Any and Not of others, or one of the tests below. It is immutable.
//
// What a Request cannot tell is in doubt: the head of a connection, a field that is there more than once with values that differ
// under the test. A policy never becomes weaker by a doubt: for one that allows it counts against, for one that denies it counts
// for, through any number of Nots.
type Expr interface {
	holds(r *Request, doubt bool) bool
}

type (
	// All holds if each of them does; the empty All holds always.
	All []Expr
	// Any holds if one of them does; the empty Any never holds.
	Any []Expr
	// Not holds if the other does not.
	Not struct{ Expr Expr }

	// Principal tests the client's identity, as a SPIFFE URI. A client without one has none.
	Principal struct{ Text Text }
	// SourceIP tests the address of who has connected.
	SourceIP struct{ Range netip.Prefix }
	// RemoteIP tests the address of the client before all proxies.
	RemoteIP struct{ Range netip.Prefix }
	// DestinationIP tests the address that the client asked for.
	DestinationIP struct{ Range netip.Prefix }
	// DestinationPort tests the port that the client asked for: First to Last.
	DestinationPort struct{ First, Last uint16 }
	// ServerName tests the name of the server that a client of TLS asks for. A request in plain text, and a client that asks for none, fail.
	ServerName struct{ Text Text }
	// Field tests a field of the header by its name in lower case, or :authority or :method.
	Field struct {
		Name string
		Text Text
	}
	// Path tests the path without the query.
	Path struct{ Text Text }
	// PathTemplate tests the path without the query against a template.
	PathTemplate struct{ Template Template }
)

func (a All) holds(r *Request, doubt bool) bool {
	for _, e := range a {
		if !e.holds(r, doubt) {
			return false
		}
	}
	return true
}

func (a Any) holds(r *Request, doubt bool) bool {
	for _, e := range a {
		if e.holds(r, doubt) {
			return true
		}
	}
	return false
}

func (n Not) holds(r *Request, doubt bool) bool { return !n.Expr.holds(r, !doubt) }

func (t Principal) holds(r *Request, _ bool) bool {
	if r.Peer.IsZero() {
		return false
	}
	if r.URI == "" {
		r.URI = r.Peer.String()
	}
	return t.Text.is(r.URI)
}

func (t SourceIP) holds(r *Request, doubt bool) bool { return inRange(t.Range, r.Source, doubt) }

func (t RemoteIP) holds(r *Request, doubt bool) bool { return inRange(t.Range, r.Remote, doubt) }

func (t DestinationIP) holds(r *Request, doubt bool) bool {
	return inRange(t.Range, r.Destination.Addr(), doubt)
}

func inRange(p netip.Prefix, a netip.Addr, doubt bool) bool {
	if !a.IsValid() {
		return doubt
	}
	return p.Contains(a.Unmap().WithZone(""))
}

func (t DestinationPort) holds(r *Request, _ bool) bool {
	return t.First <= r.Destination.Port() && r.Destination.Port() <= t.Last
}

func (t ServerName) holds(r *Request, doubt bool) bool {
	switch {
	case r.Server != "":
		return t.Text.is(r.Server)
	case r.Unnamed || r.Head != nil:
		return false
	}
	return doubt
}

func (t Field) holds(r *Request, doubt bool) bool {
	switch {
	case r.Head == nil:
		return doubt
	case t.Name == fieldAuthority:
		return t.Text.is(r.Head.Authority)
	case t.Name == fieldMethod:
		return t.Text.is(r.Head.Method)
	}
	n, some, all := 0, false, true
	var first string
	for i := range r.Head.Header {
		if f := &r.Head.Header[i]; f.Name == t.Name {
			if n++; n == 1 {
				first = f.Value
				continue
			}
			is := t.Text.is(f.Value)
			some, all = some || is, all && is
		}
	}
	if n == 0 {
		return false
	}
	is := t.Text.is(first)
	if n == 1 {
		return is
	}
	// Some servers take the first, some the last, and some all of them joined.
	joined := t.Text.is(join(r.Head.Header, t.Name))
	return settle(some || is || joined, all && is && joined, doubt)
}

// Names of what is in a head beside its fields.
const (
	fieldAuthority = ":authority"
	fieldMethod    = ":method"
)

func join(fields []h2.Field, name string) string {
	var all []string
	for i := range fields {
		if fields[i].Name == name {
			all = append(all, fields[i].Value)
		}
	}
	return strings.Join(all, ",")
}

// settle is the outcome of a test that holds for some, or for all, of the ways to read what it looks at.
func settle(some, all, doubt bool) bool {
	if some == all {
		return all
	}
	return doubt
}

func (t Path) holds(r *Request, doubt bool) bool { return pathIs(r, doubt, t.Text.is) }

func (t PathTemplate) holds(r *Request, doubt bool) bool { return pathIs(r, doubt, t.Template.matches) }

// pathIs tests the path without query. Of a fragment, which has no place in a request, servers think one thing or the other.
func pathIs(r *Request, doubt bool, is func(string) bool) bool {
	if r.Head == nil {
		return doubt
	}
	path, _, _ := strings.Cut(r.Head.Path, "?")
	if before, _, fragment := strings.Cut(path, "#"); fragment {
		a, b := is(before), is(path)
		return settle(a || b, a && b, doubt)
	}
	return is(path)
}

// Text is a test of a string. The zero Text is that it is empty.
type Text struct {
	Kind TextKind
	// Value is what to compare with; of a Regexp, the expression.
	Value string
	// Fold: upper and lower case are the same. Value is in lower case then. It has no meaning for a Regexp.
	Fold bool

	re *regexp.Regexp
}

// TextKind is a kind of Text.
type TextKind uint8

// TextKinds.
const (
	Exact TextKind = iota
	Prefix
	Suffix
	Contains
	// Present holds for every string, also an empty one; it needs that there is one.
	Present
	// Regexp is an expression of RE2 for the whole string; see NewRegexp.
	Regexp
)

// NewRegexp makes a Text of an expression.
func NewRegexp(expression string) (Text, error) {
	re, err := regexp.Compile("^(?:" + expression + ")$")
	if err != nil {
		return Text{}, fmt.Errorf("expression %q: %w", expression, err)
	}
	if _, err := regexp.Compile(expression); err != nil { // such as "a)(b"
		return Text{}, fmt.Errorf("expression %q: %w", expression, err)
	}
	return Text{Kind: Regexp, Value: expression, re: re}, nil
}

// Matches reports whether the test holds for s.
func (t Text) Matches(s string) bool { return t.is(s) }

func (t Text) is(s string) bool {
	if t.Fold && t.Kind != Regexp {
		s = strings.ToLower(s)
	}
	switch t.Kind {
	case Prefix:
		return strings.HasPrefix(s, t.Value)
	case Suffix:
		return strings.HasSuffix(s, t.Value)
	case Contains:
		return strings.Contains(s, t.Value)
	case Present:
		return true
	case Regexp:
		return t.re != nil && t.re.MatchString(s)
	}
	return s == t.Value
}

// Template is a path of which some segments are open: "{*}" stands for one segment, "{**}" for any text, with slashes or
// empty. Make one with NewTemplate.
type Template struct {
	text string
	re   *regexp.Regexp
}

// Operators of templates.
const (
	anySegment = "{*}"
	anyText    = "{**}"
)

// maxOperators bounds the operators of a template. Envoy's.
const maxOperators = 5

// NewTemplate reads a template such as "/shop/{*}/items/{**}". Each operator is a whole segment, and nothing open comes after
// "{**}".
func NewTemplate(text string) (Template, error) {
	fail := func(what string) (Template, error) { return Template{}, fmt.Errorf("path %q: %s", text, what) }
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return fail("a template begins with /")
	}
	var re strings.Builder
	re.WriteString("(?s)^")
	open, last := 0, false
	segments := strings.Split(rest, "/")
	for i, segment := range segments {
		re.WriteByte('/')
		switch {
		case segment == anySegment || segment == anyText:
			if last {
				return fail("{**} must be the last that is open")
			}
			if open++; open > maxOperators {
				return fail(fmt.Sprintf("at most %d segments may be open", maxOperators))
			}
			last = segment == anyText
			re.WriteString(map[bool]string{false: "[^/]+", true: ".*"}[last])
		case segment == "" && i < len(segments)-1:
			return fail("has an empty segment")
		case strings.ContainsFunc(segment, func(c rune) bool { return !isLiteral(c) }):
			return fail(fmt.Sprintf("segment %q is neither {*} nor {**} nor text that a template can have", segment))
		default:
			re.WriteString(regexp.QuoteMeta(segment))
		}
	}
	re.WriteByte('$')
	return Template{text, regexp.MustCompile(re.String())}, nil
}

// isLiteral reports whether a template's text may have a character. Envoy's rule.
func isLiteral(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c < 0x80 && strings.ContainsRune("-._~%!$&'()+,;:@=", c)
}

// String is the text that it was made of.
func (t Template) String() string { return t.text }

func (t Template) matches(path string) bool { return t.re != nil && t.re.MatchString(path) }

// IsTemplate reports whether a path is written as a template, well or not.
func IsTemplate(path string) bool {
	return strings.Contains(path, anySegment) || strings.Contains(path, anyText)
}
